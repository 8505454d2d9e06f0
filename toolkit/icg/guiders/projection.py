"""Adaptive projected guidance (Sadat et al. 2024, "Eliminating Oversaturation"): momentum, norm limit, projection.

It acts on the difference of two predictions of any kind, as in diffusers' own guiders; the paper applies it to
denoised samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.zoo.precision import widest_float


class Projection:
    """difference -> orthogonal part + eta * part parallel to the prediction, after momentum and a limit on its norm.

    eta=1, norm=0 (no limit) and momentum=0 leave the difference as it is.
    """

    def __init__(self, eta: float = 1.0, norm: float = 0.0, momentum: float = 0.0) -> None:
        self.eta, self.norm, self.momentum = eta, norm, momentum
        self.averages: dict[str, Tensor] = {}

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return self.eta == 1 and self.norm == 0 and self.momentum == 0

    def restart(self) -> None:
        """Forget the momentum: a new run begins."""
        self.averages = {}

    def __call__(self, difference: Tensor, prediction: Tensor, key: str) -> Tensor:
        """``key`` tells apart the directions that keep a momentum of their own."""
        if self.is_identity:
            return difference
        if self.momentum:
            difference = difference + self.momentum * self.averages.get(key, torch.zeros_like(difference))
            self.averages[key] = difference
        axes = tuple(range(1, difference.dim()))
        if self.norm:
            length = difference.float().pow(2).sum(axes, keepdim=True).sqrt().clamp_min(1e-12)
            difference = difference * (self.norm / length).clamp(max=1).to(difference.dtype)
        precise = widest_float(difference.device)
        d, p = difference.to(precise), prediction.to(precise)
        parallel = (d * p).sum(axes, keepdim=True) / p.pow(2).sum(axes, keepdim=True).clamp_min(1e-12) * p
        return (d + (self.eta - 1) * parallel).to(difference.dtype)
