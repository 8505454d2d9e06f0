"""Guidance on the latents of DisCo-Diff: which latents the denoiser sees at which noise level, and at what cost."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class LatentGuidance:
    """A denoiser with its latents and class labels fixed: ``guided(x, sigma) -> D`` for the samplers of the zoo.

    Guidance on the latents z (Xu et al. 2024, appendix B, read so that cfg_scale 0 is plain conditional):

        D = D(x, z) + cfg_scale * (D(x, z) - D(x, null))

    latents: int64 (B, m), or float (B, m, d) for continuous ones. class_labels: int64 (B,) or one-hot (B, K).
    cfg_scale: 0 one evaluation a call, -1 the null branch, 1 the paper's headline. Within ``cfg_interval`` =
    (lowest sigma, highest sigma), both included, a scale other than 0 costs two evaluations, made in one batch.
    latents_off_below: where sigma is less, z is null and nothing is guided.
    switch: (other latents, sigma): where sigma is less, z is these instead.
    null_denoiser: a network without latents that takes the place of the null branch, in guidance and below
    ``latents_off_below`` (a well-trained base model guides better than a null branch that saw few samples).

    ``num_evaluations`` counts network evaluations per sample since construction. Raises ValueError where guidance or a
    switch is asked for without latents.
    """

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        latents: Tensor | None = None,
        class_labels: Tensor | None = None,
        cfg_scale: float = 0.0,
        cfg_interval: tuple[float, float] = (0.0, float("inf")),
        latents_off_below: float = 0.0,
        switch: tuple[Tensor, float] | None = None,
        null_denoiser: Callable[..., Tensor] | None = None,
    ) -> None:
        if latents is None and (cfg_scale != 0 or switch is not None):
            raise ValueError("guidance and switching act on latents: latents must be given")
        self.denoiser, self.latents, self.class_labels = denoiser, latents, class_labels
        self.cfg_scale, self.cfg_interval = cfg_scale, cfg_interval
        self.latents_off_below, self.switch = latents_off_below, switch
        self.null_denoiser = null_denoiser
        self.num_evaluations = 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """The guided prediction like x (B, *shape) at noise level ``sigma`` > 0."""
        latents = self._latents_at(sigma)
        low, high = self.cfg_interval
        if latents is None:
            self.num_evaluations += 1
            return self._null(x, sigma)
        if self.cfg_scale == 0 or not low <= sigma <= high:
            self.num_evaluations += 1
            return self._call(self.denoiser, x, sigma, latents=latents)
        self.num_evaluations += 2
        denoised, denoised_null = self._both(x, sigma, latents)
        return torch.lerp(denoised_null, denoised, 1 + self.cfg_scale)

    def _latents_at(self, sigma: float) -> Tensor | None:
        if self.latents is None or sigma < self.latents_off_below:
            return None
        if self.switch is not None and sigma < self.switch[1]:
            return self.switch[0]
        return self.latents

    def _both(self, x: Tensor, sigma: float, latents: Tensor) -> tuple[Tensor, Tensor]:
        if self.null_denoiser is not None:
            return self._call(self.denoiser, x, sigma, latents=latents), self._null(x, sigma)
        drop = torch.arange(2 * len(x), device=x.device) >= len(x)
        labels = None if self.class_labels is None else torch.cat([self.class_labels] * 2)
        twice = torch.cat([x, x]), torch.as_tensor(sigma, dtype=torch.float32, device=x.device)
        both = self.denoiser(*twice, class_labels=labels, latents=torch.cat([latents] * 2), drop=drop)
        denoised, denoised_null = both.chunk(2)
        return denoised, denoised_null

    def _null(self, x: Tensor, sigma: float) -> Tensor:
        return self._call(self.denoiser if self.null_denoiser is None else self.null_denoiser, x, sigma)

    def _call(self, network: Callable[..., Tensor], x: Tensor, sigma: float, **latents: Tensor) -> Tensor:
        sigma_tensor = torch.as_tensor(sigma, dtype=torch.float32, device=x.device)
        return network(x, sigma_tensor, class_labels=self.class_labels, **latents)
