"""What the up-scaled input knows better than a diffusion model: colour, contrast, where it is smooth. Absent upstream.

``wavelet`` takes the low frequencies of the input and leaves the model its details; ``adain`` takes mean and contrast
of every channel. ``damp_detail`` holds back details where the input is smooth: a small model spreads the contrast that
it saw in training over everything. For in-between frames the input is what motion compensation makes of its neighbours.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.venhancer.classic import to_pixels, to_tensor

LEVELS = 5
NEAR = 3  # wavelet bands that the local contrast is taken over: a few pixels


def fix_colour(
    pixels: np.ndarray, guide: np.ndarray, kind: str, device: str | torch.device = "cpu", detail_limit: float = 0.0
) -> np.ndarray:
    """``pixels`` in the colours of ``guide``; both uint8 RGB [h, w, 3].

    ``kind``: none, wavelet or adain. ``detail_limit``: of :func:`damp_detail`; 0 leaves details as they are.
    """
    if kind == "none" and not detail_limit:
        return pixels
    if pixels.shape != guide.shape:
        raise ValueError(f"shapes {pixels.shape} and {guide.shape} differ")
    x, wanted = to_tensor(pixels, device), to_tensor(guide, device)
    if kind != "none":
        x = {"wavelet": wavelet, "adain": adain}[kind](x, wanted)
    return to_pixels(damp_detail(x, wanted, detail_limit) if detail_limit else x)


@torch.no_grad()
def damp_detail(x: Tensor, guide: Tensor, limit: float) -> Tensor:
    """``guide`` plus what ``x`` adds times c / (c + limit), c the local contrast of ``guide`` in grey levels.

    Where the guide is flat nothing is added; where its contrast is ``limit``, half of it. (n, 3, h, w), 0 to 255.
    """
    grey = guide.mean(1, keepdim=True)
    contrast = (low_pass(grey.square(), NEAR) - low_pass(grey, NEAR).square()).clamp(min=0).sqrt()
    return guide + (x - guide) * contrast / (contrast + limit)


@torch.no_grad()
def wavelet(x: Tensor, guide: Tensor) -> Tensor:
    """High bands of ``x`` (n, 3, h, w), low band of ``guide``."""
    return x + low_pass(guide - x, LEVELS)


@torch.no_grad()
def adain(x: Tensor, guide: Tensor) -> Tensor:
    """``x`` with the mean and standard deviation of every channel of ``guide``."""
    mean, deviation = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True)
    return (x - mean) / (deviation + 1e-5) * guide.std((2, 3), keepdim=True) + guide.mean((2, 3), keepdim=True)


def low_pass(x: Tensor, levels: int) -> Tensor:
    """``x`` (n, c, h, w) without its ``levels`` finest wavelet bands: an a trous cascade of [1 2 1] / 4."""
    kernel = x.new_tensor([1.0, 2.0, 1.0]) / 4
    channels = x.shape[1]
    for level in range(levels):
        step = 2**level
        across = kernel.view(1, 1, 1, 3).expand(channels, 1, 1, 3)
        padded = F.pad(x, (step, step, step, step), mode="replicate")
        x = F.conv2d(padded, across, dilation=(1, step), groups=channels)
        x = F.conv2d(x, across.transpose(2, 3), dilation=(step, 1), groups=channels)
    return x
