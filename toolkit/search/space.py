"""What a search may choose: the words of a command that sweep, in Hydra's own grammar."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from toolkit.configs import SEARCHPATH
from toolkit.errors import UserError, brief


@dataclass(frozen=True)
class Space:
    """fixed: words that every trial has. distributions: of Optuna, by key."""

    fixed: list[str]
    distributions: dict[str, Any]


def parse(words: list[str]) -> Space:
    """Words; those with ``interval(1e-4,1e-2)``, ``tag(log,interval(...))``, ``range(1,9)``, ``a,b`` are searched.

    ``int(interval(1,8))`` gives whole numbers. Raises UserError for what is no word, for flags, for a folder of
    the trials' own, and where nothing is to be searched.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    fixed, distributions = [], {}
    for word in words:
        if word.startswith("-"):
            raise UserError(f"{word}: a search takes KEY=VALUE words alone")
        if word.startswith("hydra.") and not word.startswith(SEARCHPATH):
            raise UserError(f"{word}: a search has folders of its own; use --folder")
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException as error:
            raise UserError(f"{word}: {brief(error, 200)}") from None
        if override.is_sweep_override():
            distributions[override.get_key_element()] = _distribution(word, override)
        else:
            fixed.append(word)
    if not distributions:
        raise UserError("nothing to search: give a key several values, as in 'optim.lr=tag(log,interval(1e-4,1e-2))'")
    return Space(fixed, distributions)


def _distribution(word: str, override: Any) -> Any:
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    is_log = "log" in getattr(value, "tags", set())
    try:
        if isinstance(value, IntervalSweep):
            low: Any = value.start
            high: Any = value.end
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError("both ends must be finite numbers")
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=is_log)
            return FloatDistribution(low, high, log=is_log)
        if isinstance(value, RangeSweep):
            ends: Any = (value.start, value.stop, value.step)
            if all(isinstance(end, int) for end in ends):
                start, stop, step = ends
                return IntDistribution(start, range(start, stop, step)[-1], step=step)
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, IndexError) as error:
        raise UserError(f"{word}: {error}") from None
