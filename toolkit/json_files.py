"""JSON files that somebody else may have written: the object that is in one, or one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toolkit.errors import UserError

MOST_BYTES = 2**26


def read_object(path: str | Path, **kinds: type) -> dict[str, Any]:
    """The JSON object in ``path``, in which ``kinds`` names keys that must be there and what their values are.

    Raises UserError naming the file where it holds something else, more than ``MOST_BYTES`` or deeper nesting than
    Python reads; OSError where it cannot be opened.
    """
    path = Path(path)
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path}: has {path.stat().st_size} bytes; at most {MOST_BYTES} are expected of such a file")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else f"{error}"
        raise UserError(f"{path}: damaged, or no JSON ({why})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(found).__name__}")
    for key, kind in kinds.items():
        if not _is(found.get(key), kind):
            raise UserError(f"{path}: '{key}' is missing or not of type {kind.__name__}")
    return found


def _is(value: Any, kind: type) -> bool:
    """A whole number is a float too; true and false are numbers of no kind."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
