"""Optical flow without a network: dense pyramidal Lucas-Kanade with a smoothness term, and warping by it.

At the coarsest level every shift within a few pixels is tried. Then coarse to fine: at every level the brightness
constancy is linearised around the flow so far and solved together with the smoothness of the flow (Lucas and Kanade
1981 combined with Horn and Schunck 1981 as in Bruhn et al. 2005), then a median removes outliers. Everything is
element-wise work on tensors, so it runs on any device.
"""

from __future__ import annotations

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

    With M = (H + s)^-1, T = M H and c = M gradient x residual, a step is mean - T (mean - start) - c, which is
    (1 - T) mean + (T start - c). All matrices are symmetric: they are kept as (diagonal, off-diagonal), and ``flip``
    swaps the two components of a vector.
    """
    gradient = _gradient(a)
    squares = box_mean(gradient * gradient, radius)
    mixed = box_mean(gradient[:, :1] * gradient[:, 1:], radius)
    shifted = squares + SMOOTHNESS
    determinant = shifted[:, :1] * shifted[:, 1:] - mixed * mixed
    m_diagonal, m_off = shifted.flip(1) / determinant, -mixed / determinant
    t_diagonal = m_diagonal * squares + m_off * mixed
    t_off = m_diagonal[:, :1] * mixed + m_off * squares[:, 1:]
    of_sum_diagonal, of_sum_off = (1 - t_diagonal) / 9, t_off / -9
    for _ in range(iterations):
        residual = (warp(b, flow) - a).clamp_(-MOST_RESIDUAL, MOST_RESIDUAL)
        pull = box_mean(gradient * residual, radius)
        start = flow
        rest = (t_diagonal * start).addcmul_(t_off, start.flip(1))
        rest.addcmul_(m_diagonal, pull, value=-1).addcmul_(m_off, pull.flip(1), value=-1)
        for _ in range(INNER_ITERATIONS):
            around = _sum3(flow)
            flow = torch.addcmul(rest, of_sum_diagonal, around).addcmul_(of_sum_off, around.flip(1))
        flow = start + (flow - start).clamp_(-MOST_STEP_PX, MOST_STEP_PX)
    return median(flow)


def _sum3(x: Tensor) -> Tensor:
    """Sum over 3x3 neighbours."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    rows = (padded[..., :-2, :] + padded[..., 1:-1, :]).add_(padded[..., 2:, :])
    return (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:])


@torch.no_grad()
def warp(x: Tensor, flow: Tensor, mode: str = "bilinear", top: int = 0) -> Tensor:
    """``x`` (n, c, y, w) read at p + flow(p), (n, c, h, w); the border's values outside. ``flow``'s first row is
    ``x``'s row ``top``."""
    rows, columns = (
        torch.arange(first, first + count, device=x.device, dtype=x.dtype).mul_(2 / side).add_(1 / side - 1)
        for first, count, side in zip((top, 0), flow.shape[-2:], x.shape[-2:], strict=True)
    )
    grid = x.new_empty(len(flow), *flow.shape[-2:], 2)  # in [-1, 1] as grid_sample counts, horizontal first
    torch.add(columns, flow[:, 0], alpha=2 / x.shape[-1], out=grid[..., 0])
    torch.add(rows[:, None], flow[:, 1], alpha=2 / x.shape[-2], out=grid[..., 1])
    return F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False)


def resize_flow(flow: Tensor, height: int, width: int) -> Tensor:
    """The flow of the same motion in pictures of another size."""
    if flow.shape[-2:] == (height, width):
        return flow
    factor = flow.new_tensor([width / flow.shape[-1], height / flow.shape[-2]]).view(1, 2, 1, 1)
    return F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False) * factor


def halve(x: Tensor) -> Tensor:
    """Half the size, rounded down, blurred by [1 3 3 1] / 8."""
    height, width = x.shape[-2] // 2, x.shape[-1] // 2
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")[..., : 2 * height + 2, : 2 * width + 2]
    x = (padded[..., 1:-1:2, :] + padded[..., 2::2, :]).mul_(3).add_(padded[..., :-2:2, :]).add_(padded[..., 3::2, :])
    x = (x[..., 1:-1:2] + x[..., 2::2]).mul_(3).add_(x[..., :-2:2]).add_(x[..., 3::2])
    return x.mul_(1 / 64)


def box_mean(x: Tensor, radius: int) -> Tensor:
    """Mean over the square of side 2 radius + 1, the border's values outside."""
    side = 2 * radius + 1
    padded = F.pad(x, (radius, radius, radius, radius), mode="replicate")
    return _running_sum(_running_sum(padded, side, -2), side, -1).mul_(1 / side**2)


def _running_sum(x: Tensor, side: int, dim: int) -> Tensor:
    """Sums of ``side`` neighbours along ``dim``, from sums of 1, 2, 4, ... of them."""
    count = x.shape[dim] - side + 1
    total, at, length = None, 0, 1
    while True:
        if side & length:
            piece = x.narrow(dim, at, count)
            total = piece if total is None else total + piece
            at += length
        if at == side:
            assert total is not None
            return total
        x = x.narrow(dim, 0, x.shape[dim] - length) + x.narrow(dim, length, x.shape[dim] - length)
        length *= 2


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
