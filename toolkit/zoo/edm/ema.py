"""The exponential moving average of a network's weights, on EDM's half-life schedule."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """``ema.model`` is the averaged copy of ``model``, in eval mode and without gradients.

    The half-life is counted in training images; while few have been seen it is cut to ``ramp_up_ratio`` times their
    number, so that the first weights are soon forgotten (Karras et al. 2022, appendix F.2; ImageNet-64: 50e6 images,
    ratio 0.05; None = no ramp-up). Buffers are copied.
    """

    def __init__(self, model: nn.Module, half_life_images: float, ramp_up_ratio: float | None = 0.05) -> None:
        if not half_life_images > 0:
            raise ValueError(f"half_life_images={half_life_images}: must be greater than 0")
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.half_life_images, self.ramp_up_ratio = half_life_images, ramp_up_ratio
        self.num_images = 0
        self._averaged: list[Tensor] = [*self.model.parameters()]
        self._current: list[Tensor] = [*model.parameters()]
        self._buffers: list[Tensor] = [*self.model.buffers()]
        self._current_buffers: list[Tensor] = [*model.buffers()]

    @torch.no_grad()
    def update(self, num_images_per_step: int) -> None:
        """Take in the weights after one optimiser step on ``num_images_per_step`` images (over all processes)."""
        torch._foreach_lerp_(self._averaged, self._current, 1 - self.decay(num_images_per_step))
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._current_buffers)
        self.num_images += num_images_per_step

    def decay(self, num_images_per_step: int) -> float:
        """The weight that the next update leaves on the average."""
        half_life = self.half_life_images
        if self.ramp_up_ratio is not None:
            half_life = min(half_life, self.num_images * self.ramp_up_ratio)
        return 0.5 ** (num_images_per_step / max(half_life, 1e-8))

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the weights and buffers of ``model`` with the averaged ones."""
        model.load_state_dict(self.model.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "num_images": self.num_images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.num_images = int(state["num_images"])
