"""A command's config as Hydra would compose it, without Hydra: for help pages, which shall cost nothing.

Understands what our files in conf/ use: options of config groups, presets over presets, overridden options, plain
values. Nothing is checked here.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from toolkit.commands import Command
from toolkit.configs import check_preset, data_sets, primary_schema, schemas
from toolkit.errors import UserError, did_you_mean
from toolkit.paths import conf_dir
from toolkit.schema import Job


def compose(command: Command, choices: Mapping[str, str]) -> tuple[dict[str, str | None], Job]:
    """``({config group: option}, config)`` of the command with ``choices`` in the place of its own options.

    Raises UserError for a group or an option that is not there.
    """
    primary = _read(conf_dir() / f"{command.primary}.yaml")
    chosen: dict[str, str | None] = {}
    for entry in _entries(primary):
        chosen |= entry if isinstance(entry, dict) else {}
    if strangers := set(choices) - set(chosen):
        known = ", ".join(f"{group}=" for group in chosen)
        raise UserError(f"{min(strangers)}=: --keys takes words to look for, and the choices {known}")
    check_preset(command, [f"{group}={option}" for group, option in choices.items()])
    presets, overrides = _preset(command, (chosen | dict(choices))["experiment"])
    chosen = chosen | overrides | dict(choices)
    config = primary_schema(command)()
    for group, option in chosen.items():
        if group != "experiment" and option is not None:
            _choose(command, config, group, option)
    for values in (primary, *presets):
        _merge(config, {key: value for key, value in values.items() if key != "defaults"})
    return chosen, config


def _preset(command: Command, name: str | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A preset as ``(its files, what lies below first; the options that it chooses)``."""
    if name is None:
        return [], {}
    content = _option(command, "experiment", name)
    files: list[dict[str, Any]] = []
    chosen: dict[str, Any] = {}
    for entry in _entries(content):
        if isinstance(entry, dict):
            chosen |= {group.removeprefix("override /"): option for group, option in entry.items()}
        elif entry != "_self_":
            below, options = _preset(command, entry)
            files, chosen = files + below, options | chosen
    return [*files, content], chosen


def options(command: Command, group: str) -> list[str]:
    """The options of a config group: files of conf/, dataclasses of the room, for ``data`` the catalogue's names."""
    names = {path.stem for path in (conf_dir() / group).glob("*.yaml")}
    names |= {name for place, name in schemas(command) if place == group and not name.endswith("_schema")}
    return sorted(names | set(data_sets(command) if group == "data" else ()))


def schema_of(command: Command, group: str, option: str) -> type | None:
    """The dataclass that an option of a config group brings; None where the command's own has one for all of them."""
    known = schemas(command)
    entries = [entry for entry in _entries(_option(command, group, option)) if isinstance(entry, str)]
    return next((known[group, name] for name in (*entries, option) if (group, name) in known), None)


def _choose(command: Command, config: Job, group: str, option: str) -> None:
    """Put an option of a config group, such as ``network=mlp``, into the config. Raises UserError for another one."""
    kind = schema_of(command, group, option) or dataclass_in(typing.get_type_hints(type(config))[group])
    assert kind is not None
    inside = kind()
    _merge(inside, {key: value for key, value in _option(command, group, option).items() if key != "defaults"})
    setattr(config, group, inside)


def _merge(config: Any, values: Mapping[str, Any]) -> None:
    hints = typing.get_type_hints(type(config))
    for key, value in values.items():
        nested = dataclass_in(hints[key])
        if nested and isinstance(value, dict):
            if not is_dataclass(getattr(config, key)):
                setattr(config, key, nested())
            _merge(getattr(config, key), value)
        elif isinstance(value, str) and float in (hints[key], *typing.get_args(hints[key])):
            setattr(config, key, float(value))  # 1e9 is a number to Hydra, to plain YAML a text
        else:
            setattr(config, key, value)


def _option(command: Command, group: str, name: str) -> dict[str, Any]:
    """What an option says. Raises UserError where there is none of that name."""
    known = options(command, group)
    if name not in known:
        raise UserError(f"{group}={name}: {did_you_mean(name, known)}choose one of {', '.join(known)}")
    path = conf_dir() / group / f"{name}.yaml"
    if group == "data" and not path.exists():
        return {"name": name, **data_sets(command)[name].config}
    return _read(path) if path.exists() else {}


def _entries(content: Mapping[str, Any]) -> list[Any]:
    return content.get("defaults") or []


def _read(path: Path) -> dict[str, Any]:
    import yaml

    return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


def dataclass_in(hint: Any) -> type | None:
    """The dataclass of a field's type, ``Data`` of ``Data`` and of ``Data | None``; None for a plain value."""
    return next((one for one in (hint, *typing.get_args(hint)) if inspect.isclass(one) and is_dataclass(one)), None)
