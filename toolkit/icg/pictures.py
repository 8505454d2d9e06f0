"""Pictures of a run: the comparison grid, single images, and the curves over the guidance scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from toolkit.icg.columns import LABELS, MODELS, Column
from toolkit.icg.results import NAMES, Result, along_the_scale, guided_names
from toolkit.icg.source import Source
from toolkit.runs import figures
from toolkit.runs.record import Run

MOST_ROWS = 24
SMALL_PX = 64
ACROSS = {True: 20, False: 8}  # samples side by side: small images, large ones
WRONG = torch.tensor([0.84, -0.26, -1.0]).view(3, 1, 1)  # vermilion, of the figures' palette


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
    captions = [source.caption_of(number) for number in range(num)] if source.prompts is None else []
    short = captions if all(len(one) <= 10 for one in captions) else []
    said = "; framed: the classifier reads another class" if predicted else ""
    figures.image_grid(
        run.path("samples", "grid.png"), torch.stack(rows), columns=num, column_labels=short,
        row_labels=[column.label for column, _ in shown],
        caption=f"Same noise in every column, same condition; one row per guidance{said}.",
    )  # fmt: skip


def _framed(image: Tensor, is_wrong: bool, has_frames: bool) -> Tensor:
    """Colour (3, H, W), with a margin of one pixel where any image has a frame."""
    colour = image.expand(3, *image.shape[1:])
    if not has_frames:
        return colour
    padded = functional.pad(colour, (1, 1, 1, 1), value=1.0)
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


def write_images(run: Run, column: Column, images: Tensor) -> None:
    """One PNG per image: images/KEY/00000.png."""
    from PIL import Image

    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for number, picture in enumerate(pixels):
        path = run.path("images", column.key, f"{number:05d}.png")
        Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(path)


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
    return f"{LABELS[name]} ({model})" if model else LABELS[name]
