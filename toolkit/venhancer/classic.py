"""``backend=classic``: frames between frames by motion compensation, Lanczos up-scaling, no network.

The motion at an in-between time is the flow read along its own path (a fixed point: Herbst et al. 2009); three
candidates, forward flow, backward flow and no motion at all, are weighted in every pixel by how well the two frames
agree along them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from toolkit.metrics.flow import box_mean, estimate_flow, to_grey, warp
from toolkit.venhancer.config import Classic

FIXED_POINT_STEPS = 3
AGREEMENT_RADIUS = 2
SOFTNESS = 5.0  # grey levels of disagreement by which a candidate loses a factor e


class Frames(Protocol):
    """A shot's key frames: uint8 RGB [height, width, 3] from any position on."""

    def frames(self, start: int) -> Iterator[np.ndarray]: ...


class Between:
    """Frames between ``a`` and ``b`` (uint8 RGB [height, width, 3]); the motion is estimated when first needed."""

    def __init__(self, a: np.ndarray, b: np.ndarray, settings: Classic, device: str | torch.device = "cpu"):
        self.settings = settings
        self.pair = to_tensor(a, device), to_tensor(b, device)
        self._flows: tuple[Tensor, Tensor] | None = None

    def at(self, share: float) -> np.ndarray:
        """The frame at ``share`` in (0, 1) of the way from a to b, uint8."""
        a, b = self.pair
        return to_pixels(interpolate(a, b, *self.flows(), share))

    def flows(self) -> tuple[Tensor, Tensor]:
        """The motion from a to b and from b to a, each (1, 2, height, width) in pixels."""
        if self._flows is None:
            a, b = (to_grey(frame) for frame in self.pair)
            s = self.settings
            both = estimate_flow(
                torch.cat([a, b]),
                torch.cat([b, a]),
                levels=s.levels,
                iterations=s.iterations,
                window_px=s.window_px,
                finest_level=s.flow_level,
            )
            self._flows = both[:1], both[1:]
        return self._flows


@torch.no_grad()
def interpolate(a: Tensor, b: Tensor, forward: Tensor, backward: Tensor, share: float) -> Tensor:
    """The picture (1, 3, h, w) between ``a`` and ``b`` of the same shape, values in [0, 255]."""
    from_a = _along(forward, share)
    from_b = -_along(backward, 1 - share)
    result = torch.zeros_like(a)
    total = torch.zeros_like(a[:, :1])
    for motion in (from_a, from_b, torch.zeros_like(from_a)):
        x, y = warp(a, -share * motion), warp(b, (1 - share) * motion)
        disagreement = box_mean((x - y).abs().mean(1, keepdim=True), AGREEMENT_RADIUS)
        weight = torch.exp(-disagreement / SOFTNESS) + 1e-6
        result += weight * torch.lerp(x, y, share)
        total += weight
    return result / total


def _along(flow: Tensor, share: float) -> Tensor:
    """The flow at its own in-between place: v(p) = flow(p - share v(p))."""
    motion = flow
    for _ in range(FIXED_POINT_STEPS):
        motion = warp(flow, -share * motion)
    return motion


def motion_frames(
    keys: Frames, positions: Sequence[Fraction], start: int, settings: Classic, device: str | torch.device = "cpu"
) -> Iterator[np.ndarray]:
    """Output frames ``start``, start + 1, ... of a shot: uint8 RGB at the keys' size."""
    for before, after, share in neighbours(keys, positions, start):
        if after is None:
            yield before.pixels
        else:
            if before.between is None:
                before.between = Between(before.pixels, after.pixels, settings, device)
            yield before.between.at(float(share))


def blended_frames(keys: Frames, positions: Sequence[Fraction], start: int) -> Iterator[np.ndarray]:
    """The same by blending the neighbouring frames linearly: the baseline that ghosts."""
    for before, after, share in neighbours(keys, positions, start):
        if after is None:
            yield before.pixels
        else:
            mixed = before.pixels * np.float32(1 - share) + after.pixels * np.float32(share)
            yield np.rint(mixed).astype(np.uint8)


class _Key:
    """A key frame, with what lies between it and the next one."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels
        self.between: Between | None = None


def neighbours(keys: Frames, positions: Sequence[Fraction], start: int) -> Iterator[tuple[_Key, _Key | None, Fraction]]:
    """Per output frame from ``start`` on: the key at or before it, the next one if it lies between, the share."""
    if start >= len(positions):
        return
    number = int(positions[start])
    source = keys.frames(number)
    current, following = _Key(next(source)), None
    for position in positions[start:]:
        while number < int(position):
            current = following or _Key(next(source))
            following = None
            number += 1
        share = position - int(position)
        if share and following is None:
            following = _Key(next(source))
        yield current, (following if share else None), share


def resize(pixels: np.ndarray, width: int, height: int, kernel: str = "lanczos") -> np.ndarray:
    """uint8 RGB [h, w, 3] at another size by ``lanczos`` (three lobes) or ``bicubic``, antialiased when smaller."""
    if pixels.shape[:2] == (height, width):
        return pixels
    kernels = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}
    return np.asarray(Image.fromarray(pixels).resize((width, height), kernels[kernel]))


def up_to_size(frames: Iterator[np.ndarray], width: int, height: int, kernel: str) -> Iterator[np.ndarray]:
    """``frames`` at the output's size; a frame that is repeated is resized once."""
    last: np.ndarray | None = None
    made: np.ndarray | None = None
    for frame in frames:
        if made is None or frame is not last:
            last, made = frame, resize(frame, width, height, kernel)
        yield made


def to_tensor(pixels: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
    """uint8 RGB [h, w, 3] as float (1, 3, h, w) in [0, 255]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(2, 0, 1)[None].float()


def to_pixels(x: Tensor) -> np.ndarray:
    """The inverse of :func:`to_tensor`, rounded and clipped."""
    return x[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
