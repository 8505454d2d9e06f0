"""Structural similarity (Wang et al. 2004) with the usual Gaussian window: 11 pixels, sigma 1.5."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

K1, K2 = 0.01, 0.03


def ssim(x: Tensor, reference: Tensor, data_range: float = 1.0, window: int = 11, sigma: float = 1.5) -> Tensor:
    """SSIM per image, [N], of images (N, C, H, W) whose values span ``data_range``; windows that lie inside only.

    Images smaller than the window use the largest odd one that fits.
    """
    if x.shape != reference.shape:
        raise ValueError(f"shapes {tuple(x.shape)} and {tuple(reference.shape)} differ")
    channels = x.shape[1]
    edge = min(window, *(size - 1 + size % 2 for size in x.shape[-2:]))
    places = torch.arange(edge, dtype=x.dtype, device=x.device) - edge // 2
    line = torch.exp(-places.square() / (2 * sigma**2))
    line = line / line.sum()
    kernel = (line[:, None] * line).expand(channels, 1, edge, edge)

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(image, kernel, groups=channels)

    mean_x, mean_y = blur(x), blur(reference)
    var_x, var_y = blur(x * x) - mean_x.square(), blur(reference * reference) - mean_y.square()
    covariance = blur(x * reference) - mean_x * mean_y
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).flatten(1).mean(1)
