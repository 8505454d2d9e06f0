"""The keys of a command as its help shows them: default as composed, type and range, and what they mean.

Everything is read where it is declared, without Hydra or torch: types, ranges and sentences in the dataclasses of
``ROOM/config.py``, defaults in the files of conf/ that the command composes.

The house's docstrings say what keys mean in running text: ``name: sentence. other, third: sentence.``, each name of a
field at the start of a sentence, up to the next such name or the end of the paragraph.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.commands import Command
from toolkit.configs import primary_schema
from toolkit.errors import UserError, did_you_mean
from toolkit.help.defaults import compose, dataclass_in, options, schema_of
from toolkit.paths import presets
from toolkit.renamed import name_now
from toolkit.schema import MISSING, Job

PRESET = "a preset: settings that belong together; --help lists them"


@dataclass(frozen=True)
class Key:
    """One key of a command.

    kind: type and range in words. meaning: what its docstring says. brief: the first sentence of it. group: what the
    dataclass that it stands in is about. needs: the choice of a config group that brings it, such as ``network=mlp``;
    empty where the command has it as it is.
    """

    name: str
    default: Any
    kind: str
    meaning: str
    brief: str
    group: str = ""
    needs: str = ""


def find(command: Command, words: list[str]) -> list[Key]:
    """The keys that every word stands in, in the name or in the sentence; all keys without words.

    A word such as ``network=mlp`` or ``experiment=disco_toy`` composes the defaults for that choice. Raises UserError
    for one that is no choice, and where no key is found.
    """
    words = [word.removesuffix("=") for word in words]  # as completion writes a key
    choices = dict(word.split("=", 1) for word in words if "=" in word)
    keys = keys_of(command, choices)
    sought = [word.lower() for word in words if "=" not in word]
    found = [key for key in keys if all(_says(key, word, command) for word in sought)]
    if not found:
        names = [part for key in keys for part in (key.name, *key.name.split("."), *re.split("[._]", key.name))]
        hint = "".join(did_you_mean(word, names) for word in sought)
        raise UserError(f"--keys {' '.join(sought)}: no key of {command.name}; {hint}see toolkit {command.name} --keys")
    return found


def _says(key: Key, word: str, command: Command) -> bool:
    """Whether a key has the word, or is what a key of that name is called now."""
    new = name_now(command.name, word)
    return word in f"{key.name} {key.meaning}".lower() or (new is not None and f"{key.name}.".startswith(f"{new}."))


def keys_of(command: Command, choices: Mapping[str, str] | None = None) -> list[Key]:
    """Every key: those of the command, group by group, those that other choices bring, those of every command.

    ``choices``: options of config groups in the place of the command's own. Raises UserError for an unknown one.
    """
    chosen, config = compose(command, choices or {})
    own: list[Key] = [_choice(command, group, option) for group, option in chosen.items()]
    shared: list[Key] = []
    for key, owner in _keys(config, ""):
        (shared if owner is Job else own).append(key)
    own += _brought_by_others(command, chosen, {key.name for key in own})
    top = [key for key in own if "." not in key.name]
    return [*top, *(key for key in own if "." in key.name), *shared]


def _brought_by_others(command: Command, groups: Iterable[str], known: set[str]) -> list[Key]:
    """The keys that only other options of a config group have, with the options that bring them."""
    found: dict[str, tuple[Key, list[str]]] = {}
    for group in groups:
        for option in options(command, group) if group != "experiment" else ():  # presets have none of their own
            kind = schema_of(command, group, option)
            for key, _ in _keys(kind(), f"{group}.") if kind else ():
                if key.name not in known:
                    found.setdefault(key.name, (key, []))[1].append(option)
    return [
        dataclasses.replace(key, needs=f"{key.name.partition('.')[0]}={' or '.join(names)}")
        for key, names in found.values()
    ]


def _keys(config: Any, prefix: str) -> Iterator[tuple[Key, type]]:
    """Every leaf of a nested dataclass, with the class that declares it; a group that is None by its defaults."""
    said, about = meanings(type(config)), summary(type(config)) if prefix else ""
    hints = typing.get_type_hints(type(config))
    for item in dataclasses.fields(config):
        value, nested = getattr(config, item.name), dataclass_in(hints[item.name])
        owner = next(kind for kind in type(config).__mro__ if item.name in inspect.get_annotations(kind))
        if dataclasses.is_dataclass(value) or (nested and value is None):
            yield from _keys(nested() if value is None and nested else value, f"{prefix}{item.name}.")
        elif value is not MISSING or nested is None:
            group = summary(Job) if owner is Job else about
            kind = kind_of(hints[item.name], item.metadata)
            yield _key(f"{prefix}{item.name}", value, kind, said.get(item.name, ""), group), owner


def _choice(command: Command, group: str, option: str | None) -> Key:
    """The key of a config group itself, ``network=``."""
    meaning = PRESET if group == "experiment" else meanings(primary_schema(command)).get(group, "")
    known = presets(command.name) if group == "experiment" else options(command, group)
    return _key(group, option, f"one of {', '.join(known)}", meaning)


def _key(name: str, default: Any, kind: str, meaning: str, group: str = "") -> Key:
    return Key(name, default, kind, plain(meaning), plain(first_sentence(meaning)), group)


# -- what docstrings say ---------------------------------------------------------------------------------------------

_ITEM = re.compile(r"(?:^|(?<=[.;] ))(\w+(?:, \w+)*): ")


def meanings(kind: type) -> dict[str, str]:
    """``{field: what it means}`` of a dataclass, its parents' where it says nothing itself."""
    fields = {item.name for item in dataclasses.fields(kind)}
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        for paragraph in _paragraphs(one):
            items = [match for match in _ITEM.finditer(paragraph) if fields.issuperset(match[1].split(", "))]
            ends = [*(match.start() for match in items[1:]), len(paragraph)]
            for match, end in zip(items, ends, strict=False):
                found.update(dict.fromkeys(match[1].split(", "), paragraph[match.end() : end].rstrip(" ;")))
    return found


def summary(kind: type) -> str:
    """The first sentence of a class's docstring."""
    return plain(first_sentence(next(iter(_paragraphs(kind)), "")))


def first_sentence(text: str) -> str:
    """Up to the first full stop that a new sentence follows; the abbreviations of the house end none."""
    return re.split(r"(?<=[^.\s][^.\s]\.)\s(?=[A-Z`\"])", text, maxsplit=1)[0].removesuffix(".")


def plain(text: str) -> str:
    """In the words of the command line: no code quotes, null for None."""
    return re.sub(r"\bNone\b", "null", text.replace("``", ""))


def _paragraphs(kind: type) -> list[str]:
    text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]


# -- types in words --------------------------------------------------------------------------------------------------

_TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false", Any: "value"}
_SIGNS = {"above": ">", "least": "≥", "below": "<", "most": "≤"}


def kind_of(hint: Any, metadata: Mapping[str, Any]) -> str:
    """``number > 0, < 1``, ``one of fp32, bf16``, ``list of whole numbers ≥ 1, or null``."""
    optional = types.NoneType in typing.get_args(hint)
    inner = typing.get_args(hint)[0] if optional else hint
    of_list = typing.get_origin(inner) is list
    word = f"list of {_TYPES[typing.get_args(inner)[0]]}s" if of_list else _TYPES[inner]
    if metadata.get("options"):
        word = f"one of {', '.join(metadata['options'])}"
    limits = ", ".join(f"{_SIGNS[name]} {limit:g}" for name, limit in metadata.get("limits", {}).items())
    return f"{word} {limits}".rstrip() + (", or null" if optional else "")


def shown(value: Any, comma: str = ", ") -> str:
    """A default as one would type it."""
    if isinstance(value, (list, tuple)):
        return "[" + comma.join(shown(one, comma) for one in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)
