"""The paper's two guiders, for Modular Diffusers, ordinary pipelines (``guided``) and our denoisers.

Sadat et al. 2025, "No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion Models".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.icg.guiders import presets
from toolkit.icg.guiders.base import Branch, Inputs, WeakBranchGuidance, check_scale, check_size, real_fields
from toolkit.icg.guiders.cads import Annealing
from toolkit.icg.guiders.conditions import Fields, IndependentCondition, Sampler
from toolkit.icg.guiders.interval import Interval
from toolkit.icg.guiders.projection import Projection
from toolkit.icg.guiders.streams import Draws


class IndependentConditionGuidance(WeakBranchGuidance):
    """ICG: the second branch sees a condition drawn independently of the sample (algorithm 1).

    Needs no null condition and no label dropping in training. Costs ``1 + num_draws`` network calls a step, so two, as
    classifier-free guidance does. On exact scores it is *not* classifier-free guidance: its mean pull does not fade at
    low noise and it overshoots (theorem A.2), so take a smaller scale, or keep it from low noise with ``sigma_min``.

    Args:
        guidance_scale: w, 1 is off (no second call). The paper's: ``preset``.
        condition: "auto", "class", "gaussian", "bank" or "shuffle", see IndependentCondition (section 4, figure 11).
        fields: inputs to draw anew; None is class_labels, latents and text embeddings, whichever are there.
        num_classes: K without the null class, where the network does not say.
        resample: "step" (the paper's), or "run": one condition for the whole trajectory.
        exclude_own: never draw the own class; in expectation the same as K / (K - 1) times the guidance.
        num_draws: conditions averaged per step, distinct ones for classes unless ``class_probabilities`` are given.
        std: of Gaussian conditions: "tensor" (the paper's), "sample", or a number.
        control_std: of the Gaussian picture that takes the place of a ControlNet's in a pipeline (the paper's, which
            gives no number); None keeps the real one in both branches.
        class_probabilities: weights of the classes, None for uniform.
        seed: of the guider's own draws; a list has one stream per sample. Never the pipeline's generator.
        t_min, t_max: interval of time in thousandths; sigma_min, sigma_max: of the noise level; start, stop: shares of
            the steps. Outside, one call.
        num_train_timesteps: what t counts to in the loop.
        guidance_rescale: Lin et al. 2023, eq. 16. apg_eta, apg_norm, apg_momentum: see Projection (1, 0, 0 is off).
        cads_scale, cads_tau1, cads_tau2, cads_mix: see Annealing (scale 0 is off).
        use_original_formulation: scales count from 0, as in Ho and Salimans 2022.

    Raises:
        UserError: a setting out of range; at the first step, no condition to draw or labels out of range.
    """

    purpose = "icg"
    kept: list[Fields] | None = None
    kept_control: dict[torch.Size, Tensor]

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 3.0,
        condition: str = "auto",
        fields: Sequence[str] | None = None,
        num_classes: int | None = None,
        resample: str = "step",
        exclude_own: bool = False,
        num_draws: int = 1,
        std: str | float = "tensor",
        class_probabilities: Sequence[float] | None = None,
        seed: int | Sequence[int] | None = 0,
        t_min: float = 0.0,
        t_max: float = 1000.0,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        num_train_timesteps: float = 1000,
        guidance_rescale: float = 0.0,
        apg_eta: float = 1.0,
        apg_norm: float = 0.0,
        apg_momentum: float = 0.0,
        cads_scale: float = 0.0,
        cads_tau1: float = 0.5,
        cads_tau2: float = 0.9,
        cads_mix: float = 1.0,
        use_original_formulation: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
        control_std: float | None = None,
    ) -> None:
        check_scale("guidance_scale", guidance_scale)
        if resample not in ("step", "run"):
            raise UserError(f"resample={resample}: choose one of step, run")
        check_size("control_std", control_std or 0)
        if num_draws < 1:
            raise UserError(f"num_draws={num_draws}: must be at least 1")
        super().__init__(
            interval=Interval(start, stop, t_min, t_max, sigma_min, sigma_max),
            annealing=Annealing(cads_scale, cads_tau1, cads_tau2, cads_mix),
            projection=Projection(apg_eta, apg_norm, apg_momentum),
            num_train_timesteps=num_train_timesteps,
            guidance_rescale=guidance_rescale,
            use_original_formulation=use_original_formulation,
            seed=seed,
            enabled=enabled,
        )
        self.guidance_scale, self.resample, self.num_draws = guidance_scale, resample, num_draws
        self.condition = IndependentCondition(condition, fields, num_classes, exclude_own, std, class_probabilities)
        self.control_std, self.control_draws, self.kept_control = control_std, Draws(seed, "control"), {}

    @classmethod
    def preset(cls, name: str) -> IndependentConditionGuidance:
        """The paper's settings (table 10; "dit-cads" table 7): see ``presets.ICG``."""
        return cls(**presets.look_up(presets.ICG, name))

    def set_generator(self, generator: torch.Generator | Sequence[torch.Generator] | None) -> None:
        super().set_generator(generator)
        self.control_draws.use(generator)

    def set_condition_bank(self, bank: Mapping[str, Tensor] | None) -> None:
        """Conditions to draw from: field -> (N, ...), row i of all fields belonging together; see random_token_bank."""
        self.condition.set_bank(bank)

    def set_condition_sampler(self, sampler: Sampler | None) -> None:
        """Draw by your own rule: ``sampler(real fields, draws) -> fields`` (latents from a prior, say)."""
        self.condition.sampler = sampler

    def bind(self, network: nn.Module) -> None:
        self.condition.bind(network)

    def restart(self) -> None:
        super().restart()
        self.control_draws.restart()
        self.kept, self.kept_control = None, {}

    def random_control(self, real: Tensor) -> Tensor:
        """A Gaussian image like the control image ``real`` (B, C, H, W); with resample="run" the same at every step."""
        assert self.control_std is not None
        if self.resample == "step" or real.shape not in self.kept_control:
            self.kept_control[real.shape] = self.control_draws.normal(real.shape, real.device)
        return (self.control_std * self.kept_control[real.shape]).to(real.dtype)

    @property
    def draws_all_text(self) -> bool:
        return self.condition.fields is None

    def _num_branches(self) -> int:
        return 0 if self._is_off(self.guidance_scale) or not self.is_active() else self.num_draws

    def _branches(self, data: Inputs) -> list[Branch]:
        if self._num_branches() == 0:
            return []
        drawn = self.kept or self.condition.draw(real_fields(data), self.num_draws, self.draws)
        self.kept = drawn if self.resample == "run" else None
        names = ["pred_uncond", *(f"pred_uncond_{index}" for index in range(2, self.num_draws + 1))]
        return [
            Branch(name, self, "icg", self.guidance_scale, fields) for name, fields in zip(names, drawn, strict=True)
        ]

    def _resists_caching(self) -> bool:
        return self.resample == "step"
