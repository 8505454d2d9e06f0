"""Guiding a model with a worse version of itself (Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version
of Itself", eq. 3), for comparison: D_weak + w (D - D_weak)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from toolkit.icg.clock import NoiseLevels
from toolkit.icg.config import Guidance
from toolkit.icg.interval import Interval


class WeakModelDenoiser:
    """``denoise(x, sigma)`` of two networks with the same conditions; ``num_calls`` counts calls per sample."""

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        weak: Callable[..., Tensor],
        scale: float,
        guidance: Guidance,
        conditions: Mapping[str, Any],
    ) -> None:
        self.denoiser, self.weak, self.scale, self.conditions = denoiser, weak, scale, dict(conditions)
        self.interval = Interval(
            t_min=guidance.t_min, t_max=guidance.t_max, sigma_min=guidance.sigma_min, sigma_max=guidance.sigma_max
        )
        self.num_calls = 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """D_hat (B, ...) at noise level ``sigma``."""
        strong = self.denoiser(x, sigma, **self.conditions)
        self.num_calls += 1
        if self.scale == 1 or not self.interval.holds_time(sigma, NoiseLevels()):
            return strong
        self.num_calls += 1
        return torch.lerp(self.weak(x, sigma, **self.conditions), strong, self.scale)
