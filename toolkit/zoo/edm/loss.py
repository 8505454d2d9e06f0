"""The denoising loss of EDM (Karras et al. 2022, eq. 2 and table 1), in the pieces that trainings put together.

Everything random comes from the default generator, in the order of the calls, unless it is given. Shapes: B batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def item_bytes(shape: Sequence[int]) -> int:
    """What a training step holds of one sample at the least: y, the noise and the output in float32, and an index."""
    return 3 * 4 * math.prod(shape) + 8


def add_noise(
    y: Tensor, p_mean: float, p_std: float, drawn: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Clean samples y (B, ...) with noise of deviation sigma, and sigma (B,): ln sigma ~ N(p_mean, p_std^2).

    drawn: standard normal numbers, (B,) for sigma and (B, ...) for the noise.
    """
    level, noise = drawn or (torch.randn(len(y), device=y.device), torch.randn_like(y))
    sigma = (level * p_std + p_mean).exp()
    return y + noise * sigma.view(-1, *[1] * (y.dim() - 1)), sigma


def edm_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """lambda(sigma) of the squared error: with it a network that ignores its input has a loss of about 1."""
    return (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()


def weighted_error(denoised: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Mean over the batch of ``weight`` (B,) times the mean squared error of each sample (B, ...)."""
    return (weight * (denoised - y).square().flatten(1).mean(1)).mean()


def drop_labels(class_labels: Tensor, num_classes: int, share: float, uniform: Tensor | None = None) -> Tensor:
    """int64 (B,) -> one-hot float32 (B, num_classes), a ``share`` of the rows all zeros: no label.

    uniform: (B, 1), uniform numbers that decide it.
    """
    one_hot = F.one_hot(class_labels, num_classes).float()
    if uniform is None:
        uniform = torch.rand(len(one_hot), 1, device=one_hot.device)
    return one_hot * (uniform >= share)
