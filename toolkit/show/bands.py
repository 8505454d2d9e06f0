"""Curves of several seeds as one: mean and sample standard deviation at every step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np

from toolkit.show.charts import Point, Points

MOST_STEPS = 2000  # of a mean; of more an even choice


def average(runs: Sequence[Points]) -> list[Point]:
    """(step, mean, sample standard deviation, n) over ``runs`` at every step that one of them logged.

    A run that did not log a step counts there with the straight line between its neighbours; before its first and
    after its last value, and where one of the neighbours is not finite, it does not count: n says how many did. Where
    n is 1 the deviation is nan, where it is 0 the mean is.
    """
    tables = [np.array(sorted(dict(points).items()), float).reshape(-1, 2) for points in runs]  # of a step the newest
    steps = np.unique(np.concatenate([table[:, 0] for table in tables]))
    if len(steps) > MOST_STEPS:
        steps = steps[np.linspace(0, len(steps) - 1, MOST_STEPS).round().astype(int)]
    values = np.stack([_at(steps, table) for table in tables])
    values[~np.isfinite(values)] = math.nan
    counts = np.isfinite(values).sum(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # steps that no run, or one run, counts at
        means, deviations = np.nanmean(values, 0), np.nanstd(values, 0, ddof=1)
    return list(zip(steps.tolist(), means.tolist(), deviations.tolist(), counts.tolist(), strict=True))


def _at(steps: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The values of one run (rows of step and value) at ``steps``; nan outside of its own."""
    if not len(table):
        return np.full(len(steps), math.nan)
    own, values = table.T
    found = np.interp(steps, own, values, left=math.nan, right=math.nan)
    logged = np.isin(steps, own)
    found[logged] = values[np.searchsorted(own, steps[logged])]  # a neighbour that is not finite does not reach here
    return found
