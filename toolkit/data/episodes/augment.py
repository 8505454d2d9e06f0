"""The release's augmentation of clips: one random crop and colour change per clip, the same for all its frames."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

CROP_SCALE, CROP_RATIO = (0.8, 1.0), (0.9, 1.1)  # of the area; of width to height
COLOR, HUE = (0.9, 1.1), 0.05  # factors of brightness, contrast and saturation; turn of the hue circle
Uniform = Callable[..., Tensor]  # (low, high) -> numbers between them, one a clip
_LUMA = torch.tensor([0.299, 0.587, 0.114])
_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def augment(frames: Tensor, rng: torch.Generator, num: int | None = None, first: int = 0) -> Tensor:
    """Random-resized crop and colour jitter of clips ``frames`` (B, T, 3, H, W) in [0, 1]; row by row from ``rng``.

    The hue is turned in YIQ space (the release turns it in HSV). num, first: the numbers are drawn for ``num`` clips,
    of which ``frames`` are those from ``first`` on.
    """
    uniform = functools.partial(_uniform, rng, num or len(frames), slice(first, first + len(frames)))
    return _recolor(_crop(frames, uniform), uniform)


def _uniform(rng: torch.Generator, num: int, part: slice, low: float = 0.0, high: float = 1.0) -> Tensor:
    return (low + (high - low) * torch.rand(num, generator=rng))[part]


def _crop(frames: Tensor, uniform: Uniform) -> Tensor:
    num, length = frames.shape[:2]
    area = uniform(*CROP_SCALE)
    ratio = torch.exp(uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    center_x = (2 * uniform() - 1) * (1 - width)  # in grid_sample's -1..1
    center_y = (2 * uniform() - 1) * (1 - height)
    zero = torch.zeros(num)
    rows = torch.stack([torch.stack([width, zero, center_x], -1), torch.stack([zero, height, center_y], -1)], 1)
    grid = F.affine_grid(rows, [num, 3, *frames.shape[-2:]], align_corners=False).repeat_interleave(length, 0)
    flat = F.grid_sample(frames.flatten(0, 1), grid, padding_mode="border", align_corners=False)
    return flat.view_as(frames)


def _recolor(frames: Tensor, uniform: Uniform) -> Tensor:
    num = len(frames)
    brightness, contrast, saturation = (uniform(*COLOR).view(-1, 1, 1, 1, 1) for _ in range(3))
    x = (frames * brightness).clamp(0, 1)
    mean = (x * _LUMA.view(3, 1, 1)).sum(2).mean((1, 2, 3)).view(-1, 1, 1, 1, 1)
    x = (mean + contrast * (x - mean)).clamp(0, 1)
    gray = (x * _LUMA.view(3, 1, 1)).sum(2, keepdim=True)
    x = (gray + saturation * (x - gray)).clamp(0, 1)
    angle = 2 * math.pi * uniform(-HUE, HUE)
    turn = torch.zeros(num, 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    matrix = torch.linalg.inv(_TO_YIQ) @ turn @ _TO_YIQ
    return torch.einsum("bij,btjhw->btihw", matrix, x).clamp(0, 1)
