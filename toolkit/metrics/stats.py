"""Means, spreads and confidence intervals over seeds: what verdicts on claims are made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Mean of ``n`` values, their sample standard deviation, and the confidence interval [low, high] of the mean.

    With one value ``sd`` is 0 and the interval unbounded: one seed says nothing of the spread.
    """

    mean: float
    sd: float
    n: int
    low: float
    high: float

    def below(self, limit: float) -> bool:
        """Whether the whole interval lies under ``limit``."""
        return self.high < limit

    def above(self, limit: float) -> bool:
        """Whether the whole interval lies over ``limit``."""
        return self.low > limit


def summary(values: Sequence[float], confidence: float = 0.95) -> Summary:
    """Student's t interval of the mean of ``values``; ValueError when there are none or one is not finite."""
    n = len(values)
    if n == 0 or not all(math.isfinite(value) for value in values):
        raise ValueError(f"cannot summarise {list(values)}: need finite values")
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(mean, 0.0, 1, -math.inf, math.inf)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = _t_quantile(n - 1, confidence) * sd / math.sqrt(n)
    return Summary(mean, sd, n, mean - half, mean + half)


def difference(a: Sequence[float], b: Sequence[float], paired: bool = True, confidence: float = 0.95) -> Summary:
    """Mean of a - b with its interval: per seed when ``paired``, else Welch's for independent groups (``n`` is the
    smaller one, ``sd`` that of a single difference)."""
    if paired:
        _same_length(a, b)
        return summary([x - y for x, y in zip(a, b, strict=True)], confidence)
    first, second = summary(a), summary(b)
    gap = first.mean - second.mean
    n = min(first.n, second.n)
    if n == 1:
        return Summary(gap, 0.0, 1, -math.inf, math.inf)
    parts = (first.sd**2 / first.n, second.sd**2 / second.n)
    sd = math.hypot(first.sd, second.sd)
    if sum(parts) == 0:
        return Summary(gap, 0.0, n, gap, gap)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (first.n - 1) + parts[1] ** 2 / (second.n - 1))
    half = _t_quantile(freedom, confidence) * math.sqrt(sum(parts))
    return Summary(gap, sd, n, gap - half, gap + half)


def ratio(a: Sequence[float], b: Sequence[float], paired: bool = True, confidence: float = 0.95) -> Summary:
    """Geometric mean of a / b with its interval, through logarithms; ``sd`` is that of the log ratio.

    Raises ValueError unless all values are positive.
    """
    if not all(value > 0 for value in (*a, *b)):
        raise ValueError("ratios need positive values")
    logs = difference([math.log(x) for x in a], [math.log(y) for y in b], paired, confidence)
    return Summary(math.exp(logs.mean), logs.sd, logs.n, _exp(logs.low), _exp(logs.high))


def _exp(value: float) -> float:
    return math.inf if value == math.inf else math.exp(value)


def _same_length(a: Sequence[float], b: Sequence[float]) -> None:
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values cannot be paired")


def _t_quantile(freedom: float, confidence: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))
