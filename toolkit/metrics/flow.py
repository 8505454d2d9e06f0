"""Optical flow without a network: dense pyramidal Lucas-Kanade with a smoothness term, and warping by it.

At the coarsest level every shift within a few pixels is tried. Then coarse to fine: at every level the brightness
constancy is linearised around the flow so far and solved together with the smoothness of the flow (Lucas and Kanade
1981 combined with Horn and Schunck 1981 as in Bruhn et al. 2005), then a median removes outliers. Everything is
element-wise work on tensors, so it runs on any device.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

SMOOTHNESS = 300.0  # in squared grey levels: where the structure tensor is smaller, neighbours decide
INNER_ITERATIONS = 4
MOST_RESIDUAL = 40.0  # grey levels; larger ones are occlusions, not motion
MOST_STEP_PX = 2.0
LEAST_SIDE_PX = 32  # of the coarsest level
SEARCH_PX, SEARCH_RADIUS = 3, 3  # shifts tried there, and the neighbourhood that must agree on one
SHIFT_COST = 0.5  # grey levels per pixel: of equal matches the nearer one
SEARCH_SOFTNESS = 1.0  # grey levels by which a worse match counts e times less
_GREY = (0.299, 0.587, 0.114)


def to_grey(x: Tensor) -> Tensor:
    """Luma (n, 1, h, w) of RGB (n, 3, h, w), same range."""
    return F.conv2d(x, x.new_tensor(_GREY).view(1, 3, 1, 1))


@torch.no_grad()
def estimate_flow(
    x: Tensor,
    y: Tensor,
    *,
    levels: int = 6,
    iterations: int = 3,
    window_px: int = 7,
    finest_level: int = 0,
    full_size: bool = True,
) -> Tensor:
    """The flow (n, 2, h, w), horizontal first, in pixels: ``x(p)`` is seen at ``y(p + flow(p))``.

    Args:
        x, y: grey pictures (n, 1, h, w) in [0, 255].
        levels: of the pyramid, each half the size of the one before; fewer for small pictures.
        iterations: linearisations per level. window_px: side of the window that shares one motion.
        finest_level: where the estimate ends: 1 works at half the size, for a quarter of the time.
        full_size: False gives the flow in the size and the pixels of the finest level.
    """
    if x.shape != y.shape or x.dim() != 4 or x.shape[1] != 1:
        raise ValueError(f"shapes {tuple(x.shape)} and {tuple(y.shape)}: expected two equal (n, 1, h, w)")
    pyramid = [(x, y)]
    while len(pyramid) < levels and min(pyramid[-1][0].shape[-2:]) >= 2 * LEAST_SIDE_PX:
        pyramid.append((halve(pyramid[-1][0]), halve(pyramid[-1][1])))
    last = min(finest_level, len(pyramid) - 1)
    flow = _search(*pyramid[-1])
    for a, b in reversed(pyramid[last:]):
        flow = _refine(resize_flow(flow, *a.shape[-2:]), a, b, iterations, window_px // 2)
    return resize_flow(flow, *x.shape[-2:]) if full_size else flow


def _search(a: Tensor, b: Tensor) -> Tensor:
    """The shift (n, 2, h, w) of ``b`` that fits ``a`` best around every pixel, as a mean weighted by the fit."""
    side = 2 * SEARCH_PX + 1
    padded = F.pad(b, (SEARCH_PX, SEARCH_PX, SEARCH_PX, SEARCH_PX), mode="replicate")
    shifted = F.unfold(padded, side).view(len(a), side**2, *a.shape[-2:])
    steps = torch.arange(-SEARCH_PX, SEARCH_PX + 1, device=a.device, dtype=a.dtype)
    down, across = (axis.reshape(1, -1, 1, 1) for axis in torch.meshgrid(steps, steps, indexing="ij"))
    cost = box_mean((shifted - a).abs(), SEARCH_RADIUS) + SHIFT_COST * (down.square() + across.square()).sqrt()
    weight = torch.softmax(-cost / SEARCH_SOFTNESS, 1)
    return torch.cat([(weight * across).sum(1, keepdim=True), (weight * down).sum(1, keepdim=True)], 1)


def _refine(flow: Tensor, a: Tensor, b: Tensor, iterations: int, radius: int) -> Tensor:
    """One level: (H + s) d = s mean(d) - gradient x residual over windows, by Jacobi's iteration.

    With M = (H + s)^-1, T = M H and c = M gradient x residual, a step is mean - T (mean - start) - c. All matrices are
    symmetric: they are kept as (diagonal, off-diagonal), and ``flip`` swaps the two components of a vector.
    """
    gradient = _gradient(a)
    squares = box_mean(gradient * gradient, radius)
    mixed = box_mean(gradient[:, :1] * gradient[:, 1:], radius)
    shifted = squares + SMOOTHNESS
    determinant = shifted[:, :1] * shifted[:, 1:] - mixed * mixed
    m_diagonal, m_off = shifted.flip(1) / determinant, -mixed / determinant
    t_diagonal = m_diagonal * squares + m_off * mixed
    t_off = m_diagonal[:, :1] * mixed + m_off * squares[:, 1:]
    for _ in range(iterations):
        residual = (warp(b, flow) - a).clamp_(-MOST_RESIDUAL, MOST_RESIDUAL)
        pull = box_mean(gradient * residual, radius)
        c = torch.addcmul(m_diagonal * pull, m_off, pull.flip(1))
        start = flow
        for _ in range(INNER_ITERATIONS):
            mean = _mean3(flow)
            away = mean - start
            flow = (mean - c).addcmul_(t_diagonal, away, value=-1).addcmul_(t_off, away.flip(1), value=-1)
        flow = start + (flow - start).clamp_(-MOST_STEP_PX, MOST_STEP_PX)
    return median(flow)


def _mean3(x: Tensor) -> Tensor:
    """Mean over 3x3 neighbours."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    rows = (padded[..., :-2, :] + padded[..., 1:-1, :]).add_(padded[..., 2:, :])
    return (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).mul_(1 / 9)


def warp(x: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """``x`` (n, c, h, w) read at p + flow(p); the border's values outside."""
    height, width = flow.shape[-2:]
    scale = torch.tensor([2 / width, 2 / height], device=x.device, dtype=x.dtype)
    grid = torch.addcmul(_places(height, width, x.device, x.dtype), flow.permute(0, 2, 3, 1), scale)
    return F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False)


@functools.lru_cache(maxsize=16)
def _places(height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Every pixel's own place (1, h, w, 2), horizontal first, in [-1, 1] as grid_sample counts."""
    rows = (2 * torch.arange(height, device=device, dtype=dtype) + 1) / height - 1
    columns = (2 * torch.arange(width, device=device, dtype=dtype) + 1) / width - 1
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1)[None].contiguous()


def resize_flow(flow: Tensor, height: int, width: int) -> Tensor:
    """The flow of the same motion in pictures of another size."""
    if flow.shape[-2:] == (height, width):
        return flow
    factor = flow.new_tensor([width / flow.shape[-1], height / flow.shape[-2]]).view(1, 2, 1, 1)
    return F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False) * factor


def halve(x: Tensor) -> Tensor:
    """Half the size, rounded down, blurred by [1 3 3 1] / 8."""
    kernel = x.new_tensor([1.0, 3.0, 3.0, 1.0]) / 8
    channels = x.shape[1]
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    x = F.conv2d(x, kernel.view(1, 1, 1, 4).expand(channels, 1, 1, 4), stride=(1, 2), groups=channels)
    return F.conv2d(x, kernel.view(1, 1, 4, 1).expand(channels, 1, 4, 1), stride=(2, 1), groups=channels)


def box_mean(x: Tensor, radius: int) -> Tensor:
    """Mean over the square of side 2 radius + 1, the border's values outside; any radius costs the same."""
    side = 2 * radius + 1
    sums = F.pad(x, (radius + 1, radius, 0, 0), mode="replicate").cumsum(-1)
    x = sums[..., side:] - sums[..., :-side]
    sums = F.pad(x, (0, 0, radius + 1, radius), mode="replicate").cumsum(-2)
    return (sums[..., side:, :] - sums[..., :-side, :]) / side**2


def median(x: Tensor) -> Tensor:
    """Median of three neighbours across, then of three down: outliers go, edges stay, and it costs eight operations."""
    padded = F.pad(x, (1, 1, 0, 0), mode="replicate")
    x = _middle(padded[..., :-2], padded[..., 1:-1], padded[..., 2:])
    padded = F.pad(x, (0, 0, 1, 1), mode="replicate")
    return _middle(padded[..., :-2, :], padded[..., 1:-1, :], padded[..., 2:, :])


def _middle(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))


def _gradient(x: Tensor) -> Tensor:
    """Central differences (n, 2, h, w), horizontal first."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    return torch.cat([across, padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]], 1) / 2
