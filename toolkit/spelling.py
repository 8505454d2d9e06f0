"""Python keys and values as the words of a command line, in Hydra's grammar. Imports only the standard library."""

from __future__ import annotations

import numbers
import re
from collections.abc import Mapping
from typing import Any


def words(keys: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Keys and Python values as overrides; a mapping stands for the keys below: ``{"optim": {"lr": 0.1}}``."""
    found = []
    for key, value in keys.items():
        below = isinstance(value, Mapping)
        found += words(value, f"{prefix}{key}.") if below else [f"{prefix}{key}={spelled(value)}"]
    return found


def spelled(value: Any) -> str:
    """A Python value as Hydra's grammar spells it; text in quotes where it could be read as something else."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        return repr(float(value))
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(spelled, value))}]"
    text = str(value)
    if re.fullmatch(r"[A-Za-z0-9_./+-]+", text) and not _reads_as_another_type(text):
        return text
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def _reads_as_another_type(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() in ("null", "true", "false")
    return True
