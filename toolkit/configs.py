"""From Hydra's composed config to a command's checked dataclass, and from Hydra's errors to one line."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from toolkit import renamed
from toolkit.commands import COMMANDS, Command
from toolkit.data.catalogue import CATALOGUE, Entry
from toolkit.errors import UserError, did_you_mean, first_line
from toolkit.installation import install_hint
from toolkit.paths import at_home, conf_dir, presets
from toolkit.schema import Job, check
from toolkit.spelling import spelled

log = logging.getLogger("toolkit")

CONFIG_DIR, SEARCHPATH = ("--config-dir", "-cd"), "hydra.searchpath="  # where configs of one's own are


def register(command: Command) -> None:
    """Put the room's dataclasses into Hydra's ConfigStore.

    A room's ``config.py`` has ``SCHEMAS``: ``{(group or None, name): dataclass}``; the primary one is named
    ``<command>_schema``. The group ``data`` has one option per data set of the command's kind.
    """
    _register_units()
    _store(command, tuple(CATALOGUE))


@functools.lru_cache(maxsize=1)  # what is there from the last time; making it costs a fifth of composing a config
def _store(command: Command, data_sets_known: tuple[str, ...]) -> None:
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    _remove_ours(store.repo)  # another command's: Hydra copies the whole store for each config that it composes
    for (group, name), schema in schemas(command).items():
        store.store(group=group, name=name, node=schema, provider="toolkit")
    for name, entry in data_sets(command).items():
        store.store(group="data", name=name, node={"name": name, **entry.config}, provider="toolkit")


def _remove_ours(repo: dict[str, Any]) -> None:
    for name, node in list(repo.items()):
        if isinstance(node, dict):
            _remove_ours(node)
        if not node or getattr(node, "provider", None) == "toolkit":
            del repo[name]


def _register_units() -> None:
    """The conversions of renamed keys, for values that depend on another key."""
    from omegaconf import OmegaConf

    for name, convert in renamed.UNITS.items():
        OmegaConf.register_new_resolver(name, convert, replace=True)


def primary_schema(command: Command) -> type[Job]:
    """The dataclass of the command's whole config."""
    return schemas(command)[None, f"{command.primary}_schema"]


def data_sets(command: Command) -> dict[str, Entry]:
    """The part of the catalogue that the command reads, by the kinds that its ``data`` names; empty without one."""
    kinds = _kinds(primary_schema(command))
    return {name: entry for name, entry in CATALOGUE.items() if entry.kind in kinds}


def _kinds(schema: type[Job]) -> tuple[str, ...]:
    annotation = get_type_hints(schema).get("data")
    kinds = [getattr(one, "KINDS", ()) for one in (annotation, *get_args(annotation))]  # X, or X | None
    return next((one for one in kinds if one), ())


def schemas(command: Command) -> dict[tuple[str | None, str], type]:
    return importlib.import_module(f"{command.room}.config").SCHEMAS


def compose(command: Command, words: list[str]) -> Job:
    """The checked config of overrides without a run folder (for --dry-run, plan, tests and notebooks).

    ``words`` may name a folder of one's own configs by ``--config-dir``. Raises UserError as the command itself would,
    and for Hydra's other flags, which are about running.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    overrides, notes = renamed.words_now(command.name, _with_searchpath(words_at_home(words)))
    for note in notes:
        log.warning(note)
    check_preset(command, overrides)
    register(command)
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            return typed_config(hydra_compose(command.primary, overrides=overrides), overrides)
    except Exception as error:
        if is_config_error(error):
            raise UserError(one_line(error, command)) from error
        raise


def words_at_home(words: Sequence[str]) -> list[str]:
    """``KEY=~/x`` with the home folder, which shells leave alone there and Hydra's grammar does not know."""
    home = r"\g<1>" + at_home("~/").replace("\\", r"\\")
    folders = [re.sub(r"^(hydra\.(?:run|sweep)\.dir=['\"])~/", home, word) for word in words]
    return [word if {"'", '"'} & {*word} else re.sub(r"([=,\[])~/", home, word) for word in folders]


def _with_searchpath(words: list[str]) -> list[str]:
    """``words`` with ``--config-dir`` as the override that means the same. Raises UserError for any other flag."""
    rest, folders, left = [], [], iter(words)
    for word in left:
        flag, equals, value = word.partition("=")
        if not word.startswith("-"):
            rest.append(word)
        elif flag not in CONFIG_DIR:
            raise UserError(f"{word}: only runs take this flag; leave it out, and give each key one value")
        else:
            folder = value if equals else next(left, "")
            if not folder or not Path(folder).is_dir():
                raise UserError(f"{flag} {folder}: no such folder" if folder else f"{flag}: names no folder")
            folders.append(f"file://{Path(folder).absolute()}")
    if folders and any(word.startswith(SEARCHPATH) for word in rest):
        raise UserError(f"{CONFIG_DIR[0]} and {SEARCHPATH.rstrip('=')}: give one of them")
    return [*rest, f"{SEARCHPATH}{spelled(folders)}"] if folders else rest


def typed_config(cfg: Any, asked: Sequence[str] = ()) -> Job:
    """The plain, checked dataclass of a config composed of the words ``asked``. Raises UserError naming the key."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _register_units()  # a launcher's worker comes here first
    _refuse_strangers(cfg)
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise UserError(f"{missing[0]}: must be given, as in {missing[0]}=VALUE")
        config = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere, or to a value of another type
        raise UserError(f"{error.full_key!s}: {_flat(error)}") from error
    assert isinstance(config, Job)
    if config.command != type(config).command:
        raise UserError(f"command={config.command}: this is toolkit {type(config).command}")
    if (data := getattr(config, "data", None)) and data.name not in data_sets(COMMANDS[config.command]):
        raise UserError(f"data.name={_no_such_data(data.name, COMMANDS[config.command])}")
    _set_home(config)
    check(config)
    config.asked = tuple(asked)
    return config


def _set_home(config: Any) -> None:
    """Put the home folder into every value that begins with it: what is no text for a model names a file."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            _set_home(value)
        elif not item.metadata.get("blank"):
            setattr(config, item.name, at_home(value))


def _refuse_strangers(node: Any, prefix: str = "") -> None:
    """Hydra lets ``+unknown=1`` into a typed config; we do not."""
    from omegaconf import DictConfig, OmegaConf

    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return
    kind = OmegaConf.get_type(node)
    known = {item.name for item in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else None
    for key in node:
        name = f"{prefix}{key!s}"
        if known is not None and key not in known:
            raise UserError(f"{name}: no such key; {did_you_mean(str(key), known)}--keys lists all")
        if not OmegaConf.is_missing(node, key):
            _refuse_strangers(node._get_node(key), f"{name}.")


def check_preset(command: Command, arguments: list[str]) -> None:
    """Refuse a preset that is unknown or another command's, and no choice at all, before anything else runs."""
    known = presets()
    mine = [name for name, (owner, _) in known.items() if owner == command.name]
    groups = {"experiment", "data", *(group for group, _ in schemas(command) if group)}
    for word in arguments:
        if word.endswith("=null") and (group := word.removesuffix("=null")) in groups:
            raise UserError(f"{word}: a choice cannot be null; write ~{group} to leave it out")
    own_folder = any(word.startswith((*CONFIG_DIR, SEARCHPATH)) for word in arguments)
    for name in _presets_asked(arguments):
        if name not in known and not own_folder:
            hint = did_you_mean(name, mine)
            raise UserError(f"experiment={name}: no such preset; {hint}{command.name} has {', '.join(mine)}")
        if name in known and known[name][0] != command.name:
            raise UserError(f"experiment={name}: a preset of {known[name][0]}, not of {command.name}")


def _presets_asked(arguments: list[str]) -> list[str]:
    values = [word.split("=", 1)[1] for word in arguments if word.startswith(("experiment=", "+experiment="))]
    names = [name.strip() for value in values for name in value.split(",")]
    return [name for name in names if re.fullmatch(r"\w+", name) and name != "null"]  # not Hydra's glob(...)


def is_config_error(error: BaseException) -> bool:
    """Whether Hydra or OmegaConf refused the config, be it with an error that they did not mean to raise."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, (HydraException, OmegaConfBaseException, YAMLError)) or _unreadable(error):
        return True
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    raised_in = frame.tb_frame.f_globals.get("__name__", "") if frame else ""
    return isinstance(error, Exception) and raised_in.split(".")[0] in ("hydra", "omegaconf", "antlr4")


def _near_key(name: str, known: set[str]) -> str:
    """What :func:`did_you_mean` says of the key's last word: its group would make all keys of that group alike.

    A word that is a key of another group is that key.
    """
    group, dot, word = name.rpartition(".")
    same = sorted((key for key in known if key.rpartition(".")[2] == word), key=len)
    if same:
        return did_you_mean(name, same) or f"did you mean '{same[0]}'? "
    beside = [key for key in known if key.rpartition(".")[0] == group]
    if not beside:
        return did_you_mean(name, known)
    near = did_you_mean(word, [key.rpartition(".")[2] for key in beside])
    return near.replace("'", f"'{group}{dot}", 1)


MOST_CHARACTERS = 1500  # of a message: a value may be long
_INTERNALS = ("full_key:", "object_type=", "reference_type=", "Config search path:", "provider=", "See https:")


def one_line(error: BaseException, command: Command) -> str:
    """Hydra's message and its cause in one line, without its internals."""
    text = _old_key(error, command) or _unknown_option(error, command) or _unparsable(error) or _unreadable(error)
    text = text or _in_a_file(error, command) or _flat(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        near = _near_key(unknown[1], known_keys(command) - {unknown[1]})
        text = f"{unknown[1]}: no such key; {near}--keys lists all"
    if type(error).__module__ == "builtins":  # raised within Hydra, and not meant for people
        text = f"the overrides fit nothing in the config ({text}); --keys lists all"
    if "hydra/launcher" in text:
        text += f" (launchers come with the extras sweep, slurm and ray: {install_hint('sweep')})"
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."


def _old_key(error: BaseException, command: Command) -> str:
    """A renamed key in a file of the user's own: what it is called now; empty for another kind of error."""
    cause: BaseException | None = error
    while cause is not None:
        key = re.search(r"full_key: (\S+)", str(cause))
        if key and (new := renamed.name_now(command.name, key[1])):
            return f"{key[1]}: is now {new}"
        cause = cause.__cause__
    return ""


def _no_such_data(name: str, command: Command) -> str:
    """``kuka: a set of episodes; train-disco reads points, images: ring, ...``."""
    known = data_sets(command)
    kinds = ", ".join(dict.fromkeys(entry.kind for entry in known.values()))
    what = f"a set of {CATALOGUE[name].kind}; " if name in CATALOGUE else did_you_mean(name, known)
    return f"{name}: {what}{command.name} reads {kinds}: {', '.join(known)}"


def _unknown_option(error: BaseException, command: Command) -> str:
    """``data=nope``: what there is to choose from; empty for another kind of error."""
    from hydra.errors import MissingConfigException

    if not isinstance(error, MissingConfigException) or not error.options:
        return ""
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if group == "data" and data_sets(command):
        return f"data={_no_such_data(name, command)}"
    others = {preset for preset, (owner, _) in presets().items() if owner != command.name and group == "experiment"}
    options = [option for option in error.options if not option.endswith("_schema") and option not in others]
    return f"{group}={name}: {did_you_mean(name, options)}choose one of {', '.join(options)}"


def _unparsable(error: BaseException) -> str:
    """A word that Hydra's grammar does not take, such as a path with ``=`` in it; empty for another kind of error."""
    from hydra.errors import OverrideParseException

    if not isinstance(error, OverrideParseException):
        return ""
    key, equals, _ = error.override.partition("=")
    if not equals:
        return f"{error.override}: not an override; write KEY=VALUE"
    why = first_line(error)
    return f"{error.override}: {why}; a value with signs of Hydra's own goes into quotes: '{key}=\"VALUE\"'"


def _unreadable(error: BaseException) -> str:
    """A file of the user's own that is no UTF-8, which Hydra reads without saying its name; else empty."""
    trace = error.__traceback__ if isinstance(error, UnicodeDecodeError) else None
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") == "hydra._internal.core_plugins.file_config_source":
            return f"{trace.tb_frame.f_locals.get('full_path')}: is not UTF-8 text ({error}); save it as UTF-8"
        trace = trace.tb_next
    return ""


def _in_a_file(error: BaseException, command: Command) -> str:
    """A wrong key or value in a file of the user's own, by its whole name; empty for another kind of error."""
    first, *lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    file, key = re.match(r"In '([^']+)'", first), re.search(r"full_key: (\S+)", str(error))
    if not (file and key and lines):
        return ""
    if not re.match(r"Key '.*' not in '", lines[0]):
        return f"{file[1]}: {key[1]}: {lines[0]}"
    if key[1] == file[1].partition("/")[0]:
        return f"{file[1]}: its first line must be '# @package _global_', without a byte order mark before it"
    return f"{file[1]}: {key[1]}: no such key; {_near_key(key[1], known_keys(command))}--keys lists all"


def _flat(error: BaseException) -> str:
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        parts += [line for line in lines if not line.startswith(_INTERNALS) and line not in parts]
        cause = cause.__cause__
    return " ".join([*(part.rstrip(".:") + ":" for part in parts[:-1]), *parts[-1:]]) or repr(error)


def config_groups(command: Command) -> set[str]:
    """The groups whose options are dataclasses of the room or data sets; conf/ may have more."""
    return {group for group, _ in schemas(command) if group} | ({"data"} if data_sets(command) else set())


def known_keys(command: Command) -> set[str]:
    """Every dotted key of the command's schemas: values, the mappings that hold them, groups and their keys."""
    found: set[str] = set()
    for (group, _), schema in schemas(command).items():
        found |= {*_keys_of(schema, f"{group}."), group} if group else set(_keys_of(schema))
    return found


def _keys_of(schema: type, prefix: str = "") -> Iterator[str]:
    """Also below a mapping that may be null, such as ``data``."""
    for name, hint in get_type_hints(schema).items():
        yield f"{prefix}{name}"
        for kind in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                yield from _keys_of(kind, f"{prefix}{name}.")
