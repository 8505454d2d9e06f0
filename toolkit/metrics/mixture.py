"""Closed forms for equal-weight isotropic Gaussian mixtures, and how well samples keep to the modes.

Symbols: data y = mu_c + s e with c uniform over k centres mu (k, d); noisy x = y + sigma n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

OFF_MODE_STDS = 4.0


@dataclass(frozen=True)
class ModeCounts:
    """Samples per mode, Pearson's chi-squared against equal shares, and the p-value of that under random draws."""

    counts: list[int]
    chi2: float
    p_value: float


def posterior_mean(
    x: Tensor, sigma: Tensor | float, centres: Tensor, std: float, components: Tensor | None = None
) -> Tensor:
    """E[y | x], or E[y | x, component] where ``components`` int64 (n,) are known: the exact denoiser.

    E[y | x, c] = (s^2 x + sigma^2 mu_c) / (s^2 + sigma^2), weighted by
    p(c | x) ~ exp(-|x - mu_c|^2 / 2 (s^2 + sigma^2)).
    x (n, d); sigma a number or (n,). Differentiable in x, in x's dtype.
    """
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1)
    centres = centres.to(x)
    total = std**2 + sigma**2
    if components is not None:
        mean = centres[components]
    else:
        squared = (x[:, None, :] - centres).square().sum(-1)
        mean = torch.softmax(-squared / (2 * total), dim=1) @ centres
    return (std**2 * x + sigma**2 * mean) / total


def bayes_loss(
    sigma: float,
    centres: Tensor,
    std: float,
    generator: torch.Generator,
    num: int = 100_000,
    component_known: bool = False,
) -> float:
    """Least possible mean squared error per coordinate of a denoiser at noise level ``sigma``.

    With the component known it is s^2 sigma^2 / (s^2 + sigma^2) exactly; without, a Monte-Carlo mean over ``num`` draws
    of the posterior variance (unbiased, and quieter than the error of single draws).
    """
    within = std**2 * sigma**2 / (std**2 + sigma**2)
    if component_known:
        return within
    device = generator.device
    centres = centres.to(device, torch.float64)
    spread = math.sqrt(std**2 + sigma**2)
    components = torch.randint(len(centres), (num,), generator=generator, device=device)
    noise = torch.randn(num, centres.shape[1], generator=generator, device=device, dtype=torch.float64)
    x = centres[components] + spread * noise
    squared = (x[:, None, :] - centres).square().sum(-1)
    weights = torch.softmax(-squared / (2 * spread**2), dim=1)
    mean = weights @ centres
    variance = (weights @ centres.square() - mean.square()).mean()  # of mu_c given x, per coordinate
    return within + float(variance) * (sigma**2 / spread**2) ** 2


def nearest_centre(x: Tensor, centres: Tensor) -> Tensor:
    """Index of the centre nearest to each point: int64 (n,)."""
    return torch.cdist(x.detach().double(), centres.to(x.device).double()).argmin(1)


def off_mode_fraction(x: Tensor, centres: Tensor, std: float, num_stds: float = OFF_MODE_STDS) -> float:
    """Share of points (n, d) farther than ``num_stds`` standard deviations from every centre."""
    nearest = torch.cdist(x.detach().double(), centres.to(x.device).double()).amin(1)
    return float((nearest > num_stds * std).double().mean())


def mode_counts(x: Tensor, centres: Tensor) -> ModeCounts:
    """Points per nearest centre against equal shares; the expected chi2 of random draws is k - 1."""
    from scipy.special import chdtrc

    counts = torch.bincount(nearest_centre(x, centres).cpu(), minlength=len(centres))
    expected = len(x) / len(centres)
    statistic = float((counts.double() - expected).square().sum() / expected)
    return ModeCounts(counts.tolist(), statistic, float(chdtrc(len(centres) - 1, statistic)))
