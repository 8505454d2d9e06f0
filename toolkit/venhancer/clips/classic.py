"""``backend=classic``: frames between frames by motion compensation, Lanczos up-scaling, no network.

The motion at an in-between time is the flow read along its own path (a fixed point). Of forward and backward flow every
pixel takes the one along which the two frames agree better, and where they agree no better than the frames as they
stand, it fades to those: text that stands still is not torn, what is covered fades.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.data.video.pixels import resize_planes
from toolkit.data.video.together import Once, Task
from toolkit.metrics.flow import LEAST_SIDE_PX, box_mean, estimate_flow, halve, to_grey, warp
from toolkit.venhancer.config import Classic

FIXED_POINT_STEPS = 3
AGREEMENT_RADIUS = 2
SOFTNESS = 5.0  # grey levels of disagreement by which a candidate loses a factor e
FLOW_SIDE_PX = 120  # of the shorter side, at least, for the motion
STRIP_ROWS = 64  # of a picture that is worked on at once


class Frames(Protocol):
    """A shot's key frames: uint8 RGB (height, width, 3) from any position on."""

    def frames(self, start: int) -> Iterator[np.ndarray]: ...


class Between:
    """Frames between ``a`` and ``b`` (uint8 or uint16 RGB (height, width, 3)); the motion is estimated when first
    needed."""

    def __init__(self, a: np.ndarray, b: np.ndarray, settings: Classic, device: str | torch.device = "cpu"):
        self.settings, self.dtype = settings, a.dtype
        self.pair = _planes(a, device), _planes(b, device)
        self._small: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self._estimated = threading.Lock()

    def at(self, share: float) -> np.ndarray:
        """The frame at ``share`` in (0, 1) of the way from a to b, as deep as they are."""
        made = interpolate(*self.pair, *self.motion(), share)[0].permute(1, 2, 0)
        return made.cpu().numpy()  # type: ignore[no-any-return]

    def motion(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Flow from a to b and from b to a (1, 2, h, w), and both frames' luma, in the size the motion is known at."""
        with self._estimated:
            if self._small is None:
                self._small = self._estimate()
        return self._small

    def _estimate(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        level, s = self._level(), self.settings
        is_halved = level > 0 and s.levels > 1 and min(self.pair[0].shape[-2:]) >= 2 * LEAST_SIDE_PX
        greys = torch.cat([_luma(frame, is_halved) for frame in self.pair])
        both = estimate_flow(
            greys,
            greys.flip(0),
            levels=s.levels - is_halved,
            iterations=s.iterations,
            window_px=s.window_px,
            finest_level=level - is_halved,
            full_size=False,
        )
        while greys.shape[-2:] != both.shape[-2:]:
            greys = halve(greys)
        return both[:1], both[1:], greys[:1], greys[1:]

    def _level(self) -> int:
        """The level asked for, or the coarsest that leaves ``FLOW_SIDE_PX`` to the shorter side."""
        if self.settings.flow_level is not None:
            return self.settings.flow_level
        return max(0, int(math.log2(min(self.pair[0].shape[-2:]) / FLOW_SIDE_PX)))


@torch.no_grad()
def interpolate(
    a: Tensor, b: Tensor, forward: Tensor, backward: Tensor, small_a: Tensor, small_b: Tensor, share: float
) -> Tensor:
    """The picture (1, 3, h, w) between ``a`` and ``b`` of the same shape and type; whole numbers are rounded.

    ``forward``, ``backward`` (1, 2, y, x) and the lumas ``small_a``, ``small_b`` (1, 1, y, x) in [0, 255] may be of a
    smaller size: which motion holds is decided there. Of the full size only a few rows at a time are more than bytes.
    """
    motion = _along(torch.cat([forward, backward]), forward.new_tensor([share, 1 - share]).view(2, 1, 1, 1))
    onward = motion * forward.new_tensor([1, -1]).view(2, 1, 1, 1)  # both from a to b
    seen_a = warp(small_a.expand(2, -1, -1, -1), -share * onward)
    seen_b = warp(small_b.expand(2, -1, -1, -1), (1 - share) * onward)
    of_a, of_b = box_mean((seen_a - seen_b).abs_(), AGREEMENT_RADIUS).split(1)
    still = torch.exp(-box_mean((small_a - small_b).abs(), AGREEMENT_RADIUS) / SOFTNESS)
    moved = torch.exp(-torch.minimum(of_a, of_b) / SOFTNESS)
    chosen = torch.cat([torch.where(of_a <= of_b, onward[:1], onward[1:]), still / (still + 2 * moved + 1e-6)], 1)
    height, width = a.shape[-2:]
    factor = chosen.new_tensor([width / chosen.shape[-1], height / chosen.shape[-2], 1]).view(1, 3, 1, 1)
    made = torch.empty_like(a, memory_format=torch.contiguous_format)
    for first in range(0, height, STRIP_ROWS):
        rows = slice(first, min(first + STRIP_ROWS, height))
        here = _enlarged_rows(chosen, rows, height, width).mul_(factor)
        flow, weight = here[:, :2], here[:, 2:]
        compensated = torch.lerp(_seen(a, rows, -share * flow), _seen(b, rows, (1 - share) * flow), share)
        plain = torch.lerp(_float(a[:, :, rows]), _float(b[:, :, rows]), share)
        made[:, :, rows] = _as(a.dtype, torch.lerp(compensated, plain, weight))
    return made


def _seen(x: Tensor, rows: slice, flow: Tensor) -> Tensor:
    """``rows`` of ``x`` read along ``flow``; of ``x`` only what is seen there is looked at."""
    down = flow[:, 1]
    low = min(max(0, math.floor(rows.start + float(down.min())) - 1), x.shape[-2] - 1)
    high = max(low + 1, math.ceil(rows.stop + float(down.max())) + 1)
    return warp(_float(x[:, :, low:high]), flow, top=rows.start - low)


def _enlarged_rows(x: Tensor, rows: slice, height: int, width: int) -> Tensor:
    """``rows`` of what ``x`` (1, c, y, x) is at (height, width), bilinearly."""
    return _enlarged(_enlarged(x, -2, rows, height), -1, slice(0, width), width)


def _enlarged(x: Tensor, dim: int, part: slice, size: int) -> Tensor:
    """``part`` of what ``x`` is when ``dim`` has ``size`` elements."""
    last = x.shape[dim] - 1
    places = torch.arange(part.start, part.stop, device=x.device, dtype=x.dtype)
    places = places.add_(0.5).mul_((last + 1) / size).sub_(0.5).clamp_(0, last)
    before = places.long()
    share = (places - before).view(-1, 1) if dim == -2 else places - before
    return torch.lerp(x.index_select(dim, before), x.index_select(dim, (before + 1).clamp_(max=last)), share)


def _luma(x: Tensor, is_halved: bool) -> Tensor:
    """In [0, 255], (1, 1, h, w) or of half the size, a few rows at a time."""
    height = x.shape[-2] // 2 if is_halved else x.shape[-2]
    strips = []
    for first in range(0, height, STRIP_ROWS):
        last = min(first + STRIP_ROWS, height)
        if not is_halved:
            strips.append(to_grey(_float(x[:, :, first:last])))
            continue
        low = max(0, 2 * first - 2)
        strips.append(
            halve(to_grey(_float(x[:, :, low : 2 * last + 2])))[:, :, first - low // 2 :][:, :, : last - first]
        )
    return torch.cat(strips, 2) / (257 if x.dtype == torch.uint16 else 1)


def _planes(pixels: np.ndarray, device: str | torch.device) -> Tensor:
    """RGB (h, w, 3) as a view (1, 3, h, w) of the same numbers, or a copy on another device."""
    writable = np.require(pixels, requirements=["W"])  # a copy only where it must be
    return torch.from_numpy(writable).permute(2, 0, 1)[None].to(device)


def _float(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float32 else x.float()


def _as(dtype: torch.dtype, x: Tensor) -> Tensor:
    """``x`` as numbers of ``dtype``: whole ones are rounded and kept in range."""
    if dtype.is_floating_point:
        return x
    return x.round_().clamp_(0, torch.iinfo(dtype).max).to(dtype)


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
    return (task() for task in motion_tasks(keys, positions, start, settings, device))


def motion_tasks(
    keys: Frames, positions: Sequence[Fraction], start: int, settings: Classic, device: str | torch.device = "cpu"
) -> Iterator[Task[np.ndarray]]:
    """The same as tasks that may be done in any order; a frame that is repeated is one task, yielded again."""
    for before, after, share in neighbours(keys, positions, start):
        if after is None:
            yield before.still
        else:
            if before.between is None:
                before.between = Between(before.pixels, after.pixels, settings, device)
            yield functools.partial(before.between.at, float(share))


def blended_frames(keys: Frames, positions: Sequence[Fraction], start: int) -> Iterator[np.ndarray]:
    """The same by blending the neighbouring frames linearly: the baseline that ghosts."""
    return (task() for task in blend_tasks(keys, positions, start))


def blend_tasks(keys: Frames, positions: Sequence[Fraction], start: int) -> Iterator[Task[np.ndarray]]:
    """The same as tasks, as in :func:`motion_tasks`."""
    for before, after, share in neighbours(keys, positions, start):
        yield before.still if after is None else functools.partial(_blend, before.pixels, after.pixels, float(share))


def _blend(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    mixed = a * np.float32(1 - share)
    mixed += b * np.float32(share)
    return np.rint(mixed, out=mixed).astype(a.dtype)


class _Key:
    """A key frame, with what lies between it and the next one."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels
        self.still: Task[np.ndarray] = lambda: pixels
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
    """RGB (h, w, 3), uint8 or uint16, at another size by ``lanczos`` (three lobes) or ``bicubic`` (a = -0.5),
    antialiased when smaller."""
    if pixels.shape[:2] == (height, width):
        return pixels
    if kernel == "lanczos":
        return resize_planes(pixels, width, height)
    x = _planes(pixels, "cpu")
    x = F.interpolate(x if x.dtype == torch.uint8 else x.float(), size=(height, width), mode="bicubic", antialias=True)
    x = x if x.dtype == torch.uint8 else _as(torch.uint16, x)
    made: np.ndarray = x[0].permute(1, 2, 0).contiguous().numpy()
    return made


def up_to_size(tasks: Iterator[Task[np.ndarray]], width: int, height: int, kernel: str) -> Iterator[Task[np.ndarray]]:
    """What ``tasks`` make, at the output's size; a frame that is repeated is resized once."""
    last: Task[np.ndarray] | None = None
    made: Task[np.ndarray] | None = None
    for task in tasks:
        if made is None or task is not last:
            last, made = task, Once(functools.partial(_resized, task, width, height, kernel))
        yield made


def _resized(task: Task[np.ndarray], width: int, height: int, kernel: str) -> np.ndarray:
    return resize(task(), width, height, kernel)


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
