"""What the up-scaled input knows better than a diffusion model: its colours. Absent upstream.

``wavelet`` takes the low frequencies of the input and leaves the model its details; ``adain`` takes mean and contrast
of every channel. For in-between frames the input is what motion compensation makes of its neighbours.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.venhancer.clips.classic import to_pixels, to_tensor

LEVELS = 5
REACH = 2**LEVELS - 1  # rows around a row that its low band depends on
BAND = 128  # rows fixed at a time


def fix_colour(pixels: np.ndarray, guide: np.ndarray, kind: str, device: str | torch.device = "cpu") -> np.ndarray:
    """``pixels`` in the colours of ``guide``; both uint8 RGB (h, w, 3). ``kind``: none, wavelet or adain."""
    if kind == "none":
        return pixels
    if pixels.shape != guide.shape:
        raise ValueError(f"shapes {pixels.shape} and {guide.shape} differ")
    fixed = np.empty_like(pixels)
    moments = [*_moments(pixels, device), *_moments(guide, device)] if kind == "adain" else None
    reach = REACH if kind == "wavelet" else 0
    for top in range(0, len(pixels), BAND):  # of a large frame, floats of all rows would take a GiB
        stop = min(top + BAND, len(pixels))
        first, last = max(0, top - reach), min(len(pixels), stop + reach)
        x, wanted = (to_tensor(frame[first:last], device) for frame in (pixels, guide))
        y = adain(x, *moments) if moments else wavelet(x, wanted)
        fixed[top:stop] = to_pixels(y[:, :, top - first : stop - first])
    return fixed


def _moments(frame: np.ndarray, device: str | torch.device) -> list[Tensor]:
    """Mean and standard deviation (1, 3, 1, 1) of every channel, from exact sums of whole numbers."""
    counts = np.stack([np.bincount(frame[..., channel].ravel(), minlength=256) for channel in range(3)])
    levels = np.arange(256)
    mean = counts @ levels / counts.sum(1)
    deviation = np.sqrt((counts @ levels**2 / counts.sum(1) - mean**2).clip(0))
    return [torch.from_numpy(one).float().view(1, 3, 1, 1).to(device) for one in (mean, deviation)]


@torch.no_grad()
def wavelet(x: Tensor, guide: Tensor) -> Tensor:
    """High bands of ``x`` (n, 3, h, w), low band of ``guide``."""
    return x + low_pass(guide - x, LEVELS)


def adain(x: Tensor, mean: Tensor, deviation: Tensor, wanted_mean: Tensor, wanted_deviation: Tensor) -> Tensor:
    """``x`` (n, c, h, w) with the mean and standard deviation of every channel moved to those wanted."""
    return (x - mean) / (deviation + 1e-5) * wanted_deviation + wanted_mean


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
