"""Methods of other papers, for comparison: by guiders of ours or of diffusers, or by diffusers' own pipelines."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from toolkit.errors import UserError
from toolkit.icg.guidance import INTERVAL, Guidance, Seed
from toolkit.schema import number


@dataclass
class OfDiffusers(Guidance):
    """Classifier-free guidance as a guider of diffusers varies it, which reads noise or velocities: in pipelines."""

    on_condition: ClassVar[bool] = True
    needs_null: ClassVar[bool] = True
    in_pipelines: ClassVar[bool] = True
    guider: ClassVar[str] = ""

    def make(self, scale: float, seed: Seed) -> Any:
        from diffusers import guiders

        return getattr(guiders, self.guider)(
            guidance_scale=float(scale),
            guidance_rescale=self.rescale,
            start=self.start,
            stop=self.stop,
            **self.more(scale),
        )

    def more(self, scale: float) -> dict[str, Any]:
        """Settings of this guider alone."""
        return {}

    def check(self) -> None:
        """The guiders of diffusers limit guidance by step, not by time or noise level."""
        super().check()
        _refuse_set(self, ("t_min", "t_max", "sigma_min", "sigma_max"), "takes start and stop alone")


def _refuse_set(guidance: Guidance, keys: Iterable[str], why: str) -> None:
    """Raises UserError for one of ``keys`` that has another value than its default."""
    for key in keys:
        if getattr(guidance, key) != getattr(Guidance, key):
            raise UserError(f"guidance.{key}={getattr(guidance, key)}: {guidance.method} {why}")


@dataclass
class CFGZeroStar(OfDiffusers):
    """CFG-Zero* (Fan et al. 2025), for flow matching: the null prediction scaled to fit, the first steps left out.

    zero_init_steps: number of first steps that do nothing.
    """

    label: ClassVar[str] = "CFG-Zero*"
    guider: ClassVar[str] = "ClassifierFreeZeroStarGuidance"
    method: str = "cfg_zero_star"
    scale: Any = 3.0
    zero_init_steps: int = number(1, least=0)

    def more(self, scale: float) -> dict[str, Any]:
        return {"zero_init_steps": 0 if scale == 1 else self.zero_init_steps}


@dataclass
class TCFG(OfDiffusers):
    """Tangential classifier-free guidance (Kwon et al. 2025): the null prediction without its second direction."""

    label: ClassVar[str] = "TCFG"
    guider: ClassVar[str] = "TangentialClassifierFreeGuidance"
    method: str = "tcfg"
    scale: Any = 3.0


@dataclass
class FDG(Guidance):
    """Frequency-decoupled guidance (Sadat et al. 2025): a scale for each level of a Laplacian pyramid.

    ``scale`` is that of the finest level. coarse_scales: scales of the coarser levels, the coarsest last.
    """

    label: ClassVar[str] = "FDG"
    on_condition: ClassVar[bool] = True
    needs_null: ClassVar[bool] = True
    in_pipelines: ClassVar[bool] = True
    method: str = "fdg"
    scale: Any = 3.0
    coarse_scales: list[float] = number([1.5], least=0)

    def make(self, scale: float, seed: Seed) -> Any:
        from toolkit.icg.peers.frequency_decoupled_guidance import FrequencyDecoupledGuidance

        scales = [scale] if scale == 1 else [scale, *self.coarse_scales]  # 1 is no guidance, of any method
        return FrequencyDecoupledGuidance(scales, guidance_rescale=self.rescale, **self.interval)

    def check(self) -> None:
        """Scales are finite."""
        super().check()
        if not all(map(math.isfinite, self.coarse_scales)):
            raise UserError(f"guidance.coarse_scales={self.coarse_scales}: must be finite numbers")


@dataclass
class SLG(Guidance):
    """Skip-layer guidance (Stable Diffusion 3.5): the weak branch skips transformer blocks. ``scale`` is its w.

    layers: numbers of the skipped blocks, counted from 0.
    """

    label: ClassVar[str] = "SLG"
    in_pipelines: ClassVar[bool] = True
    method: str = "slg"
    scale: Any = 2.8
    layers: list[int] = number([7, 8, 9], least=0)

    def make(self, scale: float, seed: Seed) -> Any:
        return self.guider(scale)

    def guider(self, scale: float, **more: Any) -> Any:
        """At w = ``scale``; ``more`` are settings of the guider."""
        from toolkit.icg.peers.skip_layer_guidance import SkipLayerGuidance

        options = {"guidance_rescale": self.rescale, **self.interval} | more
        return SkipLayerGuidance(float(scale), self.layers, **options)

    @property
    def perturbs(self) -> bool:
        return True

    def check_network(self, network: Any) -> None:
        from toolkit.icg.peers.skip_layer_guidance import find_blocks

        find_blocks(network, self.layers)

    def check(self) -> None:
        """At least one layer is named."""
        super().check()
        if not self.layers:
            raise UserError("guidance.layers=[]: name at least one block to leave out")


@dataclass
class CFGAndSLG(Guidance):
    """Classifier-free and skip-layer guidance in three calls, as for Stable Diffusion 3.5; ``scale`` is that of the
    first.

    slg: settings of the second.
    """

    label: ClassVar[str] = "CFG + SLG"
    on_condition: ClassVar[bool] = True
    needs_null: ClassVar[bool] = True
    in_pipelines: ClassVar[bool] = True
    holds_for_both: ClassVar[tuple[str, ...]] = ("rescale", *INTERVAL)
    method: str = "cfg_slg"
    scale: Any = 3.0
    slg: SLG = field(default_factory=SLG)

    def make(self, scale: float, seed: Seed) -> Any:
        more = {"guidance_scale": float(scale), "guidance_rescale": self.rescale, **self.interval}
        return self.slg.guider(self.slg.scales[0], **more)

    @property
    def calls_per_step(self) -> int:
        return 3

    @property
    def second(self) -> SLG:
        return self.slg

    @property
    def perturbs(self) -> bool:
        return True

    def check_network(self, network: Any) -> None:
        self.slg.check_network(network)


@dataclass
class OwnPipeline(Guidance):
    """A method that a pipeline of diffusers does itself: it takes the scale and nothing of the interval."""

    def check(self) -> None:
        """Keys that the pipeline would ignore are refused."""
        super().check()
        _refuse_set(self, (*INTERVAL, "rescale"), "is done by diffusers' own pipeline, which has no such setting")


@dataclass
class PAG(OwnPipeline):
    """Perturbed attention guidance by diffusers' own pipelines (Ahn et al. 2024); their pag_scale is w - 1.

    layers: names or patterns of the perturbed layers. None: the pipeline's choice.
    """

    label: ClassVar[str] = "PAG"
    own_pipeline: ClassVar[str] = "pag"
    method: str = "pag"
    scale: Any = 4.0
    layers: list[str] | None = None


@dataclass
class SAG(OwnPipeline):
    """Self-attention guidance by diffusers' own pipeline (Hong et al. 2023); its sag_scale is w - 1."""

    label: ClassVar[str] = "SAG"
    own_pipeline: ClassVar[str] = "sag"
    method: str = "sag"
    scale: Any = 1.75
