"""``backend=classic``: frames between frames by motion compensation, Lanczos up-scaling, no network.

The motion at an in-between time is the flow read along its own path (a fixed point). Of forward and backward flow every
pixel takes the one along which the two frames agree better, and where they agree no better than the frames as they
stand, it fades to those: text that stands still is not torn, what is covered fades.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from toolkit.metrics.flow import box_mean, estimate_flow, halve, resize_flow, to_grey, warp
from toolkit.venhancer.config import Classic

FIXED_POINT_STEPS = 3
AGREEMENT_RADIUS = 2
SOFTNESS = 5.0  # grey levels of disagreement by which a candidate loses a factor e
FLOW_SIDE_PX = 120  # of the shorter side, at least, for the motion


class Frames(Protocol):
    """A shot's key frames: uint8 RGB (height, width, 3) from any position on."""

    def frames(self, start: int) -> Iterator[np.ndarray]: ...


class Between:
    """Frames between ``a`` and ``b`` (uint8 RGB (height, width, 3)); the motion is estimated when first needed."""

    def __init__(self, a: np.ndarray, b: np.ndarray, settings: Classic, device: str | torch.device = "cpu"):
        self.settings, self.dtype = settings, a.dtype
        self.pair = to_tensor(a, device), to_tensor(b, device)
        self._small: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def at(self, share: float) -> np.ndarray:
        """The frame at ``share`` in (0, 1) of the way from a to b, as deep as they are."""
        a, b = self.pair
        return to_pixels(interpolate(a, b, *self.motion(), share), self.dtype)

    def motion(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Flow from a to b and from b to a (1, 2, h, w), and both frames' luma, in the size the motion is known at."""
        if self._small is None:
            level, s = self._level(), self.settings
            a, b = (to_grey(frame) for frame in self.pair)
            both = estimate_flow(
                torch.cat([a, b]),
                torch.cat([b, a]),
                levels=s.levels,
                iterations=s.iterations,
                window_px=s.window_px,
                finest_level=level,
                full_size=False,
            )
            while a.shape[-2:] != both.shape[-2:]:
                a, b = halve(a), halve(b)
            self._small = both[:1], both[1:], a, b
        return self._small

    def _level(self) -> int:
        """The level asked for, or the coarsest that leaves ``FLOW_SIDE_PX`` to the shorter side."""
        if self.settings.flow_level is not None:
            return self.settings.flow_level
        return max(0, int(math.log2(min(self.pair[0].shape[-2:]) / FLOW_SIDE_PX)))


@torch.no_grad()
def interpolate(
    a: Tensor, b: Tensor, forward: Tensor, backward: Tensor, small_a: Tensor, small_b: Tensor, share: float
) -> Tensor:
    """The picture (1, 3, h, w) between ``a`` and ``b`` of the same shape, values in [0, 255].

    ``forward``, ``backward`` (1, 2, y, x) and the lumas ``small_a``, ``small_b`` (1, 1, y, x) may be of a smaller size:
    which motion holds is decided there.
    """

    motion = _along(torch.cat([forward, backward]), a.new_tensor([share, 1 - share]).view(2, 1, 1, 1))
    onward = motion * a.new_tensor([1, -1]).view(2, 1, 1, 1)  # both from a to b
    seen_a = warp(small_a.expand(2, -1, -1, -1), -share * onward)
    seen_b = warp(small_b.expand(2, -1, -1, -1), (1 - share) * onward)
    of_a, of_b = box_mean((seen_a - seen_b).abs_(), AGREEMENT_RADIUS).split(1)
    still = torch.exp(-box_mean((small_a - small_b).abs(), AGREEMENT_RADIUS) / SOFTNESS)
    moved = torch.exp(-torch.minimum(of_a, of_b) / SOFTNESS)
    weight = F.interpolate(still / (still + 2 * moved + 1e-6), size=a.shape[-2:], mode="bilinear")
    chosen = resize_flow(torch.where(of_a <= of_b, onward[:1], onward[1:]), *a.shape[-2:])
    compensated = torch.lerp(warp(a, -share * chosen), warp(b, (1 - share) * chosen), share)
    return torch.lerp(compensated, torch.lerp(a, b, share), weight)


def _along(flow: Tensor, share: Tensor) -> Tensor:
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
            yield np.rint(mixed).astype(before.pixels.dtype)


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
    """RGB (h, w, 3), uint8 or uint16, at another size by ``lanczos`` (three lobes) or ``bicubic``, antialiased when
    smaller."""
    if pixels.shape[:2] == (height, width):
        return pixels
    kernels = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize((width, height), kernels[kernel]))
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in pixels.transpose(2, 0, 1)]
    made = np.stack([np.asarray(plane.resize((width, height), kernels[kernel])) for plane in planes], -1)
    return np.rint(made).clip(0, 65535).astype(np.uint16)


def up_to_size(frames: Iterator[np.ndarray], width: int, height: int, kernel: str) -> Iterator[np.ndarray]:
    """``frames`` at the output's size; a frame that is repeated is resized once."""
    last: np.ndarray | None = None
    made: np.ndarray | None = None
    for frame in frames:
        if made is None or frame is not last:
            last, made = frame, resize(frame, width, height, kernel)
        yield made


def to_tensor(pixels: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
    """RGB (h, w, 3), uint8 or uint16, as float (1, 3, h, w) in [0, 255]."""
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(np.float32) / 257
    writable = np.require(pixels, requirements=["C", "W"])  # a copy only where it must be
    return torch.from_numpy(writable).to(device).permute(2, 0, 1)[None].float()


def to_pixels(x: Tensor, dtype: np.typing.DTypeLike = np.uint8) -> np.ndarray:
    """The inverse of :func:`to_tensor`, rounded and clipped."""
    if dtype == np.uint16:
        found = (x[0] * 257).round().clamp(0, 65535).permute(1, 2, 0).contiguous()
        return found.cpu().numpy().astype(np.uint16)
    return x[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
