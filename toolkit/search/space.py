"""What a search may choose: the words of a command that sweep, in Hydra's own grammar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toolkit.errors import UserError


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
        if word.startswith("hydra."):
            raise UserError(f"{word}: a search has folders of its own; use --folder")
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException as error:
            raise UserError(f"{word}: {' '.join(str(error).split())[:200]}") from None
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
            ends = value.start, value.end
            if all(isinstance(end, int) for end in ends):
                return IntDistribution(*ends, log=is_log)
            return FloatDistribution(*ends, log=is_log)
        if isinstance(value, RangeSweep) and all(isinstance(x, int) for x in (value.start, value.stop, value.step)):
            return IntDistribution(value.start, list(value.range())[-1], step=value.step)
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, IndexError) as error:
        raise UserError(f"{word}: {error}") from None
