"""From scores to what a run leaves behind: the table, the curves, and how guidance compares along its scale.

A claim about guidance is about a frontier (distance against accuracy over w), never about one scale: ``frontier``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from toolkit.icg.columns import GIVEN, LABELS, PLAIN, Column
from toolkit.runs.table import Cell, Spread, Table

NAMES = {
    "frechet": "FD",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
    "clip": "CLIP score",
}


@dataclass
class Result:
    """What one column came to: scores per sampling seed, and its cost per image."""

    column: Column
    scores: list[dict[str, float]] = field(default_factory=list)
    calls: float = 0.0
    seconds: float = 0.0

    def mean(self, score: str) -> float | None:
        """Over sampling seeds; None where it was not measured."""
        values = [one[score] for one in self.scores if score in one]
        return math.fsum(values) / len(values) if values else None

    def spread(self, score: str) -> Cell:
        """Mean and deviation over sampling seeds; None where it was not measured."""
        values = [one[score] for one in self.scores if score in one]
        return Spread.of(values) if values else None


def headline(results: Sequence[Result], floor: Mapping[str, float], title: str, note: str) -> Table:
    """One row per shown column, and what as many real images get."""
    shown = [one for one in results if one.column.shown]
    names = _measured(shown) or [name for name in NAMES if name != "clip"]
    rows: list[list[Cell]] = [
        [one.column.label, *(one.mean(name) for name in names), one.calls, _two_digits(one.seconds)] for one in shown
    ]
    if floor:
        rows.append(["real images", *(floor.get(name) for name in names), None, None])
    return Table(title, ["guidance", *(NAMES[name] for name in names), "calls", "s/image"], rows, note)


def _two_digits(seconds: float) -> float:
    return float(f"{seconds:.2g}")


def all_scores(results: Sequence[Result], note: str) -> Table:
    """Every column, those of the curve too, with the spread over sampling seeds."""
    names = _measured(results)
    rows: list[list[Cell]] = [[one.column.label, *(one.spread(name) for name in names)] for one in results]
    return Table("All scores", ["guidance", *(NAMES[name] for name in names)], rows, note)


def _measured(results: Sequence[Result]) -> list[str]:
    return [name for name in NAMES if any(one.mean(name) is not None for one in results)]


def metrics(results: Sequence[Result], floor: Mapping[str, float]) -> dict[str, float]:
    """Numbers for the record: ``KEY.SCORE``, ``sd.KEY.SCORE``, ``floor.SCORE``, ``best.NAME.*``, ``frontier.*``."""
    found: dict[str, float] = {f"floor.{name}": value for name, value in floor.items()}
    for one in results:
        for score in dict.fromkeys(name for scores in one.scores for name in scores):
            values = [scores[score] for scores in one.scores]
            found[f"{one.column.key}.{score}"] = Spread.of(values).mean
            if len(values) > 1:
                found[f"sd.{one.column.key}.{score}"] = Spread.of(values).sd
        found |= {f"{one.column.key}.calls": one.calls, f"{one.column.key}.seconds": one.seconds}
    return found | _best(results) | _frontiers(results)


def along_the_scale(results: Sequence[Result], name: str, score: str) -> list[tuple[float, float]]:
    """(w, score) of one method from no guidance up, without points that were not measured."""
    mine = [one for one in results if one.column.name == name]
    if not mine:
        return []
    start = "none" if mine[0].column.model in (PLAIN, GIVEN) else "none_dropping"
    points = [(1.0, one.mean(score)) for one in results if one.column.name == start]
    points += [(one.column.scale, one.mean(score)) for one in mine]
    return sorted((scale, value) for scale, value in points if value is not None)


def guided_names(results: Sequence[Result]) -> list[str]:
    """Names of the methods that have a scale, in the order of LABELS."""
    there = {one.column.name for one in results if one.column.guidance.method != "none"}
    return [name for name in LABELS if name in there]


def _best(results: Sequence[Result]) -> dict[str, float]:
    """The scale that the validation split chooses, and what it gets on the test split (``best.NAME.SCORE``)."""
    found: dict[str, float] = {}
    for name in guided_names(results):
        chosen = "frechet_valid" if along_the_scale(results, name, "frechet_valid") else "frechet"
        curve = along_the_scale(results, name, chosen)
        if len(curve) < 2:
            continue
        scale = min(curve, key=lambda point: point[1])[0]
        found[f"best.{name}.w"] = scale
        for score in NAMES:
            value = dict(along_the_scale(results, name, score)).get(scale)
            if value is not None:
                found[f"best.{name}.{score}"] = value
    return found


def _frontiers(results: Sequence[Result]) -> dict[str, float]:
    """``frontier.A_over_B``: how much larger A's distance is than B's at equal accuracy, as a factor."""
    names = guided_names(results)
    found = {}
    for first in names:
        for second in names:
            if first != second and (ratio := frontier_ratio(results, first, second)) is not None:
                found[f"frontier.{first}_over_{second}"] = ratio
    return found


def frontier_ratio(results: Sequence[Result], first: str, second: str, num_points: int = 50) -> float | None:
    """Geometric mean over the accuracies that both reach of distance(first) / distance(second).

    Between measured scales the logarithm of the distance is linear in accuracy. Where a curve reaches an accuracy
    twice its last visit is taken, as raising w further would. None where the curves share no accuracy.
    """
    curves = [_frontier(results, name) for name in (first, second)]
    if any(len(curve) < 2 for curve in curves):
        return None
    low, high = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    if high <= low:
        return None
    places = np.linspace(low, high, num_points)
    logs = [np.interp(places, [a for a, _ in curve], [d for _, d in curve]) for curve in curves]
    return float(np.exp((logs[0] - logs[1]).mean()))


def _frontier(results: Sequence[Result], name: str) -> list[tuple[float, float]]:
    """(accuracy, log distance) with accuracy increasing along the scale."""
    accuracy = dict(along_the_scale(results, name, "accuracy"))
    distance = dict(along_the_scale(results, name, "frechet"))
    points: list[tuple[float, float]] = []
    for scale in sorted(set(accuracy) & set(distance)):
        while points and points[-1][0] >= accuracy[scale]:
            points.pop()
        points.append((accuracy[scale], math.log(max(distance[scale], 1e-12))))
    return points
