"""Time for guiders: the paper's normalised t and the noise level sigma, from the unit that a sampling loop counts in.

Sadat et al. 2025, section 2: t in [0, 1], sigma(0) = 0, sigma(1) = sigma_max. The scale s * t^alpha of time-step
guidance needs this t; the loops of diffusers and of our samplers count in training steps or in sigma.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.errors import UserError


class Clock:
    """Reads one loop's time. ``time`` is what the loop hands to ``guider.set_state(timestep=...)``."""

    def fraction(self, time: float) -> float:
        """t of the paper: 0 for clean data, 1 for pure noise."""
        raise NotImplementedError

    def noise_level(self, time: float) -> float:
        """sigma: noise over signal, as in EDM (Karras et al. 2022); infinite where no signal is left."""
        raise NotImplementedError


class TrainingSteps(Clock):
    """Time in training steps, 0 to ``num_train_timesteps``, as the loops of diffusers count; sigma is not known."""

    def __init__(self, num_train_timesteps: float = 1000) -> None:
        self.num_train_timesteps = num_train_timesteps

    def fraction(self, time: float) -> float:
        return time / self.num_train_timesteps

    def noise_level(self, time: float) -> float:
        raise UserError("sigma_min, sigma_max: this loop counts in steps; call set_clock(SchedulerClock(scheduler))")


# Schedulers that count from 1 to 0, or in an angle (the noise is its tangent); c_noise may stand in thousandths.
UNIT_TIME = ("ScoreSdeVeScheduler", "ScoreSdeVpScheduler", "DDPMWuerstchenScheduler")
QUARTER_TURN = ("IPNDMScheduler", "CosineDPMSolverMultistepScheduler")
FLOWS = ("FlowMatch", "FlowMap", "Piflow", "LTXEuler", "Helios")


class SchedulerClock(Clock):
    """The time of a diffusers scheduler: steps, flow time, EDM's c_noise, an angle.

    Raises UserError from ``noise_level`` where the noise is not known from the time, and from both where the scheduler
    counts neither to ``num_train_timesteps`` nor in a way that is known here.
    """

    def __init__(self, scheduler: Any) -> None:
        config = scheduler.config
        self.name = type(scheduler).__name__
        self.num_train_timesteps = config.get("num_train_timesteps")
        self.noise_levels = NoiseLevels(config.get("sigma_min") or 0.002, config.get("sigma_max") or 80.0)
        self.unit, self.sigma_data = 1.0, config.get("sigma_data", 0.5)
        self.kind, self.log_sigmas = "steps", np.zeros(0)
        flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
        continuous = config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"
        if self.name.startswith(("EDM", "CMStochastic")) or continuous:
            self.kind, self.unit = "edm", 1000.0 if self.name.startswith("CM") else 1.0
        elif self.name in UNIT_TIME:
            self.kind = "share"
        elif self.name in QUARTER_TURN or self.name == "SCMScheduler":
            self.kind, self.unit = "angle", math.pi / 2 if self.name == "SCMScheduler" else 1.0
        elif flow or self.name.startswith(FLOWS):
            self.kind = "flow"
        elif hasattr(scheduler, "alphas_cumprod"):
            self.kind, kept = "vp", scheduler.alphas_cumprod.double().clamp(1e-12, 1 - 1e-12).cpu()
            self.log_sigmas = (((1 - kept) / kept).log() / 2).numpy()

    def fraction(self, time: float) -> float:
        if self.kind == "edm":
            return self.noise_levels.fraction(self.noise_level(time))
        if self.kind in ("share", "angle"):
            return time / self.unit
        if self.num_train_timesteps is None:
            raise UserError(f"t_min, t_max, time-step guidance: what time {self.name} counts in is not known")
        return time / self.num_train_timesteps

    def noise_level(self, time: float) -> float:
        if self.kind == "edm":  # c_noise = log(sigma) / 4, Karras et al. 2022, table 1
            return math.exp(4 * time / self.unit)
        if self.kind == "angle":
            level = math.tan(min(time / self.unit, 1.0) * math.pi / 2)
            return level * (self.sigma_data if self.name == "SCMScheduler" else 1.0)
        if self.kind == "flow" and self.num_train_timesteps:
            flow_time = time / self.num_train_timesteps
            return flow_time / (1 - flow_time) if flow_time < 1 else math.inf
        if self.kind == "vp":
            return float(np.exp(np.interp(time, np.arange(len(self.log_sigmas)), self.log_sigmas)))
        raise UserError(f"sigma_min, sigma_max: the noise level of {self.name} is not known; use t_min and t_max")


class NoiseLevels(Clock):
    """Time is sigma itself. t is the share of EDM's default schedule that lies below sigma (Karras et al. 2022, eq. 5).

    The paper gives no t for EDM models; this one advances evenly with the steps of their sampler.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        self.low, self.high, self.rho = sigma_min ** (1 / rho), sigma_max ** (1 / rho), rho

    def fraction(self, time: float) -> float:
        return min(1.0, max(0.0, (time ** (1 / self.rho) - self.low) / (self.high - self.low)))

    def noise_level(self, time: float) -> float:
        return time


def one_time(timestep: Tensor | float) -> float:
    """The one time of a batch. Raises UserError where samples of a batch are at different times."""
    if not isinstance(timestep, Tensor):
        return float(timestep)
    times = timestep.flatten()
    if len(times) > 1 and not bool(torch.all(times == times[0])):
        raise UserError("timestep: all samples of a batch must be at the same time")
    return float(times[0])
