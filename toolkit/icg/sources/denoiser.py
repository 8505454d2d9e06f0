"""Models of ours as a source: a network of the zoo, with its class, its discrete latents, both or neither."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg
from torch import Tensor
from torch.nn import functional as F

from toolkit import data, zoo
from toolkit.data.config import Data
from toolkit.errors import UserError
from toolkit.icg.config import SampleICG
from toolkit.icg.guiders.clock import NoiseLevels
from toolkit.icg.guiders.combined_guidance import CombinedGuidance
from toolkit.icg.guiders.in_denoisers import GuidedDenoiser
from toolkit.icg.guiders.independent_condition_guidance import IndependentConditionGuidance
from toolkit.icg.guiders.interval import Interval
from toolkit.icg.labels_and_prompts import read_labels
from toolkit.icg.methods import ICG, AutoGuidance, Guidance
from toolkit.icg.sources.base import Request, Source, refuse_control, refuse_diffusers
from toolkit.icg.sources.small import read_training
from toolkit.runs.device import dtype_of
from toolkit.runs.reading import read_record
from toolkit.runs.seeds import generator
from toolkit.zoo.edm.denoiser import Denoiser
from toolkit.zoo.edm.samplers import edm_sigmas, heun
from toolkit.zoo.loading import hub_answers, load_or_refuse

LATENTS_AT_ONCE = 256  # z is drawn in whole groups, so that sample i has the same z in any batch


class DenoiserSource(Source):
    """D(x; sigma, c, z) sampled with the Heun ODE; z from the model's prior.

    Args:
        model: a run folder of ours, a folder of ``save_pretrained``, or a hub id.
        config: steps, noise levels, labels; device: where to compute.
        part: the network within the folder; "denoiser" unless given.

    Raises:
        UserError: nothing there, another kind of network, labels that do not fit, latents without a prior.
    """

    bank_rows = 1024

    def __init__(self, model: str, config: SampleICG, device: torch.device, part: str | None = None) -> None:
        self.name, self.config, self.device = model, config, device
        self.denoiser = _load(model, part or config.part, device)
        self.training = trained_how(model, part or config.part)
        self.shape, self.num_classes = tuple(self.denoiser.shape), self.denoiser.num_classes
        self.decoder = LatentDecoder(config.vae, self.denoiser, device) if config.vae else None
        if self.decoder is not None:
            self.shape = self.decoder.shape
        self.prior = _load_prior(model, self.denoiser, device)
        self.weak: Denoiser | None = None
        self.banks = {}
        self.labels = self._labels()
        self.autocast: AbstractContextManager[Any] = nullcontext()
        if config.precision != "fp32":
            self.autocast = torch.autocast(device.type, dtype_of(config.precision))

    @property
    def conditions(self) -> list[str]:
        """Names of what the model is conditioned on."""
        found = {"class_labels": self.num_classes > 0, "latents": self.denoiser.num_latents > 0}
        return [name for name, there in found.items() if there]

    def refuse(self, guidance: Guidance) -> None:
        method = guidance.method
        refuse_control(guidance, f"the model in {self.name}")
        refuse_diffusers(guidance, f"the model in {self.name}")
        if guidance.own_pipeline:
            raise UserError(f"guidance={method}: works on Stable Diffusion pipelines only, {self.name} is none")
        if guidance.on_condition and not self.conditions:
            raise UserError(
                f"guidance={method}: the model in {self.name} is unconditional and has no condition to guide on; "
                "take guidance=tsg"
            )
        for name in getattr(guidance, "fields", None) or ():
            if name not in self.conditions:
                raise UserError(
                    f"guidance.fields={name}: the model in {self.name} has {' and '.join(self.conditions) or 'none'}"
                )
        guidance.check_network(self.denoiser)
        if isinstance(guidance, AutoGuidance) and self.weak is None:
            if guidance.weak is None:
                raise UserError("guidance.weak: autoguidance needs a worse version of the model, guidance.weak=RUN")
            self.set_weak(_load(guidance.weak, None, self.device), guidance.weak)

    def set_weak(self, weak: Denoiser, name: str) -> None:
        """The worse version for autoguidance. Raises UserError where it makes other samples."""
        mine, other = ((tuple(one.shape), one.num_classes) for one in (self.denoiser, weak))
        if mine != other or weak.num_latents != self.denoiser.num_latents:
            raise UserError(
                f"guidance.weak={name}: for samples {other[0]} and {other[1]} classes, the model has {mine[0]} "
                f"and {mine[1]}"
            )
        self.weak = weak

    def warning(self, guidance: Guidance) -> str:
        if not guidance.needs_null:
            return ""
        untrained = [name for name in self.null_fields(guidance) if self.training.get(f"{name}_dropped") is False]
        if not untrained:
            return ""
        return (
            f"{guidance.method}: {self.name} was trained without dropping {' or '.join(untrained)}; "
            "this guides with a null condition that it never saw"
        )

    def null_fields(self, guidance: Guidance) -> list[str]:
        """What classifier-free guidance drops: what training dropped, or all there is where it dropped nothing."""
        dropped = [name for name in self.conditions if self.training.get(f"{name}_dropped") is not False]
        return dropped or self.conditions

    def prepare(self, guidance: Guidance) -> None:
        """Draw independent z (and the class each belongs to) from the prior, once for each number of them."""
        if not isinstance(guidance, ICG) or self.prior is None:
            return
        rows = guidance.bank_rows or self.bank_rows
        if rows not in self.banks:
            rng = generator(self.config.seed, "bank", device=self.device)
            classes = None
            if self.num_classes:
                classes = torch.randint(self.num_classes, (rows,), generator=rng, device=self.device)
            latents = self.prior.sample(rows, class_labels=classes, generator=rng)
            self.banks[rows] = {"latents": latents} | ({} if classes is None else {"class_labels": classes})

    def draw(
        self, guidance: Guidance, scale: float, request: Request, num_steps: int | None = None
    ) -> tuple[Tensor, float]:
        sampling = self.config.sampling
        num_steps = num_steps or sampling.num_steps
        sigmas = edm_sigmas(num_steps, sampling.sigma_min, sampling.sigma_max, sampling.rho)
        noise = torch.stack([torch.randn(self.denoiser.shape, generator=one) for one in request.generators("noise")])
        with self.autocast:
            denoise = self._guided(guidance, scale, request, 2 * num_steps - 1)
            x = heun(denoise, noise.to(self.device) * sampling.sigma_max, sigmas)
            images = x.float() if self.decoder is None else self.decoder(x.float()).float()
        images = images.cpu()
        return images.clamp(-1, 1) if images.dim() == 4 else images, float(denoise.num_calls)

    def _guided(
        self, guidance: Guidance, scale: float, request: Request, evaluations: int
    ) -> GuidedDenoiser | WeakModelDenoiser:
        labels, latents = self._conditions(request)
        if labels is not None and isinstance(guidance, ICG) and guidance.condition == "gaussian":
            labels = F.one_hot(labels, self.num_classes).float()  # Gaussians take the place of vectors
        if isinstance(guidance, AutoGuidance):
            assert self.weak is not None
            given = {"class_labels": labels, "latents": latents}
            conditions = {name: value for name, value in given.items() if value is not None}
            return WeakModelDenoiser(self.denoiser, self.weak, scale, guidance, conditions, evaluations)
        guider = guidance.make(scale, request.seeds("guidance"))
        if (bank := self.bank_for(guidance)) is not None:
            assert isinstance(guider, IndependentConditionGuidance | CombinedGuidance)
            guider.set_condition_bank(bank)
        null = dict.fromkeys(self.null_fields(guidance)) if guidance.needs_null else None
        return GuidedDenoiser(self.denoiser, guider, labels, latents, null, evaluations, self.config.batched)

    def _conditions(self, request: Request) -> tuple[Tensor | None, Tensor | None]:
        labels = None
        if self.labels is not None:
            labels = torch.tensor([self.label_of(number) for number in request.numbers], device=self.device)
        return labels, self._latents(request)

    def _latents(self, request: Request) -> Tensor | None:
        """z of the samples asked for, drawn group by group."""
        if self.prior is None:
            return None
        first, last = request.start // LATENTS_AT_ONCE, (request.stop - 1) // LATENTS_AT_ONCE
        groups = [self._latent_group(request, group) for group in range(first, last + 1)]
        offset = request.start - first * LATENTS_AT_ONCE
        return torch.cat(groups)[offset : offset + len(request.numbers)]

    def _latent_group(self, request: Request, group: int) -> Tensor:
        rng = generator(request.seed, "sample", "latents", request.repeat, group, device=self.device)
        classes = None
        if self.labels is not None:
            numbers = range(group * LATENTS_AT_ONCE, (group + 1) * LATENTS_AT_ONCE)
            classes = torch.tensor([self.label_of(number) for number in numbers], device=self.device)
        return self.prior.sample(LATENTS_AT_ONCE, class_labels=classes, generator=rng, **self._temperature())

    def _temperature(self) -> dict[str, float]:
        return {"temperature": self.config.sampling.temperature} if self.denoiser.latent_kind == "discrete" else {}

    def _labels(self) -> list[int] | None:
        if not self.num_classes:
            if self.config.labels is not None:
                raise UserError(f"labels: the model in {self.name} has no classes")
            return None
        if self.config.labels is None:
            return list(range(self.num_classes))
        return read_labels(self.config.labels, self.num_classes, self._names)

    def _names(self) -> dict[str, int]:
        """Numbers of the classes by name, as the training data call them; {} where they are not known.

        Raises UserError where the data are not at hand.
        """
        known = self.training.get("data")
        chosen = Data(**known) if known and self.config.model else self.config.data
        if chosen is None:
            return {}
        try:
            names = data.load(dataclasses.replace(chosen, class_labels=True), self.config.seed).class_names
        except UserError as error:
            raise UserError(f"labels: the names are in the training data, which cannot be read ({error})") from error
        return {name: number for number, name in enumerate(names)} if len(names) == self.num_classes else {}


def trained_how(model: str, part: str | None) -> dict[str, Any]:
    """What is known of the training: "data", and which conditions were dropped (``class_labels_dropped``...)."""
    folder = zoo.local(model)
    for place in (folder, folder / "model" / (part or "denoiser"), folder / (part or "denoiser")):
        if noted := read_training(place):
            return {"data": noted["data"], "class_labels_dropped": noted["label_drop"] > 0}
    record = read_record(folder) if folder.is_dir() else None
    if record is None or "latents" not in record["config"]:
        return {}
    config: Mapping[str, Any] = record["config"]
    return {
        "data": config["data"],
        "class_labels_dropped": config["loss"]["label_drop"] > 0,
        "latents_dropped": config["latents"]["drop"] > 0,
    }


def _load(model: str, part: str | None, device: torch.device) -> Denoiser:
    network = zoo.load(model, part=part, device=device)
    if not isinstance(network, Denoiser):
        raise UserError(
            f"model={model}: {type(network).__name__} is no denoiser of ours; of diffusers give the pipeline's folder "
            "(the one with model_index.json)"
        )
    return network


def _load_prior(model: str, denoiser: Denoiser, device: torch.device) -> Any:
    if not denoiser.num_latents:
        return None
    try:
        return zoo.load(model, part="prior", device=device)
    except UserError as error:
        raise UserError(f"model={model}: has latents, and no prior to draw them from ({error})") from None


class WeakModelDenoiser:
    """Autoguidance (Karras et al. 2024, eq. 3): ``denoise(x, sigma)`` of two networks with the same conditions.

    guidance: its interval and rescale. num_evaluations: calls of one run, for ``start`` and ``stop``. ``num_calls``
    counts network calls per sample.
    """

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        weak: Callable[..., Tensor],
        scale: float,
        guidance: Guidance,
        conditions: Mapping[str, Any],
        num_evaluations: int,
    ) -> None:
        self.denoiser, self.weak, self.scale, self.conditions = denoiser, weak, scale, dict(conditions)
        self.interval, self.rescale = Interval(**guidance.interval), guidance.rescale
        self.num_evaluations, self.num_calls, self.step = num_evaluations, 0, 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """D_hat (B, ...) at noise level ``sigma``."""
        strong = self.denoiser(x, sigma, **self.conditions)
        self.num_calls += 1
        in_steps = self.interval.holds_step(self.step, self.num_evaluations)
        self.step += 1
        if self.scale == 1 or not in_steps or not self.interval.holds_time(sigma, NoiseLevels()):
            return strong
        self.num_calls += 1
        guided = torch.lerp(self.weak(x, sigma, **self.conditions), strong, self.scale)
        return rescale_noise_cfg(guided, strong, self.rescale) if self.rescale else guided


class LatentDecoder:
    """Pictures in [-1, 1] of samples (B, C, h, w): ``vae`` is a folder or hub id of an AutoencoderKL.

    Raises UserError where it is not there, or the denoiser makes no latents of its kind.
    """

    def __init__(self, vae: str, denoiser: Denoiser, device: torch.device) -> None:
        if not hasattr(denoiser, "to_raw_latents"):
            raise UserError(f"vae={vae}: {type(denoiser).__name__} makes pixels, not latents")
        self.denoiser: Any = denoiser
        self.vae = _load_autoencoder(vae).to(device).eval()
        channels, height, width = denoiser.shape
        if self.vae.config["latent_channels"] != channels:
            raise UserError(
                f"vae={vae}: has {self.vae.config['latent_channels']} latent channels, the model {channels}"
            )
        self.denoiser.to_raw_latents(torch.zeros(1, channels, 1, 1, device=device))  # refuses a network of pixels
        factor = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        self.shape = (self.vae.config["out_channels"], factor * height, factor * width)

    @torch.no_grad()
    def __call__(self, samples: Tensor) -> Tensor:
        raw = self.denoiser.to_raw_latents(samples)
        return torch.cat([self.vae.decode(one).sample for one in raw.split(1)])  # one by one: decoding takes memory


def _load_autoencoder(vae: str) -> Any:
    from diffusers import AutoencoderKL

    offline = Path(vae).exists() or not hub_answers()
    options = {"use_safetensors": True, "local_files_only": offline}
    return load_or_refuse("vae", vae, lambda: AutoencoderKL.from_pretrained(vae, **options))
