"""The config of ``toolkit sample-icg``; names and ranges of the guiders' settings are theirs (toolkit.icg.guiders)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from toolkit.data.config import Data
from toolkit.errors import UserError, did_you_mean
from toolkit.schema import MISSING, Job, choice, number
from toolkit.zoo.config import NETWORK_SCHEMAS, Network

SMALL_COMPARE = ["none", "cfg", "tsg", "icg_tsg"]  # beside ICG, where the command makes its own small models
SMALL_CURVE, SMALL_CURVE_METHODS = [1.25, 1.5, 2.0, 3.0], ("cfg", "icg", "tsg")
CONDITIONS = ("auto", "class", "gaussian", "bank", "shuffle")


@dataclass
class Guidance:
    """One way to guide; the group ``guidance`` has one class per method.

    ``scale`` is w, 1 is no guidance: one number, or a list to compare several. It weighs the condition (cfg, icg and
    their combinations with TSG), or the weak branch of the method where there is but one.
    """

    method: str = MISSING
    scale: Any = 1.0
    start: float = number(0.0, least=0, below=1)
    stop: float = number(1.0, least=0, most=1)
    t_min: float = number(0.0, least=0, most=1000)
    t_max: float = number(1000.0, least=0, most=1000)
    sigma_min: float | None = number(None, least=0)
    sigma_max: float | None = number(None, least=0)
    rescale: float = number(0.0, least=0, most=1)

    @property
    def scales(self) -> list[float]:
        """Every w asked for, in order."""
        return list(self.scale) if isinstance(self.scale, list) else [self.scale]

    def check(self) -> None:
        """Scales are finite numbers; the limits of the interval are in order."""
        for one in self.scales:
            if isinstance(one, bool) or not isinstance(one, (int, float)) or not 0 <= one < math.inf:
                raise UserError(f"guidance.scale={one}: must be a number of at least 0 (1 is no guidance), or a list")
        if not self.scales or len(set(self.scales)) < len(self.scales):
            raise UserError(f"guidance.scale={self.scale}: must be different numbers, at least one")
        for low, high in (("start", "stop"), ("t_min", "t_max"), ("sigma_min", "sigma_max")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise UserError(f"guidance.{low}={least}: must not exceed guidance.{high}={most}")


@dataclass
class NoGuidance(Guidance):
    """The conditional model as it is."""

    method: str = "none"


@dataclass
class CFG(Guidance):
    """Classifier-free guidance: the model's own null condition, which it must have been trained with."""

    method: str = "cfg"
    scale: Any = 1.5


@dataclass
class ICG(Guidance):
    """Independent condition guidance; see IndependentConditionGuidance for the keys."""

    method: str = "icg"
    scale: Any = 1.5
    condition: str = choice("auto", *CONDITIONS)
    fields: list[str] | None = None
    resample: str = choice("step", "step", "run")
    exclude_own: bool = False
    num_draws: int = number(1, least=1)
    std: str = "tensor"
    bank_rows: int | None = number(None, least=1)
    cads_scale: float = number(0.0, least=0)
    cads_tau1: float = number(0.5, least=0, most=1)
    cads_tau2: float = number(0.9, least=0, most=1)


@dataclass
class TSG(Guidance):
    """Time-step guidance; see TimeStepGuidance for the keys. ``scale`` is its own w."""

    method: str = "tsg"
    scale: Any = 5.0
    noise_scale: float = number(2.0, least=0)
    alpha: float = number(1.0, least=0)
    std_scaling: bool = True
    max_layers: int | None = number(None, least=1)
    time_embedding_modules: list[str] | None = None


@dataclass
class ICGAndTSG(ICG):
    """Both together in three calls (table 4); ``scale`` is ICG's, ``tsg`` holds TSG's settings."""

    method: str = "icg_tsg"
    tsg: TSG = field(default_factory=lambda: TSG(scale=2.5))


@dataclass
class CFGAndTSG(CFG):
    """Classifier-free and time-step guidance in three calls; ``scale`` is that of the former."""

    method: str = "cfg_tsg"
    tsg: TSG = field(default_factory=lambda: TSG(scale=2.5))


@dataclass
class PAG(Guidance):
    """Perturbed attention guidance by diffusers' own pipelines (Ahn et al. 2024); their pag_scale is w - 1."""

    method: str = "pag"
    scale: Any = 4.0
    layers: list[str] | None = None


@dataclass
class SAG(Guidance):
    """Self-attention guidance by diffusers' own pipeline (Hong et al. 2023); its sag_scale is w - 1."""

    method: str = "sag"
    scale: Any = 1.75


@dataclass
class AutoGuidance(Guidance):
    """Guidance with a worse version of the model (Karras et al. 2024): ``weak`` is its run folder."""

    method: str = "autoguidance"
    scale: Any = 2.0
    weak: str | None = None
    weak_fraction: float = number(0.25, above=0, below=1)


METHODS: dict[str, type[Guidance]] = {
    "none": NoGuidance,
    "cfg": CFG,
    "icg": ICG,
    "tsg": TSG,
    "icg_tsg": ICGAndTSG,
    "cfg_tsg": CFGAndTSG,
    "pag": PAG,
    "sag": SAG,
    "autoguidance": AutoGuidance,
}
ON_THE_CONDITION = ("cfg", "icg", "icg_tsg", "cfg_tsg")  # their scales mean the same, so they are compared at one


@dataclass
class Sampling:
    """How samples are drawn: EDM's grid of noise levels, and how many (``batch_size`` changes nothing but speed)."""

    num_samples: int = number(64, least=1)
    batch_size: int = number(512, least=1, computes=False)
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
    """EDM's noise distribution, for the two small models that are made where ``model`` is not given."""

    p_mean: float = -1.2
    p_std: float = number(1.2, above=0)
    label_drop: float = number(0.1, above=0, below=1)


@dataclass
class Optim:
    """AdamW and EDM's EMA, of the two small models."""

    num_steps: int = number(600, least=1)
    batch_size: int = number(128, least=1)
    lr: float = number(2e-3, above=0)
    schedule: str = choice("cosine", "constant", "cosine")
    grad_clip: float = number(1.0, above=0)
    weight_decay: float = number(0.0, least=0)
    ema_half_life_images: int = number(20_000, least=1)


@dataclass
class Exact:
    """``model=exact``: the exact denoiser of Gaussians on a ring of radius 3, one per class."""

    num_classes: int = number(8, least=2, most=64)
    std: float = number(0.5, above=0)


@dataclass
class Measure:
    """What is measured where the model's data is at hand.

    num_samples: null is ``sampling.num_samples``, or for the small models as many as there are training items, at most
        5,000.
    num_repeats: sampling seeds; null is 1, and 2 for the small models.
    curve: scales measured for every method beside its own; null is SMALL_CURVE for the small models and
        SMALL_CURVE_METHODS, none for others.
    untrained_null: add classifier-free guidance with a null condition that the model never saw, as a control.
    clip: folder or hub id of a CLIP model, to score pictures against their prompts.
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
    """``toolkit sample-icg``."""

    command: str = "sample-icg"
    model: str | None = None
    guidance: Guidance = MISSING
    compare: list[Any] | None = None
    batched: bool = False
    labels: Any = None
    prompts: Any = None
    size_px: int | None = number(None, least=8)
    part: str | None = None
    vae: str | None = None
    data: Data | None = None
    network: Network = MISSING
    loss: Loss = field(default_factory=Loss)
    optim: Optim = field(default_factory=Optim)
    sampling: Sampling = field(default_factory=Sampling)
    exact: Exact = field(default_factory=Exact)
    measure: Measure = field(default_factory=Measure)

    def stages(self) -> list[str]:
        """Models of one's own are made first."""
        return (["models"] if self.model is None else []) + ["sample", "report"]

    @property
    def repeats(self) -> int:
        """Sampling seeds that are measured."""
        return self.measure.num_repeats or (1 if self.model else 2)

    def curve_of(self, method: str) -> list[float]:
        """Scales that are measured beside those shown."""
        if self.measure.curve is not None:
            return self.measure.curve
        return SMALL_CURVE if self.model is None and method in SMALL_CURVE_METHODS else []

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
            one.check()
        if self.model is None:
            for key in ("prompts", "part", "size_px", "vae"):
                if getattr(self, key) is not None:
                    raise UserError(f"{key}={getattr(self, key)}: needs a model, model=DIR")
        if self.model == "exact" and self.data is not None:
            raise UserError("data: model=exact has data of its own; see exact.num_classes and exact.std")
        if self.model is None and self.data is not None and not self.data.class_labels:
            raise UserError("data.class_labels=false: the small models are class-conditional; give another model=DIR")

    def _compared(self, entry: Any) -> Guidance:
        """``icg`` or ``{method: icg, scale: 2}`` -> settings; scales on the condition follow ``guidance.scale``."""
        settings = dict(entry) if isinstance(entry, dict) else {"method": entry}
        name = settings.pop("method", None)
        if name not in METHODS:
            raise UserError(f"compare={name}: {did_you_mean(str(name), METHODS)}choose from {', '.join(METHODS)}")
        kind = METHODS[name]
        known = {key for key in kind.__dataclass_fields__ if key not in ("method", "tsg")}
        for key in settings:
            if key not in known:
                raise UserError(
                    f"compare: {name} has no setting {key}; {did_you_mean(key, known)}one of {', '.join(sorted(known))}"
                )
        if name in ON_THE_CONDITION and self.guidance.method in ON_THE_CONDITION:
            settings.setdefault("scale", self.guidance.scale)
        return kind(**settings)


SCHEMAS: dict[tuple[str | None, str], type] = {
    (None, "sample_icg_schema"): SampleICG,
    **{("guidance", f"{name}_schema"): kind for name, kind in METHODS.items()},
    **NETWORK_SCHEMAS,
}
