"""Priors over the latents z, the second stage of DisCo-Diff (Xu et al. 2024, section 3.1, eq. 4).

All of them sample with ``sample(num, class_labels, temperature, prefix, generator)``; the discrete ones also give
``nll(codes, class_labels)`` in nats. Shapes: B batch, m slots, k codes per slot, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.zoo.edm.latents import SlotLinear
from toolkit.zoo.edm.mlp import MLPDenoiser
from toolkit.zoo.edm.noise import SampleNoise, Source, normal
from toolkit.zoo.edm.samplers import edm_sigmas, heun
from toolkit.zoo.edm.transformer import KeyValueCache, Transformer

SlotLogits = Callable[[int], Tensor]


class DiscretePrior(ModelMixin, ConfigMixin):
    """p(z_1 ... z_m | class): a subclass gives the logits of each slot, and sampling and likelihood follow."""

    config_name = "config.json"

    def forward(self, codes: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Logits (B, m, k) of every slot given the codes before it; codes int64 (B, m), class_labels int64 (B,)."""
        raise NotImplementedError

    def nll(self, codes: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """-log p(codes | class) summed over the slots, in nats, shape (B,)."""
        logits = self(codes, class_labels)
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view(len(codes), -1).sum(1)

    @torch.no_grad()
    def sample(
        self,
        num: int,
        class_labels: Tensor | None = None,
        temperature: float = 1.0,
        prefix: Tensor | None = None,
        generator: Source = None,
    ) -> Tensor:
        """Codes int64 (num, m), drawn slot by slot.

        class_labels: int64 (num,), needed exactly where the prior was built with classes. temperature divides the
        logits (0: the most likely code). prefix: int64 (num, p), codes kept as the first p slots. generator: one for
        the batch, or a ``SampleNoise`` of its samples. Raises ValueError where these do not fit.
        """
        if temperature < 0:
            raise ValueError(f"temperature={temperature}: must be at least 0")
        _check_labels(class_labels, self.config.num_classes, num)
        codes = self._start(num, prefix)
        first, steps = 0 if prefix is None else prefix.shape[1], self._slot_logits(codes, class_labels)
        for slot in range(first, self.config.num_latents):
            codes[:, slot] = _draw(steps(slot), temperature, generator)
        return codes

    def _slot_logits(self, codes: Tensor, class_labels: Tensor | None) -> SlotLogits:
        """A function of a slot, called in rising order, -> logits (num, k) given the slots of ``codes`` before it."""
        raise NotImplementedError

    def _start(self, num: int, prefix: Tensor | None) -> Tensor:
        codes = torch.zeros(num, self.config.num_latents, dtype=torch.int64, device=self.device)
        if prefix is not None:
            if prefix.dtype != torch.int64 or prefix.dim() != 2 or len(prefix) != num:
                raise ValueError(f"prefix: {prefix.dtype} {tuple(prefix.shape)}, expected int64 ({num}, p)")
            if prefix.shape[1] > codes.shape[1] or (prefix < 0).any() or (prefix >= self.config.codebook_size).any():
                raise ValueError(f"prefix: at most {codes.shape[1]} codes in [0, {self.config.codebook_size})")
            codes[:, : prefix.shape[1]] = prefix
        return codes


class AutoregressivePrior(DiscretePrior):
    """A causal Transformer over the slots whose start of sequence is the class token.

    The paper's: depth 12, 8 heads, width 512. Each slot has its own token table and its own output layer, which starts
    at zero, so that an untrained prior is uniform.
    """

    @register_to_config
    def __init__(
        self,
        num_latents: int = 10,
        codebook_size: int = 100,
        width: int = 512,
        depth: int = 12,
        num_heads: int = 8,
        num_classes: int = 0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(max(1, num_classes), width))
        self.tables = nn.Parameter(torch.randn(num_latents - 1, codebook_size, width))
        self.input_dropout = nn.Dropout(dropout)
        self.body = Transformer(width, depth, num_heads, dropout)
        self.head = SlotLinear(num_latents, width, codebook_size)
        nn.init.zeros_(self.head.weight)

    def forward(self, codes: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Teacher-forced logits (B, m, k) float32."""
        _check_labels(class_labels, self.config.num_classes, len(codes))
        start_B1W = self._start_tokens(len(codes), class_labels)
        tokens = torch.cat([start_B1W, self._code_tokens(codes[:, :-1], 0)], dim=1)
        return self.head(self.body(self.input_dropout(tokens), causal=True)).float()

    def _start_tokens(self, batch_size: int, class_labels: Tensor | None) -> Tensor:
        tokens = self.start.expand(batch_size, -1) if class_labels is None else self.start[class_labels]
        return tokens[:, None]

    def _code_tokens(self, codes_Bp: Tensor, first: int) -> Tensor:
        """Tokens (B, p, W) of the codes of slots first ... first + p - 1."""
        slots = torch.arange(first, first + codes_Bp.shape[1], device=codes_Bp.device)
        return self.tables[slots, codes_Bp]

    def _slot_logits(self, codes: Tensor, class_labels: Tensor | None) -> SlotLogits:
        caches: list[KeyValueCache] = self.body.new_caches(self.config.num_latents)

        def logits(slot: int) -> Tensor:
            seen = caches[0].length
            tokens = self._code_tokens(codes[:, max(seen - 1, 0) : slot], max(seen - 1, 0))
            if seen == 0:
                tokens = torch.cat([self._start_tokens(len(codes), class_labels), tokens], dim=1)
            last_BW = self.body(tokens, causal=True, caches=caches)[:, -1]
            return self.head.one_slot(slot, last_BW)

        return logits


class MarginalPrior(DiscretePrior):
    """Independent histograms per slot, and per class where there are classes; uniform until ``fit``."""

    log_probs: Tensor

    @register_to_config
    def __init__(self, num_latents: int = 1, codebook_size: int = 8, num_classes: int = 0) -> None:
        super().__init__()
        shape = (max(1, num_classes), num_latents, codebook_size)
        self.register_buffer("log_probs", torch.full(shape, -math.log(codebook_size)))

    @torch.no_grad()
    def fit(self, codes: Tensor, class_labels: Tensor | None = None, pseudo_count: float = 1.0) -> MarginalPrior:
        """Count codes int64 (N, m); ``pseudo_count`` is spread evenly over each histogram's k codes. Returns self."""
        _check_labels(class_labels, self.config.num_classes, len(codes))
        size = self.config.codebook_size
        counts = torch.full_like(self.log_probs, pseudo_count / size)
        rows = torch.zeros_like(codes) if class_labels is None else class_labels[:, None].expand_as(codes)
        slots = torch.arange(codes.shape[1], device=codes.device).expand_as(codes)
        counts.index_put_((rows, slots, codes), counts.new_ones(()), accumulate=True)
        self.log_probs.copy_((counts / counts.sum(-1, keepdim=True)).log())
        return self

    def forward(self, codes: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The slots' log-probabilities (B, m, k), whatever the codes."""
        _check_labels(class_labels, self.config.num_classes, len(codes))
        return self.log_probs.expand(len(codes), -1, -1) if class_labels is None else self.log_probs[class_labels]

    def _slot_logits(self, codes: Tensor, class_labels: Tensor | None) -> SlotLogits:
        log_probs = self(codes, class_labels)
        return lambda slot: log_probs[:, slot]


class UniformPrior(DiscretePrior):
    """Every code equally likely, whatever the class: the reference of m ln k nats."""

    logits: Tensor

    @register_to_config
    def __init__(self, num_latents: int = 1, codebook_size: int = 8, num_classes: int = 0) -> None:
        super().__init__()
        self.register_buffer("logits", torch.zeros(num_latents, codebook_size))

    def forward(self, codes: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Zeros (B, m, k)."""
        return self.logits.expand(len(codes), -1, -1)

    def _slot_logits(self, codes: Tensor, class_labels: Tensor | None) -> SlotLogits:
        return lambda slot: self.logits[slot].expand(len(codes), -1)


class LatentDiffusionPrior(ModelMixin, ConfigMixin):
    """A small EDM diffusion model over continuous latents (B, m, d): the prior of the continuous-latent baseline.

    The paper's uses the autoregressive model's Transformer as a DiT; this one is the residual MLP over all slots side
    by side. ``sigma_data`` is the standard deviation of the latents (about 1 under a KL term).
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        num_latents: int = 1,
        codebook_size: int = 8,
        width: int = 256,
        depth: int = 4,
        num_classes: int = 0,
        sigma_data: float = 1.0,
    ) -> None:
        super().__init__()
        shape = (num_latents * codebook_size,)
        self.denoiser = MLPDenoiser(shape, width, depth, sigma_data=sigma_data, num_classes=num_classes)

    def draw(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal numbers (num, 1 + m d) for the loss of ``num`` latents: the noise level's, then the noise."""
        width = self.config.num_latents * self.config.codebook_size
        return torch.randn(num, width + 1, device=self.device, generator=generator)

    def loss(self, latents: Tensor, class_labels: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """EDM-weighted denoising loss (scalar; Karras et al. 2022, eq. 8).

        EDM's noise levels in units of the latents: ln(sigma / (2 sigma_data)) ~ N(-0.4, 1.2^2), for theirs is 0.5.
        noise: as ``draw`` gives it.
        """
        _check_labels(class_labels, self.config.num_classes, len(latents))
        y = latents.flatten(1)
        noise = self.draw(len(y)) if noise is None else noise
        sigma = (1.2 * noise[:, 0] - 0.4).exp() * (self.config.sigma_data / 0.5)
        denoised = self.denoiser(y + sigma[:, None] * noise[:, 1:], sigma, class_labels)
        weight = 1 / sigma.square() + 1 / self.config.sigma_data**2
        return (weight[:, None] * (denoised - y).square()).mean()

    @torch.no_grad()
    def sample(
        self,
        num: int,
        class_labels: Tensor | None = None,
        temperature: float = 1.0,
        prefix: Tensor | None = None,
        generator: Source = None,
        num_steps: int = 18,
    ) -> Tensor:
        """Latents float32 (num, m, d) by ``num_steps`` Heun steps; temperature scales the initial noise.

        Raises ValueError for a prefix: this prior has no order of slots.
        """
        if prefix is not None:
            raise ValueError("prefix: only a prior over discrete latents can keep one")
        _check_labels(class_labels, self.config.num_classes, num)
        sigmas = edm_sigmas(num_steps)
        shape = (num, self.config.num_latents * self.config.codebook_size)
        x = normal(shape, generator, self.device) * sigmas[0].item() * temperature
        y = heun(lambda x, sigma: self.denoiser(x, sigma, class_labels), x, sigmas)
        return y.float().view(num, self.config.num_latents, self.config.codebook_size)


def _check_labels(class_labels: Tensor | None, num_classes: int, num: int) -> None:
    """Labels exactly where the prior has classes: a missing or a surplus label is an error, not a guess."""
    if (class_labels is not None) != bool(num_classes):
        raise ValueError(f"class_labels {'missing' if num_classes else 'given'}: built with num_classes={num_classes}")
    if class_labels is not None and (class_labels.shape != (num,) or class_labels.dtype != torch.int64):
        raise ValueError(f"class_labels: {class_labels.dtype} {tuple(class_labels.shape)}, expected int64 ({num},)")


def _draw(logits_Bk: Tensor, temperature: float, generator: Source) -> Tensor:
    if temperature == 0:
        return logits_Bk.argmax(-1)
    probabilities = (logits_Bk.float() / temperature).softmax(-1)
    if not isinstance(generator, SampleNoise):
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    upper = probabilities.cumsum(-1)  # the code whose share of [0, 1) the sample's own number falls into
    drawn = generator.uniform((len(upper), 1)) * upper[:, -1:]
    return torch.searchsorted(upper, drawn, right=True)[:, 0].clamp_(max=upper.shape[1] - 1)
