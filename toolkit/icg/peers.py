"""Methods that diffusers has, to stand beside: as guiders of its own, or as pipelines of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from toolkit.errors import UserError
from toolkit.icg.guidance import Guidance, Seed
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
        """Of the interval diffusers' guiders know the steps."""
        super().check()
        for key, unset in {"t_min": 0.0, "t_max": 1000.0, "sigma_min": None, "sigma_max": None}.items():
            if getattr(self, key) != unset:
                raise UserError(f"guidance.{key}={getattr(self, key)}: {self.method} takes start and stop alone")


@dataclass
class CFGZeroStar(OfDiffusers):
    """CFG-Zero* (Fan et al. 2025), for flow matching: the null prediction scaled to fit, the first steps left out.

    zero_init_steps: how many first steps do nothing.
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
class PAG(Guidance):
    """Perturbed attention guidance by diffusers' own pipelines (Ahn et al. 2024); their pag_scale is w - 1.

    layers: names or patterns of the layers that are perturbed; None is the pipeline's own choice.
    """

    label: ClassVar[str] = "PAG"
    own_pipeline: ClassVar[str] = "pag"
    method: str = "pag"
    scale: Any = 4.0
    layers: list[str] | None = None


@dataclass
class SAG(Guidance):
    """Self-attention guidance by diffusers' own pipeline (Hong et al. 2023); its sag_scale is w - 1."""

    label: ClassVar[str] = "SAG"
    own_pipeline: ClassVar[str] = "sag"
    method: str = "sag"
    scale: Any = 1.75
