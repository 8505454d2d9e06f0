"""One table of guidance methods: the settings of each, and what ``sample-icg`` must know of it.

A new method is its guider (toolkit/icg/guiders, those of others in toolkit/icg/peers) and its row here. No torch is
imported before a guider is made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from toolkit.icg.guidance import INTERVAL, Guidance, Seed
from toolkit.icg.peers.settings import FDG, PAG, SAG, SLG, TCFG, CFGAndSLG, CFGZeroStar
from toolkit.schema import choice, number

if TYPE_CHECKING:
    from toolkit.icg.guiders.base import WeakBranchGuidance

CONDITIONS = ("auto", "class", "gaussian", "bank", "shuffle")


@dataclass
class NoGuidance(Guidance):
    """The conditional model as it is."""

    label: ClassVar[str] = "none"
    guides: ClassVar[bool] = False
    method: str = "none"

    def make(self, scale: float, seed: Seed) -> WeakBranchGuidance:
        return _cfg(self, 1.0, seed)

    @property
    def calls_per_step(self) -> int:
        return 1


@dataclass
class CFG(Guidance):
    """Classifier-free guidance with the model's own null condition, which it must have been trained with."""

    label: ClassVar[str] = "CFG"
    on_condition: ClassVar[bool] = True
    needs_null: ClassVar[bool] = True
    has_curve: ClassVar[bool] = True
    method: str = "cfg"
    scale: Any = 1.5

    def make(self, scale: float, seed: Seed) -> WeakBranchGuidance:
        return _cfg(self, scale, seed)


@dataclass
class ICG(Guidance):
    """Independent condition guidance; see IndependentConditionGuidance for the keys.

    condition: where the random condition comes from: a random class, Gaussian noise, a bank of random prompts, or the
    shuffled conditions of the batch. ``auto`` chooses what fits the model. fields: inputs of the network that are
    replaced by random ones. None: labels, latents and text, as far as the model has them. resample: whether to draw a
    new condition at every step (the paper's) or once a run. exclude_own: whether the sample's own class is never drawn.
    num_draws: number of conditions averaged per step. std: standard deviation of Gaussian conditions: ``tensor`` (the
    paper's), ``sample``, or a number. control_std: standard deviation of a random picture that replaces a ControlNet's.
    None: keeps the picture. bank_rows: number of random prompts in the bank. None: the guider's default. cads_scale:
    noise on the condition that fades during sampling (CADS, Sadat et al. 2024); 0 is off. cads_tau1, cads_tau2: times
    between which that noise fades.
    """

    label: ClassVar[str] = "ICG"
    on_condition: ClassVar[bool] = True
    has_curve: ClassVar[bool] = True
    method: str = "icg"
    scale: Any = 1.5
    condition: str = choice("auto", *CONDITIONS)
    fields: list[str] | None = None
    resample: str = choice("step", "step", "run")
    exclude_own: bool = False
    num_draws: int = number(1, least=1)
    std: str = "tensor"
    control_std: float | None = number(None, least=0)
    bank_rows: int | None = number(None, least=1)
    cads_scale: float = number(0.0, least=0)
    cads_tau1: float = number(0.5, least=0, most=1)
    cads_tau2: float = number(0.9, least=0, most=1)

    def make(self, scale: float, seed: Seed) -> WeakBranchGuidance:
        return _icg(self, scale, seed, guidance_rescale=self.rescale)

    @property
    def calls_per_step(self) -> int:
        return 1 + self.num_draws

    @property
    def from_bank(self) -> bool:
        """Whether conditions may be drawn from a bank of them."""
        return self.condition in ("auto", "bank")


@dataclass
class TSG(Guidance):
    """Time-step guidance; see TimeStepGuidance for the keys. ``scale`` is its own w.

    noise_scale: s, the size of the noise on the time embedding. alpha: power of t that scales the noise. A lower one
    perturbs more. std_scaling: whether the noise is also scaled by the embedding's standard deviation, as in the
    paper's experiments. max_layers: perturbs only the first so many blocks of a DiT (table 6c), or of a UNet's encoder
    and decoder. None: all. time_embedding_modules: names or patterns of the modules, for models where the search finds
    none or several.
    """

    label: ClassVar[str] = "TSG"
    has_curve: ClassVar[bool] = True
    method: str = "tsg"
    scale: Any = 5.0
    noise_scale: float = number(2.0, least=0)
    alpha: float = number(1.0, least=0)
    std_scaling: bool = True
    max_layers: int | None = number(None, least=1)
    time_embedding_modules: list[str] | None = None

    def make(self, scale: float, seed: Seed) -> WeakBranchGuidance:
        return _tsg(self, scale, seed, guidance_rescale=self.rescale)

    @property
    def on_time(self) -> TSG:
        return self


@dataclass
class ICGAndTSG(ICG):
    """ICG and TSG together in three calls (table 4); ``scale`` is ICG's, ``tsg`` holds TSG's settings."""

    label: ClassVar[str] = "ICG + TSG"
    has_curve: ClassVar[bool] = False
    holds_for_both: ClassVar[tuple[str, ...]] = ("rescale",)
    method: str = "icg_tsg"
    tsg: TSG = field(default_factory=lambda: TSG(scale=2.5))

    def make(self, scale: float, seed: Seed) -> WeakBranchGuidance:
        from toolkit.icg.guiders.combined_guidance import CombinedGuidance

        both = [_icg(self, scale, seed), _tsg(self.tsg, self.tsg.scales[0], seed)]
        return CombinedGuidance(both, guidance_rescale=self.rescale)

    @property
    def calls_per_step(self) -> int:
        return 2 + self.num_draws

    @property
    def on_time(self) -> TSG:
        return self.tsg

    @property
    def second(self) -> TSG:
        return self.tsg


@dataclass
class CFGAndTSG(CFG):
    """Classifier-free and time-step guidance in three calls; ``scale`` is that of the first."""

    label: ClassVar[str] = "CFG + TSG"
    has_curve: ClassVar[bool] = False
    holds_for_both: ClassVar[tuple[str, ...]] = ("rescale", *INTERVAL)
    method: str = "cfg_tsg"
    tsg: TSG = field(default_factory=lambda: TSG(scale=2.5))

    def make(self, scale: float, seed: Seed) -> WeakBranchGuidance:
        options = {"guidance_scale": float(scale), "guidance_rescale": self.rescale}
        return _tsg(self.tsg, self.tsg.scales[0], seed, **options, **self.interval)

    @property
    def calls_per_step(self) -> int:
        return 3

    @property
    def on_time(self) -> TSG:
        return self.tsg

    @property
    def second(self) -> TSG:
        return self.tsg


@dataclass
class AutoGuidance(Guidance):
    """Guidance with a worse version of the model (Karras et al. 2024).

    weak: run folder of the worse version. None: one is trained beside the small models. weak_fraction: share of the
    small models' training that the worse model gets.
    """

    label: ClassVar[str] = "autoguidance"
    method: str = "autoguidance"
    scale: Any = 2.0
    weak: str | None = None
    weak_fraction: float = number(0.25, above=0, below=1)


METHODS: dict[str, type[Guidance]] = {
    kind.method: kind
    for kind in (
        *(NoGuidance, CFG, ICG, TSG, ICGAndTSG, CFGAndTSG),
        *(CFGZeroStar, TCFG, FDG, SLG, CFGAndSLG, PAG, SAG, AutoGuidance),
    )
}


# -- from settings to guiders ----------------------------------------------------------------------------------------


def _cfg(guidance: Guidance, scale: float, seed: Seed) -> WeakBranchGuidance:
    """Classifier-free guidance is the second branch of TimeStepGuidance without its first, so that the interval's keys
    mean the same everywhere; at w = 1 nothing guides."""
    from toolkit.icg.guiders.time_step_guidance import TimeStepGuidance

    options = {"guidance_scale": float(scale), "guidance_rescale": guidance.rescale}
    return TimeStepGuidance(tsg_scale=1.0, seed=seed, **options, **guidance.interval)


def _icg(guidance: ICG, scale: float, seed: Seed, **more: Any) -> WeakBranchGuidance:
    from toolkit.icg.guiders.independent_condition_guidance import IndependentConditionGuidance

    return IndependentConditionGuidance(
        guidance_scale=float(scale),
        condition=guidance.condition,
        fields=guidance.fields,
        resample=guidance.resample,
        exclude_own=guidance.exclude_own,
        num_draws=guidance.num_draws,
        std=_std(guidance.std),
        control_std=guidance.control_std,
        cads_scale=guidance.cads_scale,
        cads_tau1=guidance.cads_tau1,
        cads_tau2=guidance.cads_tau2,
        seed=seed if guidance.condition != "shuffle" or isinstance(seed, int) else seed[0],
        **guidance.interval,
        **more,
    )


def _tsg(guidance: TSG, scale: float, seed: Seed, **more: Any) -> WeakBranchGuidance:
    from toolkit.icg.guiders.time_step_guidance import TimeStepGuidance

    settings = guidance.interval | more
    return TimeStepGuidance(
        tsg_scale=float(scale),
        noise_scale=guidance.noise_scale,
        alpha=guidance.alpha,
        std_scaling=guidance.std_scaling,
        max_layers=guidance.max_layers,
        time_embedding_modules=guidance.time_embedding_modules,
        seed=seed,
        **settings,
    )


def _std(value: str) -> str | float:
    """``tensor``, ``sample`` or a number."""
    try:
        return float(value)
    except ValueError:
        return value
