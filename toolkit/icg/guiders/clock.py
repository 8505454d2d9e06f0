"""What a guider may know of time: the paper's normalised t and the noise level sigma, from whatever a loop counts in.

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
        """sigma: noise over signal, as in EDM (Karras et al. 2022); infinite where nothing is left of the signal."""
        raise NotImplementedError


class TrainingSteps(Clock):
    """Time in training steps, 0 to ``num_train_timesteps``, as the loops of diffusers count; sigma is not known."""

    def __init__(self, num_train_timesteps: float = 1000) -> None:
        self.num_train_timesteps = num_train_timesteps

    def fraction(self, time: float) -> float:
        return time / self.num_train_timesteps

    def noise_level(self, time: float) -> float:
        raise UserError("sigma_min, sigma_max: this loop counts in steps; call set_clock(SchedulerClock(scheduler))")


class SchedulerClock(Clock):
    """The time of a diffusers scheduler: sigma from its alphas_cumprod, its flow time, or EDM's c_noise.

    Raises UserError from ``noise_level`` for a scheduler of neither kind.
    """

    def __init__(self, scheduler: Any) -> None:
        config = scheduler.config
        self.name = type(scheduler).__name__
        self.num_train_timesteps = config.get("num_train_timesteps", 1000)
        self.sigma_range = config.get("sigma_min", 0.002), config.get("sigma_max", 80.0)
        self.kind, self.log_sigmas = "unknown", np.zeros(0)
        flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
        if self.name.startswith("EDM"):
            self.kind = "edm"
        elif flow or "FlowMatch" in self.name:
            self.kind = "flow"
        elif hasattr(scheduler, "alphas_cumprod"):
            self.kind, kept = "vp", scheduler.alphas_cumprod.double().clamp(1e-12, 1 - 1e-12).cpu()
            self.log_sigmas = (((1 - kept) / kept).log() / 2).numpy()

    def fraction(self, time: float) -> float:
        if self.kind == "edm":
            return NoiseLevels(*self.sigma_range).fraction(self.noise_level(time))
        return time / self.num_train_timesteps

    def noise_level(self, time: float) -> float:
        if self.kind == "edm":  # c_noise = log(sigma) / 4, Karras et al. 2022, table 1
            return math.exp(4 * time)
        if self.kind == "flow":
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
