"""From an upscaler of whole factors to a frame of any size: tiles, a second pass, and the resize to what was asked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from toolkit.venhancer.clips.classic import resize
from toolkit.venhancer.engine.tiles import Tile, grid
from toolkit.venhancer.keys import Upscaler

TILE_PX = 256  # of the input, unless windows.* say otherwise
OVERLAP_PX = 32  # of neighbouring tiles, at least: more than most networks look around a pixel


def enlarge_to(upscaler: Upscaler, pixels: np.ndarray, width: int, height: int, tile: tuple[int, int]) -> np.ndarray:
    """uint8 RGB (h, w, 3) at ``width`` x ``height``.

    A frame that has that size stays as it is. Beyond the upscaler's factor it is applied twice: what comes first is
    brought to the size from which the second reaches the one asked for. ``tile``: rows and columns of the input.
    """
    while pixels.shape[:2] != (height, width):
        scale = max(height / pixels.shape[0], width / pixels.shape[1])
        if scale <= 1 or upscaler.factor == 1:
            return resize(pixels, width, height)
        pixels = enlarge_in_tiles(upscaler, pixels, tile)
        if scale > upscaler.factor + 1e-3:
            left = (math.ceil(width / upscaler.factor), math.ceil(height / upscaler.factor))
            small_enough = left[0] <= pixels.shape[1] and left[1] <= pixels.shape[0]
            pixels = resize(pixels, *left) if small_enough else pixels
        else:
            return resize(pixels, width, height)
    return pixels


def enlarge_in_tiles(upscaler: Upscaler, pixels: np.ndarray, tile: tuple[int, int]) -> np.ndarray:
    """The whole frame, ``factor`` times as large, made in tiles that fade into each other."""
    return in_tiles(upscaler.enlarge, pixels, tile, OVERLAP_PX / min(tile), upscaler.factor)


def in_tiles(
    make: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray, tile: tuple[int, int], overlap: float, factor: int = 1
) -> np.ndarray:
    """What ``make`` gives of ``pixels``, uint8 (factor h, factor w, 3), made tile by tile and blended.

    Sums are held for one row of tiles alone: of the whole there is no more than the result.

    Args:
        make: uint8 (rows, columns, channels) -> uint8 (factor rows, factor columns, 3).
        pixels: uint8 (h, w, channels). tile: rows and columns of it. overlap: share of a tile that its neighbour has.
    """
    height, width = pixels.shape[:2]
    if height <= tile[0] and width <= tile[1]:
        return make(pixels)
    made = np.empty((height * factor, width * factor, 3), np.uint8)
    begun = np.zeros((0, width * factor, 3), np.float32)  # what rows of tiles further up gave to rows not finished yet
    tiles = grid((height, width), tile, min(0.5, overlap))
    bands = [list(band) for _, band in itertools.groupby(tiles, lambda one: one.rows)]
    for band, after in zip(bands, [*bands[1:], None], strict=True):
        rows = band[0].rows
        sums = np.zeros(((rows.stop - rows.start) * factor, width * factor, 3), np.float32)
        sums[: len(begun)] = begun
        for one in band:
            columns = slice(one.columns.start, one.columns.stop)
            part = make(np.ascontiguousarray(pixels[rows.start : rows.stop, columns]))
            sums[:, columns.start * factor : columns.stop * factor] += part * _weight(one, factor)
        first, stop = rows.start * factor, (after[0].rows.start if after else height) * factor
        made[first:stop] = np.clip(np.rint(sums[: stop - first]), 0, 255)
        begun = sums[stop - first :]
    return made


def _weight(tile: Tile, factor: int) -> np.ndarray:
    """(factor rows, factor columns, 1)."""
    weight = tile.weight().numpy().astype(np.float32)
    return weight.repeat(factor, axis=0).repeat(factor, axis=1)[..., None]
