"""Reading run folders: whatever run.json and metrics.jsonl hold, the readers get the shape they expect or one line."""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit import renamed
from toolkit.errors import UserError

MOST_BYTES = 64 * 2**20  # of run.json: a record is a few KiB
MOST_NESTED = 32  # mappings and lists within one another
_WORDS, _MAPPING = "a text", "a mapping"


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _is_stages(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, dict) and _is_stage(entry) for entry in value.values())


def _is_stage(entry: dict[str, Any]) -> bool:
    step, time_s = entry.get("step", 0), entry.get("wall_time_s", 0.0)
    return _is_text(entry.get("status", "")) and _is_number(step) and _is_number(time_s)


_SHAPE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "command": (_is_text, _WORDS),
    "status": (_is_text, _WORDS),
    "config": (lambda value: isinstance(value, dict), _MAPPING),
    "overrides": (lambda value: isinstance(value, list) and all(map(_is_text, value)), "a list of texts"),
    "stages": (_is_stages, "a mapping of stages, each with status, step and wall_time_s"),
    "metrics": (
        lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
        "a mapping to numbers",
    ),
    "wall_time_s": (_is_number, "a number"),
    "peak_memory_mib": (_is_number, "a number"),
    "seed": (_optional(lambda value: type(value) is int and _is_number(value)), "a whole number"),
    "machine": (lambda value: isinstance(value, dict), _MAPPING),
    "versions": (lambda value: isinstance(value, dict), _MAPPING),
    **dict.fromkeys(
        ("error", "started", "ended", "device", "config_hash", "git_commit"), (_optional(_is_text), "a text or null")
    ),
}
_REQUIRED = ("command", "status", "config")
_DEFAULTS: dict[str, Any] = {"overrides": [], "stages": {}, "metrics": {}, "wall_time_s": 0.0, "peak_memory_mib": 0.0}


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """The record of a run folder, None where there is none; its config under the keys of now.

    What it holds has the types that :class:`toolkit.runs.record.Run` writes; keys that are not there have defaults.
    Raises UserError naming run.json and what is wrong with it.
    """
    path = Path(folder) / "run.json"
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        record = json.loads(path.read_bytes())
        _check(record)
        record["config"] = _config_now(record)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        why = str(error) if type(error) is ValueError else "it is not JSON"
        advice = "move the folder away or use another hydra.run.dir"
        raise UserError(f"{path}: not a run record, or a damaged one: {why}; {advice}") from None
    return {**_DEFAULTS, **record}


def _check(record: Any) -> None:
    """Raises ValueError saying what is wrong."""
    if not isinstance(record, dict):
        raise ValueError("it is not a mapping")
    for key in _REQUIRED:
        if key not in record:
            raise ValueError(f"'{key}' is missing")
    for key, (is_right, expected) in _SHAPE.items():
        if key in record and not is_right(record[key]):
            raise ValueError(f"'{key}' is not {expected}")
    if _is_deep(record, MOST_NESTED):
        raise ValueError(f"it is nested more than {MOST_NESTED} times")


def _config_now(record: dict[str, Any]) -> dict[str, Any]:
    try:
        return renamed.config_now(record["command"], record["config"])
    except (LookupError, TypeError, ArithmeticError, AttributeError):
        raise ValueError("'config' has keys of an older version whose values do not fit") from None


def _is_deep(value: dict[str, Any] | list[Any], left: int) -> bool:
    items = value.values() if isinstance(value, dict) else value
    if left == 0:
        return bool(value)
    return any(_is_deep(item, left - 1) for item in items if isinstance(item, (dict, list)))


def metrics_line(line: str) -> dict[str, Any] | None:
    """One line of metrics.jsonl: ``{"stage": text, "step": number, name: number ...}``; None for a damaged one."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not _is_text(entry.get("stage")):
        return None
    numbers = {name: value for name, value in entry.items() if name != "stage" and _is_number(value)}
    return {"stage": entry["stage"], **numbers} if math.isfinite(numbers.get("step", math.nan)) else None


def is_locked(folder: str | Path) -> bool:
    """Whether a living process holds the run folder."""
    path = Path(folder) / "run.lock"
    try:
        with open(path, encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or it may not be read
        return False
    return False
