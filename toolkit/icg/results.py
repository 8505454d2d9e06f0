"""From scores to the results of a run: tables, metrics, curves, and methods compared along their guidance scale.

A claim about guidance is about a frontier (distance against accuracy over w), never about one scale: ``frontier``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.icg.columns import CONTROLS, GIVEN, MODELS, PLAIN, Column, label_of
from toolkit.icg.methods import METHODS
from toolkit.icg.sources.base import Source
from toolkit.runs.record import Run
from toolkit.show import figures
from toolkit.show.table import Cell, Spread, Table

NAMES = {
    "frechet": "FD",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
    "clip": "CLIP score",
}

MOST_ROWS = 24  # of the grid
SMALL_PX = 64  # images below this edge are small
ACROSS = {True: 20, False: 8}  # samples side by side: small images, large ones
MOST_LETTERS = 60  # of a prompt under the grid
WRONG = torch.tensor([0.84, -0.26, -1.0]).view(3, 1, 1)  # vermilion of the figures' palette, in [-1, 1]


@dataclass
class Result:
    """The result of one column: scores per sampling seed, and its cost per image."""

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
    names = _measured(shown)
    rows: list[list[Cell]] = [
        [one.column.label, *(one.mean(name) for name in names), one.calls, _two_digits(one.seconds)] for one in shown
    ]
    if floor:
        rows.append(["real images", *(floor.get(name) for name in names), None, None])
    return Table(title, ["guidance", *(NAMES[name] for name in names), "calls", "s/image"], rows, note)


def prompts_table(source: Source, num: int) -> Table:
    """The prompt of every sample, in the order of the grid and of the files."""
    return Table("Prompts", ["sample", "prompt"], [[number, source.caption_of(number)] for number in range(num)], "")


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
    """(w, score) of one method from no guidance up, without points that were not measured.

    Two methods together have no such beginning: at w = 1 of the first the second still guides.
    """
    mine = [one for one in results if one.column.name == name]
    if not mine:
        return []
    start = "none" if mine[0].column.model in (PLAIN, GIVEN) else "none_dropping"
    is_single = mine[0].column.guidance.second is None
    points = [(1.0, one.mean(score)) for one in results if is_single and one.column.name == start]
    points += [(one.column.scale, one.mean(score)) for one in mine]
    return sorted((scale, value) for scale, value in points if value is not None)


def guided_names(results: Sequence[Result]) -> list[str]:
    """Names of the methods that have a scale, in the order of METHODS."""
    there = {one.column.name for one in results if one.column.guidance.guides}
    return [name for name in [*METHODS, *CONTROLS] if name in there]


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


def draw_grid(
    run: Run, shown: Sequence[tuple[Column, Tensor]], source: Source, predicted: Mapping[str, Tensor | None]
) -> None:
    """One row per column of the comparison, one sample beside the next, every sample from the same noise in all rows.

    shown: images float32 (n, C, H, W). predicted: column key -> the classifier's class int64 (n,), to frame what it
    reads as another class than the one asked for.
    """
    shown = shown[:MOST_ROWS]
    num = min(ACROSS[shown[0][1].shape[-1] < SMALL_PX], min(len(images) for _, images in shown))
    rows = []
    for column, images in shown:
        classes = predicted.get(column.key)
        wrong = [classes is not None and int(classes[i]) != source.label_of(i) for i in range(num)]
        rows += [_framed(image, is_wrong, bool(predicted)) for image, is_wrong in zip(images[:num], wrong, strict=True)]
    captions = [source.caption_of(number) for number in range(num)]
    short = captions if source.prompts is None else [str(number + 1) for number in range(num)]
    short = short if all(len(one) <= 10 for one in short) else []
    prompts = [f" {number}: {one[:MOST_LETTERS]}." for number, one in enumerate(captions, 1) if source.prompts]
    frames = "; framed: the classifier reads another class" if predicted else ""
    figures.image_grid(
        run.path("samples", "grid.png"), torch.stack(rows), columns=num, column_labels=short,
        row_labels=[column.label for column, _ in shown],
        caption=f"Same noise in every column, same condition; one row per guidance{frames}."
        + "".join(prompts),
    )  # fmt: skip


def _framed(image: Tensor, is_wrong: bool, has_frames: bool) -> Tensor:
    """Colour (3, H, W), with a margin of one pixel where any image has a frame."""
    colour = image.expand(3, *image.shape[1:])
    if not has_frames:
        return colour
    padded = F.pad(colour, (1, 1, 1, 1), value=1.0)
    if is_wrong:
        edge = torch.ones(padded.shape[1:], dtype=torch.bool)
        edge[1:-1, 1:-1] = False
        padded = torch.where(edge, WRONG, padded)
    return padded


def draw_points(run: Run, shown: Sequence[tuple[Column, Tensor]], source: Source) -> None:
    """Samples in the plane, one figure per column."""
    limit = max(float(points.abs().max()) for _, points in shown)
    for column, points in shown:
        codes = None if source.labels is None else [source.label_of(number) for number in range(len(points))]
        title = column.label
        figures.scatter(run.path("samples", f"{column.key}.png"), points, codes, title=title, limit=limit)


def draw_curves(run: Run, results: Sequence[Result], floor: Mapping[str, float]) -> None:
    """Each score over the scale, and the frontier: distance against accuracy."""
    names = [name for name in guided_names(results) if len(along_the_scale(results, name, "frechet")) > 1]
    labels = {name: _curve_label(results, name) for name in names}
    for score, text in NAMES.items():
        lines: dict[str, tuple[Any, Any]] = {}
        for name in names:
            points = along_the_scale(results, name, score)
            if len(points) > 1:
                lines[labels[name]] = ([w for w, _ in points], [value for _, value in points])
        if not lines:
            continue
        if score in floor:
            ends = [min(min(x) for x, _ in lines.values()), max(max(x) for x, _ in lines.values())]
            lines["real images"] = (ends, [floor[score]] * 2)
        title = "Fréchet distance" if score == "frechet" else text
        figures.curves(
            run.path("figures", f"{score}.png"), lines, xlabel="guidance scale w (1: none)", ylabel=title,
            logy=score == "frechet", caption=f"{title[0].upper()}{title[1:]} over the guidance scale.",
        )  # fmt: skip
    _draw_frontier(run, results, labels)


def _draw_frontier(run: Run, results: Sequence[Result], labels: Mapping[str, str]) -> None:
    lines = {}
    for name, label in labels.items():
        accuracy, distance = (dict(along_the_scale(results, name, score)) for score in ("accuracy", "frechet"))
        scales = sorted(set(accuracy) & set(distance))
        if len(scales) > 1:
            lines[label] = ([accuracy[w] for w in scales], [distance[w] for w in scales])
    if lines:
        figures.curves(
            run.path("figures", "frontier.png"), lines, xlabel="share of samples that show the class asked for",
            ylabel="Fréchet distance", logy=True, caption="Distance against accuracy, along the scale from 1 up.",
        )  # fmt: skip


def _curve_label(results: Sequence[Result], name: str) -> str:
    model = MODELS[next(one.column.model for one in results if one.column.name == name)]
    return f"{label_of(name)} ({model})" if model else label_of(name)
