"""Frequency-decoupled guidance (FDG): classifier-free guidance with a scale for each band of spatial frequencies.

Sadat, Vontobel, Salehi, Weber 2025, "Guidance in the Frequency Domain Enables High-Fidelity Sampling at Low CFG Scales"
(arXiv:2506.19713), algorithms 1 and 2: both predictions are taken apart into a Laplacian pyramid, each level is guided
with a scale of its own, and the pyramid is put together again. It is linear, so the difference alone is taken apart:

    D_hat = D_null + sum_l w_l L_l(D_cond - D_null)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from torch.nn import functional as F

from toolkit.errors import UserError
from toolkit.icg.guiders.base import Branch, Inputs, WeakBranchGuidance, check_scale
from toolkit.icg.guiders.interval import Interval

KERNEL = (1, 4, 6, 4, 1)  # over 16, along each axis


class FrequencyDecoupledGuidance(WeakBranchGuidance):
    """Two network calls a step; reads the negative prompt or ``null``, as classifier-free guidance does.

    Args:
        guidance_scales: w of each level, the finest first; 1 leaves a level as the condition has it. The last is that
            of the lowest frequencies. The paper: low ones for these, high ones for the others.

    The rest as in IndependentConditionGuidance.

    Raises:
        UserError: a setting out of range; at the first step, predictions that are no pictures or too small for so many
            levels.
    """

    _input_predictions = ["pred_cond", "pred_uncond"]  # noqa: RUF012 (diffusers demands a list on the class)
    purpose = "fdg"

    @register_to_config
    def __init__(
        self,
        guidance_scales: Sequence[float] = (10.0, 5.0),
        t_min: float = 0.0,
        t_max: float = 1000.0,
        num_train_timesteps: float = 1000,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        guidance_rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        for scale in guidance_scales:
            check_scale("guidance_scales", scale)
        if not guidance_scales:
            raise UserError("guidance_scales=[]: give one for each level, the finest first")
        super().__init__(
            interval=Interval(start, stop, t_min, t_max, sigma_min, sigma_max),
            num_train_timesteps=num_train_timesteps,
            guidance_rescale=guidance_rescale,
            enabled=enabled,
        )
        self.guidance_scales = tuple(map(float, guidance_scales))

    def _num_branches(self) -> int:
        return int(self.is_active() and self._needs_negative())

    def _needs_negative(self) -> bool:
        return self._enabled and not all(map(self._is_off, self.guidance_scales))

    def _branches(self, data: Inputs) -> list[Branch]:
        if not self._num_branches():
            return []
        if not any(isinstance(value, tuple) and value[1] is not None for value in data.values()):
            raise UserError("frequency-decoupled guidance needs a negative prompt or a null condition")
        return [Branch("pred_uncond", self, "cfg", self.guidance_scales[0], slot=1)]

    def _combine(self, pred_cond: Tensor, means: list[tuple[Branch, Tensor]]) -> Tensor:
        if not means:
            return pred_cond
        [(_, weak)] = means
        return weak + scaled_by_frequency(pred_cond - weak, self.guidance_scales)


def scaled_by_frequency(x: Tensor, scales: Sequence[float]) -> Tensor:
    """``x`` (B, C, ..., H, W) with the levels of its Laplacian pyramid times ``scales``, the finest first.

    Frames of films are taken one by one. Equal scales multiply the whole. Raises UserError for other shapes, and for
    pictures of fewer pixels than the levels need.
    """
    side = 3 * 2 ** max(0, len(scales) - 2)  # what is blurred last has 3 pixels at least, for its mirrored border
    if x.dim() < 4 or (len(scales) > 1 and min(x.shape[-2:]) < side):
        raise UserError(
            f"frequency-decoupled guidance of {len(scales)} levels needs pictures of {side} pixels a side or more; the "
            f"network predicts {tuple(x.shape)}"
        )
    levels, level = [], x.reshape(-1, 1, *x.shape[-2:]).float()
    for _ in scales[1:]:
        coarser = _halved(level)
        levels.append(level - _enlarged(coarser, level))
        level = coarser
    made = scales[-1] * level
    for scale, fine in zip(reversed(scales[:-1]), reversed(levels), strict=True):
        made = scale * fine + _enlarged(made, fine)
    return made.view_as(x).to(x.dtype)


def _halved(x: Tensor) -> Tensor:
    size = (x.shape[-2] // 2, x.shape[-1] // 2)
    return F.interpolate(_blurred(x), size, mode="bilinear", align_corners=False)


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    """To the size of ``like``: exactly twice, or a pixel more where that is odd."""
    return _blurred(F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False))


def _blurred(x: Tensor) -> Tensor:
    """By the binomial kernel of five pixels along both axes, borders mirrored."""
    row = torch.tensor(KERNEL, dtype=x.dtype, device=x.device) / sum(KERNEL)
    padded = F.pad(x, (2, 2, 2, 2), mode="reflect")
    return F.conv2d(F.conv2d(padded, row.view(1, 1, 5, 1)), row.view(1, 1, 1, 5))
