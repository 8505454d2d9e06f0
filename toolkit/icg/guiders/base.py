"""What the guiders share: a conditional prediction, weaker ones, and the step away from them.

    D_hat = D_weak + w (D_cond - D_weak),    with several:  D_cond + sum_i (w_i - 1)(D_cond - D_weak_i)

Sadat et al. 2025, algorithms 1 and 2; w = 1 is no guidance. The sum is our reading of "ICG and TSG together", for which
the paper gives no formula. Predictions of noise, velocity or the clean sample are affine in D at fixed input, so the
same formula serves them all.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput, rescale_noise_cfg
from torch import Tensor, nn

from toolkit.errors import UserError, did_you_mean
from toolkit.icg.guiders.cads import Annealing
from toolkit.icg.guiders.clock import Clock, TrainingSteps, one_time
from toolkit.icg.guiders.conditions import CODED_FIELDS, TEXT_FIELDS, canonical, carries_text
from toolkit.icg.guiders.hooks import Attached, OutputChange
from toolkit.icg.guiders.interval import Interval
from toolkit.icg.guiders.projection import Projection
from toolkit.icg.guiders.streams import Draws, Seed

Inputs = dict[str, Any]
"""Field name -> what the network gets (a tensor), or the pair (with the prompt, with the negative prompt)."""


@dataclass
class Branch:
    """One network call beside the conditional one; the branches of a ``group`` are averaged.

    fields replace those of the conditional call (slot 0) or of the negative one (slot 1); changes act on the network.
    """

    name: str
    owner: WeakBranchGuidance
    group: str
    scale: float
    fields: Mapping[str, Tensor] = field(default_factory=dict)
    changes: tuple[OutputChange, ...] = ()
    slot: int = 0


class WeakBranchGuidance(BaseGuidance):
    """Base of ``IndependentConditionGuidance``, ``TimeStepGuidance`` and ``CombinedGuidance``; not used by itself.

    The contract is that of diffusers' guiders: ``set_state``, ``prepare_inputs``, then per call ``prepare_models``, the
    network and ``cleanup_models``, and the guider itself on the predictions. Only the conditional slot of the inputs is
    read (the negative one by classifier-free guidance alone); the weak branches are made here.
    """

    _input_predictions = ["pred_cond", "pred_uncond"]  # noqa: RUF012 (diffusers demands a list on the class)
    purpose = ""

    def __init__(
        self,
        *,
        interval: Interval | None = None,
        annealing: Annealing | None = None,
        projection: Projection | None = None,
        num_train_timesteps: float = 1000,
        guidance_rescale: float = 0.0,
        use_original_formulation: bool = False,
        seed: Seed = 0,
        enabled: bool = True,
    ) -> None:
        self.interval = interval or Interval()
        super().__init__(self.interval.start, self.interval.stop, enabled)
        # diffusers takes positional arguments for defaults, and from_config then drops them
        self.register_to_config(_use_default_values=[])
        self.annealing, self.projection = annealing or Annealing(), projection or Projection()
        self.guidance_rescale, self.use_original_formulation = guidance_rescale, use_original_formulation
        if not 0 <= guidance_rescale <= 1:
            raise UserError(f"guidance_rescale={guidance_rescale}: must be in [0, 1]")
        self.draws, self.annealing_draws = Draws(seed, self.purpose), Draws(seed, "cads")
        self.own_clock = TrainingSteps(num_train_timesteps)
        self.clock: Clock = self.own_clock
        self.plan: list[Branch | None] = []
        self.cond_changes: tuple[OutputChange, ...] = ()
        self.attached: Attached | None = None

    # --- settings that are not in the config ---

    def new(self, **kwargs: Any) -> WeakBranchGuidance:
        """A copy with other settings. Raises UserError for a name that is not a setting."""
        for name in kwargs:
            if name not in self.config:
                raise UserError(
                    f"{name}: no setting of {type(self).__name__}; {did_you_mean(name, self.config)}".strip()
                )
        return super().new(**kwargs)

    def set_generator(self, generator: torch.Generator | Sequence[torch.Generator] | None) -> None:
        """Draw all noise and conditions from this generator, or from one per sample, instead of the seed.

        It is never reseeded here. None returns to the seed.
        """
        self.draws.use(generator)
        self.annealing_draws.use(generator)

    def set_clock(self, clock: Clock | None) -> None:
        """How ``timestep`` is read; None is training steps."""
        self.clock = clock or self.own_clock

    def bind(self, network: nn.Module) -> None:
        """Learn from the network what its conditions may be. ``guided`` and ``guided_denoiser`` call this."""

    # --- the loop's contract ---

    def set_state(self, step: int, num_inference_steps: int | None, timestep: Tensor | float) -> None:  # type: ignore[override]
        super().set_state(step, num_inference_steps, timestep)  # type: ignore[arg-type]
        self._detach()
        if step == 0:
            self.restart()

    def restart(self) -> None:
        """A new run begins: reseed, forget per-run draws and momentum."""
        self.draws.restart()
        self.annealing_draws.restart()
        self.projection.restart()

    def end_run(self) -> None:
        """Forget where the loop was, so that the next pipeline call prepares its text as the first did."""
        self._step = self._num_inference_steps = self._timestep = None  # type: ignore[assignment]
        self._count_prepared, self.plan, self.cond_changes = 0, [], ()
        self._detach()

    def prepare_inputs(self, data: Inputs) -> list[Any]:  # type: ignore[override]
        """One block of inputs per network call, the conditional one first."""
        data = dict(data)
        self._warn_of_negative(data)
        self._anneal(data)
        branches = self._branches(data)
        self.plan = [None, *branches]
        states = [self._prepare_batch(data, 0, "pred_cond")]
        return states + [self._prepare_batch(data | dict(one.fields), one.slot, one.name) for one in branches]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Mapping[str, Any]) -> list[Any]:  # type: ignore[override]
        """As ``prepare_inputs``, with values looked up on ``data`` by attribute name."""
        return self.prepare_inputs({name: _look_up(data, where) for name, where in input_fields.items()})

    def prepare_models(self, denoiser: nn.Module) -> None:
        super().prepare_models(denoiser)
        self._refuse_cache(denoiser)
        self.attached = Attached(denoiser, [(one, None) for one in self._changes(self._count_prepared - 1)])

    def prepare_models_batched(self, denoiser: nn.Module, batch_size: int) -> None:
        """All calls as one of ``len(states) * batch_size`` rows: each call's changes touch its rows alone."""
        self._refuse_cache(denoiser)
        calls = [(index, slice(index * batch_size, (index + 1) * batch_size)) for index in range(len(self.plan))]
        changes = [(one, rows) for index, rows in calls for one in self._changes(index)]
        self.attached = Attached(denoiser, changes, len(self.plan) * batch_size)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        self._detach()

    def __call__(self, data: list[Any]) -> GuiderOutput:
        output = super().__call__(data)
        if self._num_inference_steps is not None and self._step + 1 >= self._num_inference_steps:
            self.end_run()
        return output

    def forward(self, pred_cond: Tensor, **weak: Tensor) -> GuiderOutput:
        groups: dict[str, list[tuple[Branch, Tensor]]] = {}
        for branch in self.plan[1:]:
            assert branch is not None
            groups.setdefault(branch.group, []).append((branch, weak[branch.name]))
        means = [(ones[0][0], _mean([prediction for _, prediction in ones])) for ones in groups.values()]
        pred = self._combine(pred_cond, means)
        if self.guidance_rescale > 0 and means:
            pred = rescale_noise_cfg(pred, pred_cond, self.guidance_rescale)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=means[0][1] if means else None)

    @property
    def is_conditional(self) -> bool:
        branch = self.plan[self._count_prepared - 1] if 0 < self._count_prepared <= len(self.plan) else None
        return branch is None or not (branch.slot or branch.fields)

    @property
    def num_conditions(self) -> int:
        """Network calls of this step. Before the loop: 2 if the negative prompt will be needed, else 1."""
        if self._step is None:
            return 1 + self._needs_negative()
        return 1 + self._num_branches()

    # --- for subclasses ---

    @property
    def draws_all_text(self) -> bool:
        """Whether every input that carries the prompt is drawn anew."""
        return False

    def _num_branches(self) -> int:
        """Weak branches of this step; none outside the interval."""
        raise NotImplementedError

    def _branches(self, data: Inputs) -> list[Branch]:
        """The weak branches of this step, ``_num_branches`` of them."""
        raise NotImplementedError

    def _needs_negative(self) -> bool:
        return False

    def _resists_caching(self) -> bool:
        """Whether the weak branch differs from step to step: features cached at one step are then wrong at the next."""
        return True

    def is_active(self) -> bool:
        """Whether this step lies within the interval."""
        if not self._enabled:
            return False
        if self._step is None or self._timestep is None:
            return True
        in_steps = self.interval.holds_step(self._step, self._num_inference_steps)
        return in_steps and self.interval.holds_time(self._timestep, self.clock)

    def time_fraction(self) -> float:
        """t in [0, 1] of this step; 1 before the loop."""
        return 1.0 if self._timestep is None else self.clock.fraction(one_time(self._timestep))

    def _is_off(self, scale: float) -> bool:
        return math.isclose(scale, 0.0 if self.use_original_formulation else 1.0)

    # --- inner ---

    def _combine(self, pred_cond: Tensor, means: list[tuple[Branch, Tensor]]) -> Tensor:
        if not means:
            return pred_cond
        branch, weak = means[0]
        if len(means) == 1 and branch.owner.projection.is_identity:
            # the operations and order of diffusers' ClassifierFreeGuidance: equal branches give equal bits
            start = pred_cond if branch.owner.use_original_formulation else weak
            return start + branch.scale * (pred_cond - weak)
        pred = pred_cond
        for branch, weak in means:
            direction = branch.owner.projection(pred_cond - weak, pred_cond, branch.group)
            pred = pred + (branch.scale - (not branch.owner.use_original_formulation)) * direction
        return pred

    def _anneal(self, data: Inputs) -> None:
        """CADS, in place: float conditions here, integer labels where the network embeds them."""
        self.cond_changes = ()
        if not self._enabled or not self.annealing.scale or self.annealing.gamma(t := self.time_fraction()) == 1:
            return
        for name, value in data.items():
            real = value[0] if isinstance(value, tuple) else value
            if real is None or not (canonical(name) in CODED_FIELDS or carries_text(name)):
                continue
            if real.is_floating_point():
                noisy = self.annealing.anneal(real, self.annealing_draws.normal(real.shape, real.device), t)
                data[name] = (noisy, *value[1:]) if isinstance(value, tuple) else noisy
            elif name == "class_labels":
                self.cond_changes = (self.annealing.on_class_embedding(self.annealing_draws, t),)

    def _changes(self, index: int) -> tuple[OutputChange, ...]:
        branch = self.plan[index] if index < len(self.plan) else None
        if branch is None:
            return self.cond_changes
        return branch.changes if branch.slot or branch.fields else branch.changes + self.cond_changes

    def _warn_of_negative(self, data: Inputs) -> None:
        text = [value for name, value in data.items() if canonical(name) in TEXT_FIELDS]
        given = any(isinstance(value, tuple) and len(value) > 1 and value[1] is not None for value in text)
        if given and self._step == 0 and not self._needs_negative():
            warnings.warn(
                f"{type(self).__name__} makes its own second branch: the negative prompt is ignored", stacklevel=3
            )

    def _refuse_cache(self, denoiser: nn.Module) -> None:
        if getattr(denoiser, "is_cache_enabled", False) and self._resists_caching():
            raise UserError(
                f"{type(denoiser).__name__} reuses features of earlier steps, but the weak branch changes every step: "
                "call disable_cache(), or draw the condition once with resample=run"
            )

    def _detach(self) -> None:
        if self.attached is not None:
            self.attached.detach()
            self.attached = None


def check_size(name: str, value: float, hint: str = "") -> None:
    """Raises UserError unless ``value`` is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise UserError(f"{name}={value}: must be a finite number of at least 0{hint}")


def check_scale(name: str, value: float) -> None:
    """As :func:`check_size`, of a scale w of guidance."""
    check_size(name, value, " (1 is no guidance)")


def real_fields(data: Inputs) -> dict[str, Tensor]:
    """The conditional slot of every field that is there."""
    slots = {name: value[0] if isinstance(value, tuple) else value for name, value in data.items()}
    return {name: value for name, value in slots.items() if isinstance(value, Tensor)}


def _mean(predictions: list[Tensor]) -> Tensor:
    return predictions[0] if len(predictions) == 1 else torch.stack(predictions).mean(0)


def _look_up(data: Any, where: str | tuple[str, ...]) -> Any:
    if isinstance(where, str):
        return getattr(data, where, None)
    return tuple(getattr(data, name, None) if name else None for name in where)
