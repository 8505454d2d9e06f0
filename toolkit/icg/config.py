"""The config of ``toolkit sample-icg``; names and ranges of the guiders' settings are theirs (toolkit.icg.guiders)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_origin, get_type_hints

from toolkit.data.config import Data
from toolkit.errors import UserError, did_you_mean
from toolkit.icg.methods import METHODS, Guidance
from toolkit.schema import MISSING, Job, check, choice, free_text, number
from toolkit.zoo.config import NETWORK_SCHEMAS, NetworkConfig

SMALL_COMPARE = ["none", "cfg", "tsg", "icg_tsg"]  # beside ICG, where the command makes its own small models
OF_PIPELINES = ("prompts", "negative_prompt", "scheduler", "call", "size_px")
OF_OURS = ("part", "vae")
SMALL_CURVE = [1.25, 1.5, 2.0, 3.0]


@dataclass
class Sampling:
    """How samples are drawn: EDM's grid of noise levels, and how many.

    num_samples: number of samples to draw with every method. batch_size: samples at a time; only speed changes. None:
    512, or in a pipeline as many as make about two million pixels. num_steps: number of noise levels, or of the
    scheduler's steps in a pipeline. sigma_min: smallest noise level of the grid (not in pipelines). sigma_max: largest
    noise level of the grid (not in pipelines). rho: exponent of the grid (not in pipelines). temperature: temperature
    of the prior, for models with discrete latents.
    """

    num_samples: int = number(64, least=1)
    batch_size: int | None = number(None, least=1, computes=False)
    num_steps: int = number(18, least=1)
    sigma_min: float = number(0.002, above=0)
    sigma_max: float = number(80.0, above=0)
    rho: float = number(7.0, above=0)
    temperature: float = number(1.0, above=0)

    def check(self) -> None:
        """sigma_min below sigma_max."""
        if self.sigma_min >= self.sigma_max:
            raise UserError(
                f"sampling.sigma_min={self.sigma_min}: must be less than sampling.sigma_max={self.sigma_max}"
            )


@dataclass
class Loss:
    """EDM's noise distribution, for the two small models that are trained without ``model``.

    p_mean: mean of log sigma in training (a normal distribution). p_std: standard deviation of log sigma in training.
    label_drop: share of the labels that is dropped in training the model for classifier-free guidance. The other model
    sees all labels.
    """

    p_mean: float = -1.2
    p_std: float = number(1.2, above=0)
    label_drop: float = number(0.1, above=0, below=1)


@dataclass
class Optim:
    """AdamW and EDM's EMA, for the two small models.

    num_steps: optimiser steps. batch_size: images per step. lr: learning rate. schedule: schedule of the learning rate.
    grad_clip: largest norm of the gradient. weight_decay: weight decay of AdamW. ema_half_life_images: half-life of the
    sampled weight average, in training images.
    """

    num_steps: int = number(600, least=1)
    batch_size: int = number(128, least=1)
    lr: float = number(2e-3, above=0)
    schedule: str = choice("cosine", "constant", "cosine")
    grad_clip: float = number(1.0, above=0)
    weight_decay: float = number(0.0, least=0)
    ema_half_life_images: int = number(20_000, least=1)


@dataclass
class Exact:
    """``model=exact``: the exact denoiser of Gaussians on a ring of radius 3, one per class.

    num_classes: number of Gaussians. std: standard deviation of each Gaussian.
    """

    num_classes: int = number(8, least=2, most=64)
    std: float = number(0.5, above=0)


@dataclass
class Measure:
    """What is measured, if there is data to compare with.

    enabled: whether to measure anything. num_samples: samples for each score. None: ``sampling.num_samples``; for the
    small models as many as there are training items, at most 5,000. num_repeats: number of sampling seeds. None: 1; for
    the small models 2. neighbours: k of precision and recall. curve: scales that are measured for every method in
    addition to its own. None: 1.25, 1.5, 2 and 3 for the small models and methods that have a curve, none for others.
    untrained_null: whether to add classifier-free guidance with a null condition that the model never saw, as a
    control. clip: folder or hub id of a CLIP model that scores pictures against their prompts.
    """

    enabled: bool = True
    num_samples: int | None = number(None, least=2)
    num_repeats: int | None = number(None, least=1)
    neighbours: int = number(3, least=1)
    curve: list[float] | None = number(None, least=0)
    untrained_null: bool = False
    clip: str | None = None

    def check(self) -> None:
        """A curve has different scales."""
        if self.curve is not None and len(set(self.curve)) < len(self.curve):
            raise UserError(f"measure.curve={self.curve}: a scale stands there twice")


@dataclass
class SampleICG(Job):
    """``toolkit sample-icg``.

    model: a run, a model folder, a pipeline's folder, a hub id, or ``exact``; without it two small models are trained,
    once. guidance: guidance method; each has its own keys. compare: other methods to compare with, as names or
    ``{method: tsg, scale: 3}``. None: no guidance; for the small models the usual methods. batched: whether the calls
    of a step run as one call with two or three times the rows. labels: classes to draw: a number, a name, a list of
    them, or a file with one a line; without it every class, or random ones in a pipeline. prompts: prompts of a text
    model: a text, a list, or a file with one a line. None: eight of ours. negative_prompt: what the second branch of
    cfg sees instead of the empty prompt, on a text model. size_px: edge of a text model's pictures in pixels.
    scheduler: scheduler of a pipeline, by its name in diffusers. None: the pipeline's own. call: other arguments of a
    pipeline's call, ``{num_frames: 16, image: FILE}``. Pictures are given as files. part: network of a run to sample.
    None: its denoiser. vae: folder or hub id of the decoder for a network that works on latents. data: training data of
    the small models, or the data that the model's samples are compared with. None: the model's own; digits for the
    small models. network: network of the small models, by the name of a file in conf/network.
    """

    command: str = "sample-icg"
    model: str | None = None
    guidance: Guidance = MISSING
    compare: list[Any] | None = None
    batched: bool = False
    labels: Any = None
    prompts: Any = free_text(None)
    negative_prompt: str | None = free_text(None)
    scheduler: str | None = None
    call: Any = None
    size_px: int | None = number(None, least=8)
    part: str | None = None
    vae: str | None = None
    data: Data | None = None
    network: NetworkConfig = MISSING
    loss: Loss = field(default_factory=Loss)
    optim: Optim = field(default_factory=Optim)
    sampling: Sampling = field(default_factory=Sampling)
    exact: Exact = field(default_factory=Exact)
    measure: Measure = field(default_factory=Measure)

    def stages(self) -> list[str]:
        """Models of one's own are made first."""
        return (["models"] if self.model is None else []) + ["sample", "report"]

    def idle(self) -> dict[str, tuple[str, ...]]:
        """What is of the small models with a model, and of the exact one without it."""
        trained = {f"model={self.model} is trained already": ("optim", "loss", "network")} if self.model else {}
        return trained | ({} if self.model == "exact" else {"exact.* is of model=exact": ("exact",)})

    @property
    def repeats(self) -> int:
        """Sampling seeds that are measured."""
        return self.measure.num_repeats or (1 if self.model else 2)

    def curve_of(self, guidance: Guidance) -> list[float]:
        """Scales that are measured beside those shown."""
        if self.measure.curve is not None:
            return self.measure.curve
        return SMALL_CURVE if self.model is None and guidance.has_curve else []

    def methods(self) -> list[Guidance]:
        """``guidance`` and what it is compared with, no method twice; no guidance first."""
        names = self.compare
        if names is None:
            names = ["none"] if self.model else SMALL_COMPARE
        others = [self._compared(one) for one in names]
        found = {one.method: one for one in [*others, self.guidance]}
        order = [name for name in METHODS if name in found]
        return [found[name] for name in order]

    def check(self) -> None:
        """What must fit together across groups."""
        for one in self.methods():
            self._check_in_pipelines(one)
        if self.model in (None, "exact"):
            for key in (*OF_PIPELINES, *OF_OURS):
                if getattr(self, key) is not None:
                    raise UserError(f"{key}={getattr(self, key)}: needs a model, model=DIR")
        if self.call is not None and not isinstance(self.call, dict):
            raise UserError(f"call={self.call}: must be arguments by name, 'call={{num_frames: 16}}'")
        if self.negative_prompt is not None and not any(one.needs_null for one in self.methods()):
            readers = ", ".join(name for name, kind in METHODS.items() if kind.needs_null)
            raise UserError(f"negative_prompt: only {readers} read it; the others make their own second branch")
        if self.model == "exact" and self.data is not None:
            raise UserError("data: model=exact has data of its own; see exact.num_classes and exact.std")
        if self.model is None and self.data is not None and not self.data.class_labels:
            raise UserError("data.class_labels=false: the small models are class-conditional; give another model=DIR")

    def _check_in_pipelines(self, guidance: Guidance) -> None:
        """Some methods and keys are for pipelines alone."""
        if self.model not in (None, "exact"):
            return
        if guidance.in_pipelines:
            raise UserError(f"guidance={guidance.method}: works on pipelines, model=FOLDER")
        if getattr(guidance, "control_std", None) is not None:
            raise UserError("guidance.control_std: works on ControlNet pipelines, model=FOLDER")

    def _compared(self, entry: Any) -> Guidance:
        """``icg`` or ``{method: icg, scale: 2}`` -> settings; scales on the condition follow ``guidance.scale``."""
        settings = dict(entry) if isinstance(entry, dict) else {"method": entry}
        name = settings.pop("method", None)
        if name not in METHODS:
            raise UserError(f"compare={name}: {did_you_mean(str(name), METHODS)}choose from {', '.join(METHODS)}")
        kind = METHODS[name]
        known = {item.name for item in fields(kind)} - {"method", "tsg", "slg"}
        for key in settings:
            if key not in known:
                raise UserError(
                    f"compare: {name} has no setting {key}; {did_you_mean(key, known)}one of {', '.join(sorted(known))}"
                )
        if kind.on_condition and self.guidance.on_condition:
            settings.setdefault("scale", self.guidance.scale)
        hints = get_type_hints(kind)
        for key, value in settings.items():
            if not _fits(value, hints[key]):
                raise UserError(f"compare: {name}: {key}={value}: must be {kind.__dataclass_fields__[key].type}")
        made = kind(**settings)
        try:
            check(made)
        except UserError as error:
            raise UserError(f"compare: {name}: {error}") from None
        return made


def _fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` may stand in a field of that type; a number may where a text is read, as in Hydra."""
    if hint is Any:
        return True
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(one, get_args(hint)[0]) for one in value)
    if options := get_args(hint):
        return any(_fits(value, one) for one in options)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, {float: (int, float), str: (str, int, float)}.get(hint, hint))


SCHEMAS: dict[tuple[str | None, str], type] = {
    (None, "sample_icg_schema"): SampleICG,
    **{("guidance", f"{name}{end}"): kind for name, kind in METHODS.items() for end in ("", "_schema")},
    **NETWORK_SCHEMAS,
}
