"""Tiles in space: evenly spread, few, with seams that move from step to step and weights that add up to one.

Along each axis neighbouring tiles overlap; somewhere inside the overlap one fades into the other (a raised cosine).
Weights of all tiles at a point sum to 1, so blending needs no second accumulator, and the fade's place is drawn anew at
every step: seams do not add up in one place, without a tile more than the arithmetic asks for.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toolkit.runs.seeds import derive


@dataclass(frozen=True)
class Span:
    """One tile along one axis: [start, start + len(weight)), and its weight at every position."""

    start: int
    weight: tuple[float, ...]

    @property
    def stop(self) -> int:
        return self.start + len(self.weight)


@dataclass(frozen=True)
class Tile:
    """A rectangle of latents and its weights."""

    rows: Span
    columns: Span

    def weight(self) -> Tensor:
        """float64 (rows, columns)."""
        rows, columns = (torch.tensor(span.weight, dtype=torch.float64) for span in (self.rows, self.columns))
        return torch.outer(rows, columns)


def count(length: int, tile: int, overlap: float) -> int:
    """Tiles along an axis: the fewest that cover it with at least ``overlap`` of a tile in common."""
    if length <= tile:
        return 1
    return math.ceil((length - tile) / max(1, math.floor(tile * (1 - overlap)))) + 1


def spans(length: int, tile: int, overlap: float, seed: int | None = None) -> list[Span]:
    """Tiles along one axis. ``seed`` draws the places of the fades; None puts them into the middle of the overlaps."""
    if length <= tile:
        return [Span(0, (1.0,) * length)]
    num = count(length, tile, overlap)
    starts = [round(index * (length - tile) / (num - 1)) for index in range(num)]
    nearest = min(after - here for here, after in itertools.pairwise(starts))
    weights = np.ones((num, tile))
    rng = np.random.default_rng(seed)
    faded = 0  # where three tiles meet, a fade begins only after the one before it
    for index, (here, after) in enumerate(itertools.pairwise(starts)):
        shared = here + tile - after
        width = min(shared, math.floor(tile * overlap) or 1, nearest)
        slack, least = shared - width, max(0, faded - after)
        place = max(least, slack // 2) if seed is None else int(rng.integers(least, slack + 1))
        faded = after + place + width
        fade = _fade(shared, place, width)
        weights[index, tile - shared :] *= 1 - fade
        weights[index + 1, :shared] *= fade
    return [Span(start, tuple(weight.tolist())) for start, weight in zip(starts, weights, strict=True)]


def _fade(length: int, place: int, width: int) -> np.ndarray:
    """0 before ``place``, 1 from ``place + width`` on, a raised cosine between."""
    position = (np.arange(length) - place + 0.5) / width
    return 0.5 - 0.5 * np.cos(math.pi * np.clip(position, 0, 1))


def grid(size: tuple[int, int], tile: tuple[int, int], overlap: float, seed: int | None = None) -> list[Tile]:
    """Tiles of a latent of ``size`` (rows, columns), row by row."""
    down, across = (
        spans(length, one, overlap, None if seed is None else derive(seed, axis) % 2**32)
        for axis, (length, one) in enumerate(zip(size, tile, strict=True))
    )
    return [Tile(rows, columns) for rows in down for columns in across]
