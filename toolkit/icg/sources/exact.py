"""A model without error: the exact class-conditional denoiser of Gaussians on a ring, one per class (``model=exact``).

What guidance does to exact scores, where nothing was learned: ICG is then not classifier-free guidance (Sadat et al.
2025, theorem A.2), and how far it is depends on the number of classes, their overlap and the noise level.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.data.sets import Dataset, GaussianMixture, MemorySplit
from toolkit.errors import UserError
from toolkit.icg.config import Exact, SampleICG
from toolkit.icg.guiders.in_denoisers import GuidedDenoiser
from toolkit.icg.labels_and_prompts import read_labels
from toolkit.icg.methods import Guidance
from toolkit.icg.sources.base import Request, Source
from toolkit.metrics.mixture import posterior_mean
from toolkit.runs.seeds import generator
from toolkit.show.table import number_in_key
from toolkit.zoo.edm.samplers import edm_sigmas, heun

RADIUS = 3.0
NUM_POINTS = 5000
SIGMAS = (0.1, 0.3, 1.0, 3.0, 10.0)
NUM_FOR_BIAS = 4000


class ExactDenoiser(nn.Module):
    """E[y | x, c] of an equal-weight mixture with one component per class; an all-zero one-hot row is the marginal."""

    def __init__(self, mixture: GaussianMixture) -> None:
        super().__init__()
        self.mixture, self.num_classes = mixture, len(mixture.centres)

    def forward(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor) -> Tensor:
        """x (B, 2), labels int64 (B,), or one-hot (B, K)."""
        if class_labels.is_floating_point():
            marginal = posterior_mean(x, sigma, self.mixture.centres, self.mixture.std)
            known = class_labels.sum(-1, keepdim=True) > 0
            return torch.where(known, self._of_class(x, sigma, class_labels.argmax(-1)), marginal)
        return self._of_class(x, sigma, class_labels)

    def _of_class(self, x: Tensor, sigma: Tensor | float, labels: Tensor) -> Tensor:
        return posterior_mean(x, sigma, self.mixture.centres, self.mixture.std, labels)


def ring_mixture(config: Exact) -> GaussianMixture:
    """K equal Gaussians on a circle of radius 3."""
    angles = torch.arange(config.num_classes, dtype=torch.float64) * (2 * math.pi / config.num_classes)
    return GaussianMixture(RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1), config.std)


def exact_dataset(config: SampleICG) -> Dataset:
    """Points drawn from the mixture itself, a draw for each split."""
    mixture = ring_mixture(config.exact)
    splits: dict[str, Any] = {}
    for name in ("train", "valid", "test"):
        points, labels = mixture.sample(NUM_POINTS // config.exact.num_classes, generator(config.seed, "exact", name))
        splits[name] = MemorySplit(points.float(), np.asarray(labels))
    names = tuple(map(str, range(config.exact.num_classes)))
    return Dataset("exact", **splits, num_classes=len(names), class_names=names, licence="", source="", mixture=mixture)


class ExactSource(Source):
    """The exact denoiser, sampled as a learned one is."""

    name, shape = "exact", (2,)

    def __init__(self, config: SampleICG, device: torch.device) -> None:
        self.config, self.device = config, device
        self.denoiser = ExactDenoiser(ring_mixture(config.exact))
        self.num_classes = self.denoiser.num_classes
        self.class_names = tuple(map(str, range(self.num_classes)))
        self.labels = list(range(self.num_classes))
        if config.labels is not None:
            self.labels = read_labels(config.labels, self.num_classes, {})

    def refuse(self, guidance: Guidance) -> None:
        if guidance.guides and (not guidance.on_condition or guidance.on_time):
            raise UserError(f"guidance={guidance.method}: model=exact has no time embedding and no weaker version")

    def draw(
        self, guidance: Guidance, scale: float, request: Request, num_steps: int | None = None
    ) -> tuple[Tensor, float]:
        sampling = self.config.sampling
        num_steps = num_steps or sampling.num_steps
        noise = torch.stack([torch.randn(2, generator=one) for one in request.generators("noise")])
        labels = torch.tensor([self.label_of(number) for number in request.numbers])
        null = {"class_labels": None} if guidance.needs_null else None
        denoise = GuidedDenoiser(
            self.denoiser, guidance.make(scale, request.seeds("guidance")), labels, None, null,
            2 * num_steps - 1, self.config.batched,
        )  # fmt: skip
        sigmas = edm_sigmas(num_steps, sampling.sigma_min, sampling.sigma_max, sampling.rho)
        points = heun(denoise, noise.double() * sampling.sigma_max, sigmas)
        return points.float(), float(denoise.num_calls)

    def extra_metrics(self) -> dict[str, float]:
        """``bias.sigma_S``: rms of (mean over classes - marginal) over rms of the guidance direction, at noise level S.

        0 would mean that ICG follows classifier-free guidance on average; it does only where the noise hides the class.
        """
        mixture, random = self.denoiser.mixture, generator(self.config.seed, "bias")
        points, labels = mixture.sample(NUM_FOR_BIAS // self.num_classes, random)
        known, found = torch.as_tensor(labels), {}
        for sigma in SIGMAS:
            noise = torch.randn(points.shape, generator=random, dtype=torch.float64)
            x = points + sigma * noise
            marginal = posterior_mean(x, sigma, mixture.centres, mixture.std)
            direction = posterior_mean(x, sigma, mixture.centres, mixture.std, known) - marginal
            each = [posterior_mean(x, sigma, mixture.centres, mixture.std, torch.full_like(known, k))
                    for k in range(self.num_classes)]  # fmt: skip
            bias = torch.stack(each).mean(0) - marginal
            found[f"bias.sigma_{number_in_key(sigma)}"] = float(
                bias.square().sum(-1).mean().sqrt() / direction.square().sum(-1).mean().sqrt()
            )
        return found
