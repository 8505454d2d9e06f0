"""Time-step guidance (TSG, section 5 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.configuration_utils import register_to_config

from toolkit.errors import UserError
from toolkit.icg.guiders import presets
from toolkit.icg.guiders.base import Branch, Inputs, WeakBranchGuidance, check_scale, check_size
from toolkit.icg.guiders.cads import Annealing
from toolkit.icg.guiders.interval import Interval
from toolkit.icg.guiders.projection import Projection
from toolkit.icg.guiders.time_embeddings import TimeEmbeddings, time_noise


class TimeStepGuidance(WeakBranchGuidance):
    """TSG: the second branch sees a noisy embedding of the time step and the same condition, if any (algorithm 2).

    For conditional and unconditional models. Two network calls a step, three with classifier-free guidance.
    The noise is s * t^alpha * std(t_emb) * n (figure 12); alpha=0 is the paper's constant schedule.

    Args:
        tsg_scale: w, 1 is off. The paper's: ``preset``.
        noise_scale: s. alpha: power of t in [0, 1]; lower perturbs more.
        std_scaling: times the standard deviation of the embedding, as in the paper's experiments.
        max_layers: perturb only the first so many blocks (DiT; table 6c; of a UNet's encoder and decoder). None: all.
        time_embedding_modules: dotted names or patterns, where the search finds none or several.
        guidance_scale: of classifier-free guidance beside it, which reads the negative prompt or ``null``; 1 is off.

    The rest as in IndependentConditionGuidance.

    Raises:
        UserError: a setting out of range; at the first step, a time embedding that cannot be told.
    """

    _input_predictions = ["pred_cond", "pred_cond_tsg", "pred_uncond"]  # noqa: RUF012
    purpose = "tsg"

    @register_to_config
    def __init__(
        self,
        tsg_scale: float = 2.5,
        noise_scale: float = 2.0,
        alpha: float = 1.0,
        std_scaling: bool = True,
        t_min: float = 0.0,
        t_max: float = 1000.0,
        max_layers: int | None = None,
        time_embedding_modules: Sequence[str] | None = None,
        num_train_timesteps: float = 1000,
        guidance_scale: float = 1.0,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        seed: int | Sequence[int] | None = 0,
        guidance_rescale: float = 0.0,
        apg_eta: float = 1.0,
        apg_norm: float = 0.0,
        apg_momentum: float = 0.0,
        cads_scale: float = 0.0,
        cads_tau1: float = 0.5,
        cads_tau2: float = 0.9,
        cads_mix: float = 1.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        check_scale("tsg_scale", tsg_scale)
        check_scale("guidance_scale", guidance_scale)
        check_size("noise_scale", noise_scale)
        check_size("alpha", alpha)
        if max_layers is not None and max_layers < 1:
            raise UserError(f"max_layers={max_layers}: must be at least 1")
        super().__init__(
            interval=Interval(start, stop, t_min, t_max, sigma_min, sigma_max),
            annealing=Annealing(cads_scale, cads_tau1, cads_tau2, cads_mix),
            projection=Projection(apg_eta, apg_norm, apg_momentum),
            num_train_timesteps=num_train_timesteps,
            guidance_rescale=guidance_rescale,
            seed=seed,
            enabled=enabled,
        )
        self.tsg_scale, self.guidance_scale = tsg_scale, guidance_scale
        self.noise_scale, self.alpha, self.std_scaling = noise_scale, alpha, std_scaling
        self.time_embeddings = TimeEmbeddings(time_embedding_modules, max_layers)

    @classmethod
    def preset(cls, name: str) -> TimeStepGuidance:
        """The paper's settings (table 11): see ``presets.TSG``."""
        return cls(**presets.look_up(presets.TSG, name))

    def restart(self) -> None:
        super().restart()
        self.time_embeddings.forget()

    def end_run(self) -> None:
        super().end_run()
        self.time_embeddings.forget()

    def _num_branches(self) -> int:
        if not self.is_active():
            return 0
        return (not self._is_off(self.tsg_scale)) + self._needs_negative()

    def _needs_negative(self) -> bool:
        return self._enabled and not self._is_off(self.guidance_scale)

    def _branches(self, data: Inputs) -> list[Branch]:
        branches: list[Branch] = []
        if self._num_branches() == 0:
            return branches
        if not self._is_off(self.tsg_scale):
            size = self.noise_scale * (self.time_fraction() ** self.alpha if self.alpha else 1.0)
            noise = time_noise(self.draws, size, self.std_scaling, self.time_embeddings)
            branches.append(Branch("pred_cond_tsg", self, "tsg", self.tsg_scale, changes=(noise,)))
        if self._needs_negative():
            if not any(isinstance(value, tuple) and value[1] is not None for value in data.values()):
                raise UserError(f"guidance_scale={self.guidance_scale}: needs a negative prompt or a null condition")
            branches.append(Branch("pred_uncond", self, "cfg", self.guidance_scale, slot=1))
        return branches
