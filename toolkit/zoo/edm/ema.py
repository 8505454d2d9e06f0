"""Exponential moving averages of a network's weights: EDM's half-life schedule, and the base of others."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """``average.model`` is the averaged copy of ``model``, in eval mode and without gradients. Buffers are copied."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self._of = copy.deepcopy(model).eval().requires_grad_(False), model
        self.num_images = 0

    @torch.no_grad()
    def update(self, num_images_per_step: int) -> None:
        """Take in the weights after one optimiser step on ``num_images_per_step`` images (over all processes)."""
        averaged, current, buffers, current_buffers = self._tensors
        torch._foreach_lerp_(averaged, current, 1 - self.decay(num_images_per_step))
        if buffers:
            torch._foreach_copy_(buffers, current_buffers)
        self.num_images += num_images_per_step

    @functools.cached_property
    def _tensors(self) -> tuple[list[Tensor], ...]:
        """Parameters and buffers of both, listed at the first update: by then they may be spread over processes."""
        one, other = self.model, self._of
        return [*one.parameters()], [*other.parameters()], [*one.buffers()], [*other.buffers()]

    def decay(self, num_images_per_step: int) -> float:
        """The weight that the next update leaves on the average."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "num_images": self.num_images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.num_images = int(state["num_images"])


class EMA(Average):
    """EDM's average, whose half-life is counted in training images.

    While few have been seen it is cut to ``ramp_up_ratio`` times their number, so that the first weights are soon
    forgotten (Karras et al. 2022, appendix F.2; ImageNet-64: 50e6 images, ratio 0.05; None = no ramp-up).
    """

    def __init__(self, model: nn.Module, half_life_images: float, ramp_up_ratio: float | None = 0.05) -> None:
        if not half_life_images > 0:
            raise ValueError(f"half_life_images={half_life_images}: must be greater than 0")
        super().__init__(model)
        self.half_life_images, self.ramp_up_ratio = half_life_images, ramp_up_ratio

    def decay(self, num_images_per_step: int) -> float:
        half_life = self.half_life_images
        if self.ramp_up_ratio is not None:
            half_life = min(half_life, self.num_images * self.ramp_up_ratio)
        return 0.5 ** (num_images_per_step / max(half_life, 1e-8))
