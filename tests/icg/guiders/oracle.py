"""Denoisers whose scores are exact: a Gaussian mixture with known classes, and one Gaussian with a time embedding.

p(x) = sum_k pi_k N(mu_k, v I), z = x + sigma n, V = v + sigma^2, s_k = (mu_k - z) / V, D_k = z + sigma^2 s_k.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from toolkit.icg import guided_denoiser


class Mixture(nn.Module):
    """D(z; sigma, class) in float64; class K is the marginal, so it plays the null class exactly."""

    def __init__(self, centres, variance: float, weights=None) -> None:
        super().__init__()
        self.centres = torch.as_tensor(centres, dtype=torch.float64)
        self.num_classes, self.variance = len(self.centres), variance
        weights = torch.ones(self.num_classes) if weights is None else torch.as_tensor(weights)
        self.weights = weights.double() / weights.double().sum()
        self.calls = 0

    def posterior(self, z: Tensor, sigma: float) -> Tensor:
        squared = (z[:, None] - self.centres).square().sum(-1)
        return torch.softmax(self.weights.log() - squared / (2 * (self.variance + sigma**2)), dim=1)

    def forward(self, x: Tensor, sigma: float, class_labels: Tensor | None = None) -> Tensor:
        self.calls += 1
        null = self.num_classes if class_labels is None else class_labels
        rows = self.centres[torch.as_tensor(null).clamp(max=self.num_classes - 1).expand(len(x))]
        is_null = (torch.as_tensor(null) == self.num_classes).expand(len(x))
        if is_null.any():
            rows = torch.where(is_null[:, None], self.posterior(x, sigma) @ self.centres, rows)
        return x + sigma**2 * (rows - x) / (self.variance + sigma**2)

    def score(self, z: Tensor, sigma: float, guider, labels: Tensor) -> Tensor:
        """The score that the public guider makes of this denoiser."""
        return (guided_denoiser(self, guider, labels)(z, sigma) - z) / sigma**2

    def log_density(self, z: Tensor, sigma: float) -> Tensor:
        total = self.variance + sigma**2
        squared = (z[:, None] - self.centres).square().sum(-1)
        constant = z.shape[1] / 2 * torch.log(torch.tensor(2 * torch.pi * total))
        return torch.logsumexp(self.weights.log() - squared / (2 * total), dim=1) - constant

    def sample(self, num: int, sigma: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.multinomial(self.weights, num, replacement=True, generator=generator)
        noise = torch.randn(num, self.centres.shape[1], generator=generator, dtype=torch.float64)
        return self.centres[labels] + (self.variance + sigma**2) ** 0.5 * noise, labels


class TimedGaussian(nn.Module):
    """D(z; tau) = (v z + tau mu) / (v + tau) of one Gaussian; tau = sigma^2 passes through ``time_embedding``."""

    def __init__(self, mean: float, variance: float) -> None:
        super().__init__()
        self.mean, self.variance = mean, variance
        self.time_embedding = nn.Identity()

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        tau = self.time_embedding(torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1) ** 2)
        return (self.variance * x + tau * self.mean) / (self.variance + tau)


def euler(denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """dx/dsigma = (x - D) / sigma, first order."""
    levels = sigmas.tolist()
    for sigma, sigma_next in pairwise(levels):
        x = x + (sigma_next - sigma) * (x - denoise(x, sigma)) / sigma
    return x
