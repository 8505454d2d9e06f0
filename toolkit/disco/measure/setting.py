"""What every measure of a trained model needs: its parts, held-out data, and random draws shared by all variants.

Two variants are compared throughout: "ours", the denoiser with latents, and "baseline", the one without. Each random
draw has a name, so that every variant, and a repeated measurement, sees the same noise.

Shapes: n items, m slots, k codes per slot.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from toolkit.data.sets import Dataset, Split
from toolkit.disco.artefact import Parts
from toolkit.disco.config import Sampling, TrainDisco
from toolkit.disco.sampling import draw_latents, draw_samples, encode
from toolkit.disco.stage2 import ENCODE_BATCH
from toolkit.errors import UserError
from toolkit.runs.record import Run
from toolkit.runs.seeds import generator
from toolkit.show.table import number_in_key
from toolkit.zoo.disco.prior import MarginalPrior
from toolkit.zoo.edm.denoiser import Denoiser
from toolkit.zoo.edm.noise import SampleNoise

T = TypeVar("T")
MOST_LOSS_ITEMS = 4096
MOST_KEPT_VALUES = 2**23  # 32 MiB per sample set


class Batches(Generic[T]):
    """Goes through items in batches, as often as asked: ``read`` of ``ENCODE_BATCH`` numbers of ``index`` at a time."""

    def __init__(self, read: Callable[[Tensor], T], index: Tensor) -> None:
        self._read, self._index = read, index

    def __iter__(self) -> Iterator[T]:
        return map(self._read, self._index.split(ENCODE_BATCH))


def in_batches(x: Tensor, known: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Items that are there already, ``ENCODE_BATCH`` at a time."""
    labels = itertools.repeat(None) if known is None else known.split(ENCODE_BATCH)
    return zip(x.split(ENCODE_BATCH), labels, strict=False)


class Setting:
    """A trained model on its data, as the measures see it."""

    def __init__(self, parts: Parts, dataset: Dataset, config: TrainDisco, run: Run):
        self.parts, self.dataset, self.config, self.run = parts, dataset, config, run
        self.device = parts.denoiser.device
        self._kept: dict[tuple[str, int, int, str], tuple[Tensor, Tensor | None]] = {}
        if parts.denoiser.num_latents and parts.encoder is None:
            raise UserError("measures of a model with latents need its encoder, and this model has none")

    @property
    def discrete(self) -> bool:
        """Whether there are latents and they are discrete."""
        return self.parts.denoiser.num_latents > 0 and self.parts.denoiser.latent_kind == "discrete"

    @property
    def variants(self) -> dict[str, Denoiser]:
        """The denoisers compared, by name."""
        both = {"ours": self.parts.denoiser, "baseline": self.parts.baseline}
        return {name: denoiser for name, denoiser in both.items() if denoiser is not None}

    def rng(self, *names: str | int) -> torch.Generator:
        """The generator of the draw called ``names``, on the model's device."""
        return generator(self.config.seed, "measure", *names, device=self.device)

    def cpu_rng(self, *names: str | int) -> torch.Generator:
        """The same on the CPU."""
        return generator(self.config.seed, "measure", *names)

    # -- data --------------------------------------------------------------------------------------------------------

    def items(self, split: Split, num: int) -> tuple[Tensor, Tensor | None]:
        """``num`` random items of ``split`` (all of it where it has fewer), x and the known labels, on the device."""
        return self._read(split, self.chosen(split, num))

    def chosen(self, split: Split, num: int) -> Tensor:
        """The numbers of the items that ``items`` reads, int64 on the CPU."""
        return torch.randperm(len(split), generator=self.cpu_rng("items", len(split)))[:num]

    def _read(self, split: Split, index: Tensor) -> tuple[Tensor, Tensor | None]:
        return split.batch(index)[0].to(self.device), self.known(split, index)

    def known(self, split: Split, index: Tensor) -> Tensor | None:
        """The known labels of items, on the device."""
        return None if split.labels is None else torch.from_numpy(split.labels[index.numpy()]).to(self.device)

    def batches(self, split: Split, index: Tensor) -> Batches[tuple[Tensor, Tensor | None]]:
        """``items`` for the numbers ``index``, a few at a time: a set need not fit on the device."""
        return Batches(lambda part: self._read(split, part), index)

    def pictures(self, split: Split) -> Batches[Tensor]:
        """All x of ``split`` in order, a few at a time."""
        return Batches(lambda part: self._read(split, part)[0], torch.arange(len(split)))

    @cached_property
    def held_out(self) -> tuple[Tensor, Tensor | None]:
        """Test items for losses, each repeated where the test set is small: fresh noise makes them worth it."""
        x, known = self.items(self.dataset.test, min(MOST_LOSS_ITEMS, self.config.measure.num_samples))
        times = math.ceil(min(MOST_LOSS_ITEMS // 2, self.config.measure.num_samples) / len(x))
        return x.repeat(times, *[1] * (x.dim() - 1)), None if known is None else known.repeat(times)

    def condition(self, known: Tensor | None) -> Tensor | None:
        """The class labels that the networks are given: the known ones where they are conditioned on them."""
        return known if self.dataset.num_classes else None

    def random_labels(self, num: int) -> Tensor | None:
        """Labels to condition ``num`` samples on, drawn from the training set's; None for unconditional networks."""
        if not self.dataset.num_classes:
            return None
        assert self.dataset.train.labels is not None
        labels = torch.from_numpy(self.dataset.train.labels).to(self.device)
        return labels[torch.randint(len(labels), (num,), generator=self.rng("labels"), device=self.device)]

    # -- latents -----------------------------------------------------------------------------------------------------

    def encoded(self, x: Tensor, known: Tensor | None, *names: str | int) -> Tensor | None:
        """z ~ E(x), drawn as training of the prior draws it; None without latents."""
        if not self.parts.denoiser.num_latents:
            return None
        rng, temperature = self.rng("encode", *names), self.config.latents.extraction_temperature
        return torch.cat([encode(self.parts, *pair, temperature, rng) for pair in in_batches(x, known)])

    def encoded_items(self, split: Split, index: Tensor, *names: str | int) -> Tensor | None:
        """``encoded`` of the items ``index`` of ``split``, read in batches."""
        if not self.parts.denoiser.num_latents:
            return None
        rng, temperature = self.rng("encode", *names), self.config.latents.extraction_temperature
        return torch.cat([encode(self.parts, *pair, temperature, rng) for pair in self.batches(split, index)])

    @cached_property
    def train_codes(self) -> tuple[Tensor, Tensor | None]:
        """One draw of codes int64 (N, m) for the training set (at most 50,000 items) and its class labels."""
        index = self.chosen(self.dataset.train, 50_000)
        codes = self.encoded_items(self.dataset.train, index, "train")
        assert codes is not None
        return codes, self.condition(self.known(self.dataset.train, index))

    @cached_property
    def marginal_prior(self) -> MarginalPrior:
        """Independent histograms of the training codes: what the prior must beat."""
        denoiser = self.parts.denoiser
        prior = MarginalPrior(denoiser.num_latents, denoiser.codebook_size, self.dataset.num_classes)
        return prior.to(self.device).fit(*self.train_codes)

    def drawn(self, source: str, labels: Tensor | None, num: int, *names: str | int) -> Tensor | None:
        """Latents for ``num`` samples from "prior", "marginal", "uniform" or "oracle" (encoded training items)."""
        rng, sampling = self.rng("latents", *names), self.config.sampling
        if source == "oracle":
            return self.encoded_items(self.dataset.train, self.oracle_items(num), *names)
        if source == "marginal":
            return draw_latents(self.parts, num, sampling, rng, "prior", labels, prior=self.marginal_prior)
        return draw_latents(self.parts, num, sampling, rng, source, labels)

    def oracle_items(self, num: int) -> Tensor:
        """Numbers of the training items whose latents "oracle" draws, repeated where there are fewer than ``num``."""
        chosen = self.chosen(self.dataset.train, num)
        return chosen[torch.arange(num) % len(chosen)]

    # -- samples -----------------------------------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:
        """Samples per score: never more than training items, so that the floor of real data is of the same size."""
        return min(self.config.measure.num_samples, len(self.dataset.train))

    def samples(
        self, variant: str, num_evaluations: int, repeat: int = 0, source: str = "prior", **guidance: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Samples (n, ...) and the labels they were conditioned on; several measures share small sets.

        The initial noise depends on ``repeat`` alone. ``guidance``: cfg_scale, null_denoiser.
        """
        key = (variant, num_evaluations, repeat, source if self.variants[variant].num_latents else "none")
        if guidance or key not in self._kept:
            drawn = self._draw(variant, num_evaluations, repeat, source, guidance)
            if guidance or drawn[0].numel() > MOST_KEPT_VALUES:
                return drawn
            self._kept[key] = drawn
        return self._kept[key]

    def _draw(
        self, variant: str, num_evaluations: int, repeat: int, source: str, guidance: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        denoiser, num, sampling = self.variants[variant], self.num_samples, self.config.sampling
        labels = self.random_labels(num)
        if source == "oracle":
            labels = self.condition(self.known(self.dataset.train, self.oracle_items(num)))
        if "cfg_scale" in guidance:
            sampling = dataclasses.replace(sampling, cfg_scale=guidance["cfg_scale"])
            guidance = {name: value for name, value in guidance.items() if name != "cfg_scale"}
        if variant == "ours" and self.parts.null is not None:
            guidance = {"null_denoiser": self.parts.null} | guidance
        if num * math.prod(denoiser.shape) > MOST_KEPT_VALUES:
            return self._draw_in_blocks(denoiser, sampling, labels, (num_evaluations, repeat, source), guidance), labels
        latents = self.drawn(source, labels, num, repeat) if denoiser.num_latents else None
        noise = self.rng("noise", repeat)
        return draw_samples(denoiser, latents, num, sampling, noise, labels, num_evaluations, **guidance)[0], labels

    def _draw_in_blocks(
        self,
        denoiser: Denoiser,
        sampling: Sampling,
        labels: Tensor | None,
        what: tuple[int, int, str],
        guidance: dict[str, Any],
    ) -> Tensor:
        """A set that is too large for the device, on the CPU. Every sample has random numbers of its own."""
        (num_evaluations, repeat, source), blocks = what, []
        noise = SampleNoise.of_generator(self.rng("noise", repeat), self.num_samples)
        for start in range(0, self.num_samples, sampling.batch_size):
            part = slice(start, min(start + sampling.batch_size, self.num_samples))
            given = None if labels is None else labels[part]
            latents, num = None, part.stop - start
            if denoiser.num_latents and source == "oracle":
                index = self.oracle_items(self.num_samples)[part]
                latents = self.encoded_items(self.dataset.train, index, repeat, start)
            elif denoiser.num_latents:
                latents = self.drawn(source, given, num, repeat, start)
            x, _ = draw_samples(denoiser, latents, num, sampling, noise[part], given, num_evaluations, **guidance)
            blocks.append(x.cpu())
        return torch.cat(blocks)

    def denoise(
        self, variant: str, latents: Tensor | None, labels: Tensor | None
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """``denoise(x, sigma) -> D`` of a variant with its latents and labels fixed."""
        denoiser = self.variants[variant]
        latents = latents if denoiser.num_latents else None
        return lambda x, sigma: denoiser(x, sigma, class_labels=labels, latents=latents)


def sigma_key(sigma: float) -> str:
    """``sigma_0p05``: a noise level as a part of a metric's name."""
    return f"sigma_{number_in_key(sigma)}"


def evaluations_key(num_evaluations: int) -> str:
    """``nfe_17``."""
    return f"nfe_{num_evaluations}"


def scale_key(scale: float) -> str:
    """``cfg_0p5``, ``cfg_m1`` for -1."""
    return f"cfg_{number_in_key(scale)}"


def ratio(ours: float, theirs: float) -> float:
    """ours / theirs; infinite or undefined where theirs is 0."""
    return ours / theirs if theirs else (math.inf if ours > 0 else math.nan)
