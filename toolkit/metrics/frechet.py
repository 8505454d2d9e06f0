"""The Fréchet distance between Gaussians fitted to two sets of features, and its same-size floor.

Samples are clamped to [-1, 1] before their features are taken, as saving them as 8-bit pictures would do; the caller
clamps. The distance is biased upwards by about (number of features)^2 / n and comparable only at equal n: always quote
the floor beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianStats:
    """Mean (d,) and unbiased covariance (d, d) of ``num`` feature vectors, float64."""

    mean: Tensor
    covariance: Tensor
    num: int


@dataclass(frozen=True)
class Floor:
    """Distances of real data from real data: mean and sd over ``num_draws`` subsets of ``num`` items."""

    mean: float
    sd: float
    num: int
    num_draws: int


def gaussian_stats(features: Tensor) -> GaussianStats:
    """Statistics of ``features`` (n, d) with n >= 2; ValueError for fewer or for values that are not finite."""
    x = features.detach().cpu().double()  # small work, and not every accelerator has float64
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"features of shape {tuple(x.shape)}: need (n, d) with n >= 2")
    if not torch.isfinite(x).all():
        raise ValueError("features hold values that are not finite")
    mean = x.mean(0)
    centred = x - mean
    return GaussianStats(mean, centred.T @ centred / (len(x) - 1), len(x))


def frechet_distance(a: Tensor | GaussianStats, b: Tensor | GaussianStats) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Heusel et al. 2017, eq. 6), in float64.

    The trace of the root is the sum of the roots of the eigenvalues of S_a^(1/2) S_b S_a^(1/2), which is symmetric and
    stays well defined when a covariance is singular. ``a``, ``b``: features (n, d) or their statistics.
    """
    a = a if isinstance(a, GaussianStats) else gaussian_stats(a)
    b = b if isinstance(b, GaussianStats) else gaussian_stats(b)
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    product = root @ b.covariance @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(0.0, float((a.mean - b.mean).square().sum() + spread))


def frechet_floor(
    train: Tensor, reference: Tensor | GaussianStats, num: int, generator: torch.Generator, num_draws: int = 3
) -> Floor:
    """Distance of ``num`` real training items from the same reference that samples are scored against.

    ``train``: features (n, d). With fewer than ``num`` of them all are used, and ``Floor.num`` tells.
    """
    reference = reference if isinstance(reference, GaussianStats) else gaussian_stats(reference)
    num = min(num, len(train))
    num_draws = 1 if num == len(train) else num_draws
    draws = []
    for _ in range(num_draws):
        chosen = torch.randperm(len(train), generator=generator, device=generator.device)[:num].to(train.device)
        draws.append(frechet_distance(train[chosen], reference))
    values = torch.tensor(draws, dtype=torch.float64)
    return Floor(float(values.mean()), float(values.std()) if num_draws > 1 else 0.0, num, num_draws)
