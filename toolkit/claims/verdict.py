"""From metrics to verdicts: a claim is decided by the confidence interval over seeds, never by a single number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.claims.claims import Claim, Statistic
from toolkit.errors import did_you_mean
from toolkit.metrics.stats import summary

LEAST_SEEDS = 3  # fewer never decide a claim
CONFIDENCE = 0.95


Metrics = dict[int, dict[str, dict[str, float]]]  # {seed: {run: {key: value}}}


class MissingMetric(Exception):
    """A run finished without a metric that a claim or a figure asks for."""


@dataclass(frozen=True)
class Verdict:
    """What was found: centre, interval and n over seeds, and in words whether the claim holds."""

    verdict: str
    center: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0


def lookup(metrics: Metrics, seed: int, run: str, key: str) -> float:
    """One metric of one run. Raises MissingMetric naming run, seed and key."""
    found = metrics[seed].get(run, {})
    if key not in found:
        raise MissingMetric(f"{run} seed={seed} has no metric '{key}'; {did_you_mean(key, found)}".rstrip("; "))
    return found[key]


def values_by_seed(statistic: Statistic, metrics: Metrics) -> dict[int, float]:
    """The statistic of every seed; nan where a ratio divides by zero. Raises MissingMetric."""
    values = {}
    for seed in metrics:
        first, *rest = [lookup(metrics, seed, run, key) for run, key in statistic.terms]
        if statistic.kind == "ratio":
            values[seed] = first / rest[0] if rest[0] else math.nan
        else:
            values[seed] = first - rest[0] if statistic.kind == "difference" else first
    return values


def judge_claim(claim: Claim, values: Sequence[float], smoke: bool = False) -> Verdict:
    """``judge`` by what the claim says of itself: arithmetic is exact, a coarsely read metric has a wider interval."""
    if claim.varies == "nothing" and not smoke:
        return judge_exact(values, claim.holds)
    return judge(claim.statistic.kind, values, claim.holds, smoke, claim.resolution)


def judge_exact(values: Sequence[float], holds: dict[str, float]) -> Verdict:
    """A number that nothing varies: one is enough, and several must be the same."""
    if not values or len(set(values)) > 1 or not math.isfinite(values[0]):
        return Verdict("inconclusive (not one number)", n=len(values))
    return Verdict(_decide(values[0], values[0], holds), values[0], n=1)


def judge(
    kind: str, values: Sequence[float], holds: dict[str, float], smoke: bool = False, resolution: float = 0.0
) -> Verdict:
    """Decide from the 95 % t interval of ``values`` (one per seed; ratios in log space) against the threshold.

    Holds when the whole interval satisfies it, does not hold when none of it does, else inconclusive; always
    inconclusive below three seeds. ``smoke`` compares the centre alone and says so: that is no evidence. A metric that
    is read at points ``resolution`` apart is known no better: the interval is wider by that, both ways.
    """
    n = len(values)
    if not n or not all(map(math.isfinite, values)):
        return Verdict("inconclusive (a value is not finite)" if n else "inconclusive (n=0)", n=n)
    if kind == "ratio" and min(values) <= 0:
        return Verdict("inconclusive (a ratio is not positive)", n=n)
    found = summary([math.log(value) for value in values] if kind == "ratio" else values, CONFIDENCE)
    center, low, high = found.mean, found.low, found.high
    if kind == "ratio":
        center, low, high = _exp(center), _exp(low), _exp(high)
    low, high = low - resolution, high + resolution
    if smoke:
        return Verdict(f"smoke: {_decide(center, center, holds)}", center, low, high, n)
    words = _decide(low, high, holds) if n >= LEAST_SEEDS else f"inconclusive (n={n})"
    return Verdict(words, center, low, high, n)


def _exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)  # two seeds far apart: the bound may overflow


def _decide(low: float, high: float, holds: dict[str, float]) -> str:
    least, most = holds.get(">=", -math.inf), holds.get("<=", math.inf)
    if least <= low and high <= most:
        return "holds"
    return "does not hold" if high < least or low > most else "inconclusive"
