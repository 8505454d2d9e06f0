"""Distances between two sets of points (n, d): energy, Wasserstein-2, and what is left of it within modes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_EXACT = 2000  # points; the assignment's cost grows with the cube
_CHUNK = 2048


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| without the diagonal terms (Székely and Rizzo 2013): unbiased, 0 on average
    for equal distributions, so small values may be negative. Images are flattened; float64."""
    x, y = x.detach().flatten(1).double(), y.detach().flatten(1).double()
    if min(len(x), len(y)) < 2:
        raise ValueError("the energy distance needs at least two points on each side")
    within = _sum_of_distances(x, x) / (len(x) * (len(x) - 1)) + _sum_of_distances(y, y) / (len(y) * (len(y) - 1))
    return float(2 * _sum_of_distances(x, y) / (len(x) * len(y)) - within)


def _sum_of_distances(x: Tensor, y: Tensor) -> Tensor:
    mode = "donot_use_mm_for_euclid_dist"  # the product form loses half of the digits where points nearly meet
    return torch.stack([torch.cdist(chunk, y, compute_mode=mode).sum() for chunk in x.split(_CHUNK)]).sum()


def wasserstein2(x: Tensor, y: Tensor) -> float:
    """Exact W2 between equally many points (n <= 2000), by optimal assignment.

    On a mixture it mostly measures how many points each mode got; see ``within_mode_w2``.
    Raises ValueError for unequal or too many points (use ``sliced_wasserstein2``).
    """
    from scipy.optimize import linear_sum_assignment

    if len(x) != len(y) or len(x) > MAX_EXACT:
        raise ValueError(f"{len(x)} and {len(y)} points: need equal numbers, at most {MAX_EXACT}")
    costs = torch.cdist(x.detach().flatten(1).double(), y.detach().flatten(1).double()).square().cpu().numpy()
    rows, columns = linear_sum_assignment(costs)
    return math.sqrt(costs[rows, columns].mean())


def sliced_wasserstein2(x: Tensor, y: Tensor, generator: torch.Generator, num_projections: int = 256) -> float:
    """Root of the mean squared W2 over random directions, scaled by sqrt(d) so that a shift counts at its length.

    ``x``, ``y``: equally many points (n, d), any n.
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} points: need equal numbers")
    x, y = x.detach().flatten(1).double(), y.detach().flatten(1).double()
    shape = (x.shape[1], num_projections)
    directions = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64).to(x.device)
    directions = directions / directions.norm(dim=0)
    gaps = (x @ directions).sort(0).values - (y @ directions).sort(0).values
    return math.sqrt(float(gaps.square().mean()) * x.shape[1])


def within_mode_w2(x: Tensor, y: Tensor, centres: Tensor, limit: int = 500) -> float:
    """Root of the mean over modes of W2^2 between the points of ``x`` and of ``y`` nearest to the same centre (k, d).

    In each mode the first ``min(counts, limit)`` points of both are compared, so unequal mode counts play no part
    (``mode_counts`` judges those). Modes that one side misses are left out; ValueError when none remains.
    """
    from toolkit.metrics.mixture import nearest_centre

    x_modes, y_modes = nearest_centre(x, centres), nearest_centre(y, centres)
    squares = []
    for mode in range(len(centres)):
        ours, theirs = x[x_modes == mode][:limit], y[y_modes == mode][:limit]
        num = min(len(ours), len(theirs))
        if num:
            squares.append(wasserstein2(ours[:num], theirs[:num]) ** 2)
    if not squares:
        raise ValueError("no mode has points on both sides")
    return math.sqrt(sum(squares) / len(squares))
