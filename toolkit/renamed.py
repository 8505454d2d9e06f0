"""Config keys that had another name before: what they are called now, and how their values carry over.

One table for all that still speaks the old names: the words of a command line, a sweep or a resumed run, the
``run.json`` of an older run, and the ids of claims. docs/architecture.md lists the shared words.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from toolkit.errors import UserError


@dataclass(frozen=True)
class Renamed:
    """``new``: the key, or the group of keys, now.

    values: old value -> new value, where the values changed too. unit: the name of the conversion in ``UNITS``, where
    the unit did.
    """

    new: str
    values: Mapping[str, str] = field(default_factory=dict)
    unit: str = ""


UNITS = {  # of an old value and optim.batch_size
    "images_to_steps": lambda images, batch_size: images / batch_size,
    "steps_to_images": lambda steps, batch_size: steps * batch_size,
}
BATCH_SIZE = "optim.batch_size"

_SAMPLING = ("num_samples", "num_steps", "batch_size", "sigma_min", "sigma_max", "rho", "temperature")
_OPTIM = ("num_steps", "batch_size", "lr", "schedule", "grad_clip", "weight_decay", "ema_half_life_images")
_LOSS = ("label_drop", "p_mean", "p_std")

RENAMED: dict[str, dict[str, Renamed]] = {
    "train-disco": {"optim.warmup_images": Renamed("optim.warmup_steps", unit="images_to_steps")},
    "sample-icg": {
        **{key: Renamed(f"sampling.{key}") for key in _SAMPLING},
        **{f"train.{key}": Renamed(f"optim.{key}") for key in _OPTIM},
        **{f"train.{key}": Renamed(f"loss.{key}") for key in _LOSS},
    },
    "grow-llm": {"source": Renamed("model")},
    "train-ivideogpt": {
        "tokenizer_optim": Renamed("optim.tokenizer"),
        "transformer_optim": Renamed("optim.transformer"),
    },
    "enhance-video": {
        "optim.base": Renamed("init"),
        "optim.decay": Renamed("optim.schedule", values={"none": "constant", "cosine": "cosine"}),
        "optim.ema_half_life_steps": Renamed("optim.ema_half_life_images", unit="steps_to_images"),
        "augment.text_dropout": Renamed("augment.text_drop"),
    },
}


def words_now(command: str, words: list[str]) -> tuple[list[str], list[str]]:
    """``(words with the keys of now, one line per key that was renamed)``.

    Raises UserError where a value has no exact translation, or a key is given under both names.
    """
    found, notes = [], []
    for word in words:
        key, equals, value = word.partition("=")
        plus, old = key[: len(key) - len(key.lstrip("+"))], key.lstrip("+")
        if not equals or key.startswith("-"):
            found.append(word)
            continue
        match = _match(command, old)
        if match is None:
            _refuse_whole_group(command, old, word)
            found.append(word)
            continue
        new, entry = match
        if any(other.partition("=")[0].lstrip("+") == new for other in words):
            raise UserError(f"{old}, {new}: the same key under its old and its new name; give {new} alone")
        found.append(f"{plus}{new}={_value_now(word, new, entry, value)}")
        notes.append(f"{old} is now {new}")
    return found, list(dict.fromkeys(notes))


def name_now(command: str, key: str) -> str | None:
    """What ``key`` is called now; None where it was not renamed."""
    match = _match(command, key)
    return match[0] if match else None


def first_spelling(command: str, words: list[str]) -> list[str]:
    """``words`` with every key under the first name that it had: the same for old and new spellings of one meaning."""
    return [_first(command, word) for word in words]


def config_now(command: str, config: dict[str, Any]) -> dict[str, Any]:
    """The nested config of an older run under the keys of now; itself where it has no others.

    Raises KeyError where a conversion misses a value.
    """
    changes = list(_converted(command, config))
    found = copy.deepcopy(config) if changes else config  # a copy of every config doubles the time of `runs list`
    for old, new, value in changes:
        _take(found, old)
        _put(found, new, value)
    return found


def pinned(command: str, overrides: list[str], config: dict[str, Any]) -> list[str]:
    """Words that keep what a run of ``config`` had where they mean something else now.

    A preset that says a warm-up in steps, once in images, means another one with another batch size than its own. The
    default of enhance-video was its small diffusion model, which has a preset of its own now.
    """
    keys = {name_now(command, key) or key for key in (word.partition("=")[0] for word in overrides)}
    units = [entry.new for entry in RENAMED.get(command, {}).values() if entry.unit and entry.new not in keys]
    found = [f"{key}={_get(config, key)}" for key in units if BATCH_SIZE in keys and _has(config, key)]
    if command == "enhance-video" and not keys & {"experiment", "keys"} and config.get("keys", "network") == "network":
        found.append("experiment=enhance_small")
    return found


def _converted(command: str, config: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """``(old key, new key, new value)`` of every renamed key that ``config`` has."""
    for old, entry in RENAMED.get(command, {}).items():
        if not _has(config, old):
            continue
        value = _get(config, old)
        if entry.unit:
            value = UNITS[entry.unit](value, _get(config, BATCH_SIZE))
        yield old, entry.new, entry.values.get(value, value) if isinstance(value, str) else value


def _match(command: str, key: str) -> tuple[str, Renamed] | None:
    """The new key and the entry of an old one, which may lie in a renamed group."""
    for old, entry in RENAMED.get(command, {}).items():
        if key == old or key.startswith(f"{old}."):
            return entry.new + key.removeprefix(old), entry
    return None


def _refuse_whole_group(command: str, key: str, word: str) -> None:
    inside = {old: entry.new for old, entry in RENAMED.get(command, {}).items() if old.startswith(f"{key}.")}
    named = [old for old in inside if re.search(rf"\b{re.escape(old.removeprefix(key)[1:])}\s*:", word)]
    if named:
        said = ", ".join(f"{old} is now {inside[old]}" for old in named)
        raise UserError(f"{word}: {said}; give these keys one by one")


def _value_now(word: str, new: str, entry: Renamed, value: str) -> str:
    """The text of a value, or of a sweep over several. Raises UserError where it has no translation."""
    if not entry.values and not entry.unit:
        return value
    found = [_one_value(one.strip(), entry) for one in value.split(",")]
    if None in found:
        hint = f"is now {new}, {' or '.join(entry.values.values())}" if entry.values else _UNIT_HINTS[entry.unit]
        raise UserError(f"{word}: {hint.format(new=new)}")
    return ",".join(str(one) for one in found)


_UNIT_HINTS = {
    "images_to_steps": f"is now {{new}}, in steps (images / {BATCH_SIZE})",
    "steps_to_images": f"is now {{new}}, in images (steps x {BATCH_SIZE})",
}


def _one_value(value: str, entry: Renamed) -> str | None:
    if entry.values:
        return entry.values.get(value)
    try:
        number = float(value.replace("_", ""))
    except ValueError:
        return None
    return f"'${{{entry.unit}:{number:.17g},${{{BATCH_SIZE}}}}}'"  # resolved when the batch size is known


def _first(command: str, word: str) -> str:
    for old, entry in RENAMED.get(command, {}).items():
        key, equals, value = word.partition("=")
        if equals and not entry.unit and (key == entry.new or key.startswith(f"{entry.new}.")):
            back = {new: before for before, new in entry.values.items()}
            return f"{old}{key.removeprefix(entry.new)}={back.get(value, value)}"
    return word


def _has(config: Any, key: str) -> bool:
    group, _, rest = key.partition(".")
    return isinstance(config, dict) and group in config and (not rest or _has(config[group], rest))


def _get(config: Any, key: str) -> Any:
    """The value at a dotted key. Raises KeyError where there is none."""
    for part in key.split("."):
        config = config[part]
    return config


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    *groups, name = key.split(".")
    for group in groups:
        config = config.setdefault(group, {})
    config[name] = value


def _take(config: dict[str, Any], key: str) -> None:
    """Remove a key, and its group where nothing is left in it."""
    group, _, rest = key.partition(".")
    if rest:
        _take(config[group], rest)
    if not rest or not config[group]:
        del config[group]
