"""Sampling (Xu et al. 2024, algorithm 3): z from the prior, then x from the z-conditional diffusion."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolkit.disco.artefact import Parts
from toolkit.disco.baselines import code_logits
from toolkit.disco.config import Sampling
from toolkit.disco.discretize import sample_codes, sample_gaussian, split_gaussian
from toolkit.disco.guidance import LatentGuidance
from toolkit.errors import UserError
from toolkit.zoo.disco.prior import UniformPrior
from toolkit.zoo.edm import samplers
from toolkit.zoo.edm.denoiser import Denoiser
from toolkit.zoo.edm.noise import SampleNoise, Source


@torch.no_grad()
def draw_latents(
    parts: Parts,
    num: int,
    sampling: Sampling,
    generator: torch.Generator | SampleNoise,
    source: str | None = None,
    class_labels: Tensor | None = None,
    data: tuple[Tensor, Tensor | None] | None = None,
    prior: Any = None,
) -> Tensor | None:
    """Latents for ``num`` samples: int64 (num, m), or float (num, m, d) for continuous ones; None without latents.

    source: "prior" (A, or ``prior`` if given), "oracle" (encoded ``data``: clean samples and known labels), "fixed"
    (sampling.fixed), "uniform"; default sampling.latents. sampling.prefix keeps the first slots fixed. generator: a
    ``SampleNoise`` draws each sample's latents from numbers of its own. class_labels: int64 (num,), needed exactly
    where the model has classes (``parts.spread_labels``).
    """
    denoiser, source = parts.denoiser, source or sampling.latents
    if denoiser.num_latents == 0:
        return None
    if source == "fixed":
        return _codes(sampling.fixed, denoiser, "sampling.fixed", denoiser.num_latents).expand(num, -1)
    if source == "oracle":
        assert data is not None
        return encode(parts, *data, generator=generator)
    if source == "uniform":
        prior = UniformPrior(denoiser.num_latents, denoiser.codebook_size, denoiser.num_classes).to(denoiser.device)
    prior = prior if prior is not None else parts.prior
    if prior is None:
        raise UserError("sampling.latents=prior: no prior was trained (run stage=prior), or use oracle or fixed")
    prefix = None
    if sampling.prefix is not None:
        prefix = _codes(sampling.prefix, denoiser, "sampling.prefix").expand(num, -1)
    options = {"temperature": sampling.temperature, "prefix": prefix, "generator": generator}
    return prior.sample(num, class_labels=class_labels, **options)


@torch.no_grad()
def encode(
    parts: Parts,
    y: Tensor,
    known_labels: Tensor | None,
    temperature: float = 0.01,
    generator: Source = None,
) -> Tensor:
    """z ~ E(y): codes int64 (B, m) (random draws at every temperature), or (B, m, d) drawn from the Gaussian."""
    assert parts.encoder is not None
    return draw_encoded(parts, code_logits(parts.encoder, y, known_labels), temperature, generator)


def draw_encoded(parts: Parts, encoded: Tensor, temperature: float, generator: Source = None) -> Tensor:
    """``encode`` from the encoder's output: logits (B, m, k), or (B, m, 2d) of continuous latents."""
    if parts.denoiser.latent_kind == "continuous":
        return sample_gaussian(*split_gaussian(encoded), generator=generator)
    return sample_codes(encoded, temperature, generator)


@torch.no_grad()
def draw_samples(
    denoiser: Denoiser,
    latents: Tensor | None,
    num: int,
    sampling: Sampling,
    generator: torch.Generator | SampleNoise,
    class_labels: Tensor | None = None,
    num_evaluations: int | None = None,
    **guidance: Any,
) -> tuple[Tensor, int]:
    """``num`` samples (num, *shape), images clamped to [-1, 1], and the network evaluations each of them cost.

    num_evaluations: an odd budget for the Heun ODE in place of sampling.num_steps; where guidance doubles the calls,
    the steps are halved to fit. guidance: further arguments of LatentGuidance (switch, null_denoiser). What
    sampling.batch_size is changes no sample: the noise that a solver adds is each sample's own. With a ``SampleNoise``
    as generator neither does ``num``.
    """
    chunks, evaluations = [], 0
    start_noise, later = _noise(generator, num, denoiser)
    for start in range(0, num, sampling.batch_size):
        part = slice(start, start + sampling.batch_size)
        guided = _guided(denoiser, latents, class_labels, part, sampling, guidance)
        sigmas = _sigmas(sampling, num_evaluations, latents is not None)
        x = _integrate(guided, start_noise[part] * float(sigmas[0]), sigmas, sampling, later[part])
        chunks.append(x.float())
        evaluations = guided.num_evaluations
    samples = torch.cat(chunks)
    return (samples.clamp(-1, 1) if samples.dim() == 4 else samples), evaluations


def _noise(generator: torch.Generator | SampleNoise, num: int, denoiser: Denoiser) -> tuple[Tensor, SampleNoise]:
    """Unit noise (num, *shape) that sampling starts from, and what gives a solver the noise that it adds later."""
    if isinstance(generator, SampleNoise):
        return generator.normal((num, *denoiser.shape)), generator
    start = torch.randn(num, *denoiser.shape, generator=generator, device=denoiser.device)
    return start, SampleNoise.of_generator(generator, num)


def _guided(
    denoiser: Denoiser,
    latents: Tensor | None,
    class_labels: Tensor | None,
    part: slice,
    sampling: Sampling,
    more: dict[str, Any],
) -> LatentGuidance:
    if latents is None:
        labels = None if class_labels is None else class_labels[part]
        return LatentGuidance(denoiser, None, labels)
    if "switch" in more:
        more = more | {"switch": (more["switch"][0][part], more["switch"][1])}
    low, high = sampling.cfg_interval or (0.0, float("inf"))
    return LatentGuidance(
        denoiser,
        latents[part],
        None if class_labels is None else class_labels[part],
        cfg_scale=sampling.cfg_scale,
        cfg_interval=(low, high),
        latents_off_below=sampling.latents_off_below,
        **more,
    )


def _sigmas(sampling: Sampling, num_evaluations: int | None, has_latents: bool) -> Tensor:
    num_steps = sampling.num_steps
    if num_evaluations is not None:
        calls = 2 if has_latents and sampling.cfg_scale != 0 else 1
        num_steps = max(1, (num_evaluations // calls + 1) // 2)
    return samplers.edm_sigmas(num_steps, sampling.sigma_min, sampling.sigma_max, sampling.rho)


def _integrate(guided: LatentGuidance, x: Tensor, sigmas: Tensor, sampling: Sampling, generator: SampleNoise) -> Tensor:
    if sampling.solver == "churn":
        return samplers.heun_churn(guided, x, sigmas, sampling.churn, generator=generator)
    if sampling.solver == "restart":
        return samplers.restart(guided, x, sigmas, generator=generator)
    return samplers.heun(guided, x, sigmas)


def _codes(values: list[int] | None, denoiser: Denoiser, key: str, length: int | None = None) -> Tensor:
    """Checked codes (1, n). Raises UserError naming the key."""
    codes = values or []
    most = length or denoiser.num_latents - 1
    if (length and len(codes) != length) or not 1 <= len(codes) <= most:
        raise UserError(f"{key}={codes}: {len(codes)} codes; needs {length or f'1 to {most}'}")
    if not all(0 <= code < denoiser.codebook_size for code in codes):
        raise UserError(f"{key}={codes}: codes must be from 0 to {denoiser.codebook_size - 1}")
    return torch.tensor([codes], device=denoiser.device)
