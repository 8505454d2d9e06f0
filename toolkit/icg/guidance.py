"""What every guidance method has: its keys, and what ``sample-icg`` must know of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from toolkit.errors import UserError
from toolkit.schema import MISSING, number

if TYPE_CHECKING:
    from toolkit.icg.guiders.base import WeakBranchGuidance

Seed = int | Sequence[int]
INTERVAL = ("start", "stop", "t_min", "t_max", "sigma_min", "sigma_max")


@dataclass
class Guidance:
    """One way to guide: a row of METHODS, and the keys of the group ``guidance``.

    method: name of the method. ``guidance=`` sets it. scale: w, where 1 is no guidance; a number, or a list to compare
    several. It weighs the condition (cfg, icg and their combinations with TSG), or the weak branch of methods that have
    only that. start: share of the steps after which guidance starts. stop: share of the steps after which guidance
    stops. t_min: lowest time with guidance, in thousandths. t_max: highest time with guidance, in thousandths.
    sigma_min: lowest noise level with guidance. None: no limit. sigma_max: highest noise level with guidance. None: no
    limit. rescale: how far the contrast is brought back to that of the conditional model (Lin et al. 2023, equation
    16); 0 is off.

    What the command must know of a method:
        label: its name in tables and figures. guides: False for sampling without guidance.
        on_condition: it weighs the condition, so it needs a conditional model; such methods are compared at one scale.
        needs_null: it needs the null condition, that is training with dropping.
        has_curve: the small models are measured along a curve of scales.
        in_pipelines: it works on diffusers pipelines alone: it reads noise or velocity predictions, or skips blocks.
        own_pipeline: for a method without a guider: the prefix of the diffusers pipelines that implement it.
        holds_for_both: of two methods together, the keys of the first that hold for the second too.
    """

    label: ClassVar[str] = ""
    guides: ClassVar[bool] = True
    on_condition: ClassVar[bool] = False
    needs_null: ClassVar[bool] = False
    has_curve: ClassVar[bool] = False
    in_pipelines: ClassVar[bool] = False
    own_pipeline: ClassVar[str] = ""
    holds_for_both: ClassVar[tuple[str, ...]] = ()

    method: str = MISSING
    scale: Any = 1.0
    start: float = number(0.0, least=0, below=1)
    stop: float = number(1.0, least=0, most=1)
    t_min: float = number(0.0, least=0, most=1000)
    t_max: float = number(1000.0, least=0, most=1000)
    sigma_min: float | None = number(None, least=0)
    sigma_max: float | None = number(None, least=0)
    rescale: float = number(0.0, least=0, most=1)

    def make(self, scale: float, seed: Seed) -> WeakBranchGuidance:
        """The guider at w = ``scale``; ``seed`` as the guiders take it. Raises UserError for a method without one."""
        raise UserError(f"guidance={self.method}: has no guider")

    @property
    def calls_per_step(self) -> int:
        """Network calls of one guided step, within the interval."""
        return 2

    @property
    def on_time(self) -> Any:
        """The settings of the time-step guidance in it, or None."""
        return None

    @property
    def second(self) -> Guidance | None:
        """The settings of the second of two methods, or None."""
        return None

    @property
    def perturbs(self) -> bool:
        """Whether it hooks into the network, which must then not be compiled."""
        return self.on_time is not None

    def check_network(self, network: Any) -> None:
        """Raises UserError where ``network`` has nothing that the method would perturb."""
        if (tsg := self.on_time) is not None:
            from toolkit.icg.guiders.time_embeddings import find_time_embeddings

            find_time_embeddings(network, tsg.time_embedding_modules, tsg.max_layers)

    @property
    def interval(self) -> dict[str, Any]:
        """The keys that say when it guides."""
        return {name: getattr(self, name) for name in INTERVAL}

    @property
    def scales(self) -> list[float]:
        """Every w asked for, in order."""
        return list(self.scale) if isinstance(self.scale, list) else [self.scale]

    def check(self) -> None:
        """Scales are finite numbers; the limits of the interval are in order; a second method has one scale."""
        for one in self.scales:
            if isinstance(one, bool) or not isinstance(one, (int, float)) or not 0 <= one < math.inf:
                raise UserError(f"guidance.scale={one}: must be a number of at least 0 (1 is no guidance), or a list")
        if not self.scales or len(set(self.scales)) < len(self.scales):
            raise UserError(f"guidance.scale={self.scale}: must be different numbers, at least one")
        for low, high in (("start", "stop"), ("t_min", "t_max"), ("sigma_min", "sigma_max")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise UserError(f"guidance.{low}={least}: must not exceed guidance.{high}={most}")
        if self.second is not None:
            self._check_second(self.second)

    def _check_second(self, second: Guidance) -> None:
        if len(second.scales) > 1:
            raise UserError(
                f"guidance.{second.method}.scale={second.scale}: must be one number; guidance.scale may be several"
            )
        for key in self.holds_for_both:
            if getattr(second, key) != getattr(Guidance, key):
                raise UserError(f"guidance.{second.method}.{key}: set guidance.{key}, which holds for both methods")
