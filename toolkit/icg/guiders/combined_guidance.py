"""Several guiders in one loop: ICG and TSG in three calls (Sadat et al. 2025, table 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.icg.guiders.base import Branch, Inputs, WeakBranchGuidance
from toolkit.icg.guiders.clock import Clock
from toolkit.icg.guiders.independent_condition_guidance import IndependentConditionGuidance
from toolkit.icg.guiders.time_step_guidance import TimeStepGuidance

KINDS: dict[str, type[WeakBranchGuidance]] = {
    one.__name__: one for one in (IndependentConditionGuidance, TimeStepGuidance)
}


class CombinedGuidance(WeakBranchGuidance):
    """D_cond + sum_i (w_i - 1)(D_cond - D_weak_i) over the weak branches of all ``guiders``, one conditional call.

    Each guider keeps its scale, interval, seed and projection; a step where one alone is active is that guider's own.

    Args:
        guiders: IndependentConditionGuidance and TimeStepGuidance objects, or their configs (as saved).
        guidance_rescale: on the combined prediction.

    Raises:
        UserError: fewer than two guiders, two of one kind, an unknown kind, a rescale set on a part, CADS set on two.
    """

    @register_to_config
    def __init__(self, guiders: Sequence[Any] = (), guidance_rescale: float = 0.0, enabled: bool = True) -> None:
        super().__init__(guidance_rescale=guidance_rescale, enabled=enabled)
        self.guiders: list[WeakBranchGuidance] = [_build(one) for one in guiders]
        if len(self.guiders) < 2 or len({type(one) for one in self.guiders}) < len(self.guiders):
            raise UserError("guiders: give at least two, each of another kind")
        if any(one.guidance_rescale for one in self.guiders):
            raise UserError("guidance_rescale: set it on the combination, not on its parts")
        if sum(one.annealing.scale > 0 for one in self.guiders) > 1:
            raise UserError("cads_scale: set it on one part alone, for all parts see the same noisy condition")
        self.register_to_config(guiders=[_saved(one) for one in self.guiders])

    def set_generator(self, generator: torch.Generator | Sequence[torch.Generator] | None) -> None:
        for one in self.guiders:
            one.set_generator(generator)

    def set_clock(self, clock: Clock | None) -> None:
        for one in self.guiders:
            one.set_clock(clock)

    def set_condition_bank(self, bank: Mapping[str, Tensor] | None) -> None:
        """The bank of the ICG part."""
        for one in self.guiders:
            if isinstance(one, IndependentConditionGuidance):
                one.set_condition_bank(bank)

    def bind(self, network: nn.Module) -> None:
        for one in self.guiders:
            one.bind(network)

    def set_state(self, step: int, num_inference_steps: int | None, timestep: Tensor | float) -> None:  # type: ignore[override]
        super().set_state(step, num_inference_steps, timestep)
        for one in self.guiders:
            one.set_state(step, num_inference_steps, timestep)

    def end_run(self) -> None:
        super().end_run()
        for one in self.guiders:
            one.end_run()

    @property
    def draws_all_text(self) -> bool:
        return any(one.draws_all_text for one in self.guiders)

    def _num_branches(self) -> int:
        return sum(one._num_branches() for one in self.guiders) if self._enabled else 0

    def _branches(self, data: Inputs) -> list[Branch]:
        if not self._enabled:
            return []
        return [branch for one in self.guiders for branch in one._branches(data)]

    def _needs_negative(self) -> bool:
        return self._enabled and any(one._needs_negative() for one in self.guiders)

    def _resists_caching(self) -> bool:
        return any(one._resists_caching() for one in self.guiders)

    def _anneal(self, data: Inputs) -> None:
        self.cond_changes = ()
        for one in self.guiders if self._enabled else ():
            one._anneal(data)
            self.cond_changes += one.cond_changes


def _saved(guider: WeakBranchGuidance) -> dict[str, Any]:
    config = {name: value for name, value in guider.config.items() if not name.startswith("_")}
    return {"_class_name": type(guider).__name__, **config}


def _build(part: Any) -> WeakBranchGuidance:
    if isinstance(part, IndependentConditionGuidance | TimeStepGuidance):
        return part
    kind = part.get("_class_name") if isinstance(part, Mapping) else type(part).__name__
    if kind not in KINDS or not isinstance(part, Mapping):
        raise UserError(f"guiders: {kind} cannot be combined, choose from {', '.join(KINDS)}")
    return KINDS[kind](**{name: value for name, value in part.items() if name != "_class_name"})
