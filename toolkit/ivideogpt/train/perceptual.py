"""Perceptual distances of the tokenizer's loss: LPIPS from its own weights, or a named substitute that needs none.

A run records which distance it used, and what stands in for LPIPS is never called so.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.errors import UserError
from toolkit.zoo.lpips import load_lpips, unweighted_lpips

GRADIENT_SCALES = 3


class GradientDistance(nn.Module):
    """Mean absolute difference of image gradients at three scales (1, 1/2, 1/4): a substitute, not LPIPS."""

    name = "multi-scale gradient difference"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance per image, [N], of images (N, 3, H, W) in [0, 1]."""
        total = x.new_zeros(len(x))
        for scale in range(GRADIENT_SCALES):
            for axis in (-1, -2):
                total = total + (x.diff(dim=axis) - y.diff(dim=axis)).abs().mean((1, 2, 3))
            if scale + 1 < GRADIENT_SCALES:
                x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        return total


def make_distance(kind: str, path: str | None) -> Any:
    """The distance that ``tokenizer_loss.perceptual`` names; None for none. Raises UserError as ``load_lpips``."""
    if kind == "lpips" and path is None:
        raise UserError(
            "tokenizer_loss.perceptual_path: LPIPS needs its weights, a folder with VGG16's features and the linear "
            "heads; without them use tokenizer_loss.perceptual=gradients or none"
        )
    if kind == "lpips":
        assert path is not None
        return load_lpips(path)
    return GradientDistance() if kind == "gradients" else None


def unweighted_distance(kind: str) -> Any:
    """As ``make_distance`` without LPIPS's weights: what it costs, not what it says."""
    return unweighted_lpips() if kind == "lpips" else make_distance(kind, None)
