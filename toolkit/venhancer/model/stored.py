"""Settings that stand in the files of a saved pipeline, which somebody may have written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.errors import UserError


@dataclass(frozen=True)
class Rule:
    """What a setting may be: ``expected`` in words, ``fits`` of a value."""

    expected: str
    fits: Callable[[Any], bool]


FLAG = Rule("true or false", lambda value: isinstance(value, bool))
POSITIVE = Rule("a number above 0", lambda value: type(value) in (int, float) and 0 < value < math.inf)
POSITIVE_OR_NULL = Rule("null or a number above 0", lambda value: value is None or POSITIVE.fits(value))


def one_of(*known: str) -> Rule:
    """One of some words."""
    return Rule(f"one of {', '.join(known)}", lambda value: value in known)


def whole(least: int, most: int = 2**20) -> Rule:
    """A whole number from ``least`` to ``most``."""
    fits = lambda value: type(value) is int and least <= value <= most  # noqa: E731
    return Rule(f"a whole number from {least} to {most}", fits)


def check_stored(settings: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Raises UserError naming the first of ``settings`` that its rule refuses."""
    for name, rule in rules.items():
        if not rule.fits(settings[name]):
            raise UserError(f"{name} is {settings[name]!r}; expected {rule.expected}")
