"""What the network is given: key frames brought to the target size, the frames between them filled in, and the text.

He et al. 2024 section 3.1: low-resolution frames are resized to the target before they are encoded, so that any scale
needs no layer of its own; the start of sampling is the whole clip so resized, the frames to be interpolated filled from
their key frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_TAPS = {"bilinear": 2, "bicubic": 4}


def resize_region(
    frame: np.ndarray, size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int], mode: str
) -> Tensor:
    """A rectangle of a frame resized to ``size``, without computing the rest.

    Args:
        frame: uint8 (h, w, 3). size: (rows, columns) of the whole result.
        rows, columns: which part; positions outside the result repeat its border (padding).
        mode: "bilinear" or "bicubic" (a = -0.75), pixel centres aligned as in ``F.interpolate``.

    Returns:
        float32 (3, rows, columns) in [-1, 1] (bicubic may overshoot).
    """
    down, row_index = _taps(frame.shape[0], size[0], rows, mode)
    across, column_index = _taps(frame.shape[1], size[1], columns, mode)
    first_row, last_row = int(row_index.min()), int(row_index.max()) + 1
    band = torch.from_numpy(frame[first_row:last_row].astype(np.float32)).permute(2, 0, 1) / 127.5 - 1  # 3 h w
    wide = sum(band[:, :, index] * weight for index, weight in zip(column_index, across, strict=True))
    tall = sum(wide[:, index] * weight[:, None] for index, weight in zip(row_index - first_row, down, strict=True))
    assert torch.is_tensor(tall)
    return tall


def _taps(source: int, target: int, span: tuple[int, int], mode: str) -> tuple[Tensor, Tensor]:
    """Weights and source positions, (taps, positions) each, of the interpolation along one axis."""
    position = torch.arange(*span, dtype=torch.float64).clamp(0, target - 1)
    centre = (position + 0.5) * source / target - 0.5
    if mode == "bilinear":
        centre = centre.clamp(min=0)
    base = centre.floor()
    t = centre - base
    weights = torch.stack([1 - t, t] if mode == "bilinear" else _cubic(t))
    offset = 0 if mode == "bilinear" else 1
    index = torch.stack([base + tap - offset for tap in range(_TAPS[mode])])
    return weights.float(), index.clamp(0, source - 1).long()


def _cubic(t: Tensor, a: float = -0.75) -> list[Tensor]:
    """Keys' four weights at a fraction t."""

    def near(x: Tensor) -> Tensor:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Tensor) -> Tensor:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


@dataclass(frozen=True)
class Fill:
    """How a clip of key frames becomes a clip of all frames.

    Attributes:
        mode: of the resize.
        blend: in-between frames are linear blends of the key frames around them; False repeats the one before, as the
            released code does.
    """

    mode: str = "bilinear"
    blend: bool = False

    def parts(self, frame: int, frame_factor: int) -> list[tuple[int, float]]:
        """(key frame, weight) of which an output frame is made."""
        before, rest = divmod(frame, frame_factor)
        if not rest or not self.blend:
            return [(before, 1.0)]
        return [(before, 1 - rest / frame_factor), (before + 1, rest / frame_factor)]


def key_frame_index(start: int, stop: int, frame_factor: int) -> Tensor:
    """int64 [1, stop - start] for the output frames of a window that starts on a key frame: which of its key frames,
    counted from the window's first, -1 for those between."""
    frames = torch.arange(start, stop)
    index = (frames - start).div(frame_factor, rounding_mode="floor")
    return torch.where(frames % frame_factor == 0, index, -1)[None]


def true_scale(source: tuple[int, int], target: tuple[int, int]) -> float:
    """s: how much smaller the input is than the output, sqrt of the areas' ratio, at least 1."""
    return max(1.0, (target[0] * target[1] / (source[0] * source[1])) ** 0.5)
