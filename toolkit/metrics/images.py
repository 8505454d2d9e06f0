"""Pixel-wise measures of images in [-1, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def psnr(x: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB per image (n, ...), peak-to-peak range 2: (n,), infinite for equal images."""
    if x.shape != reference.shape:
        raise ValueError(f"shapes {tuple(x.shape)} and {tuple(reference.shape)} differ")
    error = (x.detach().double() - reference.detach().double()).flatten(1).square().mean(1)
    return 10 * (math.log10(4.0) - torch.log10(error))
