"""When guidance acts: the paper limits TSG to a time interval (table 11); ICG's bias at low noise calls for one too."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from toolkit.errors import UserError
from toolkit.icg.guiders.clock import Clock, one_time


@dataclass(frozen=True)
class Interval:
    """When guidance acts, as shares of the steps, thousandths of time and noise levels; all three must hold.

    Raises UserError where a lower limit exceeds its upper one.
    """

    start: float = 0.0
    stop: float = 1.0
    t_min: float = 0.0
    t_max: float = 1000.0
    sigma_min: float | None = None
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        if not self.t_min <= self.t_max:
            raise UserError(f"t_min={self.t_min}, t_max={self.t_max}: t_min must not exceed t_max")
        if (self.sigma_min or 0) > (math.inf if self.sigma_max is None else self.sigma_max):
            raise UserError(
                f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}: sigma_min must not exceed sigma_max"
            )

    def holds_step(self, step: int, num_steps: int | None) -> bool:
        """The rule of diffusers: int(start n) <= step < int(stop n)."""
        if self.start == 0 and self.stop == 1:
            return True
        if num_steps is None:
            raise UserError("start, stop: the number of steps is not known; give num_evaluations, or t or sigma limits")
        return int(self.start * num_steps) <= step < int(self.stop * num_steps)

    def holds_time(self, time: Tensor | float, clock: Clock) -> bool:
        """Whether t in thousandths and sigma are within their limits, both ends included."""
        if (self.t_min > 0 or self.t_max < 1000) and not (
            self.t_min <= 1000 * clock.fraction(one_time(time)) <= self.t_max
        ):
            return False
        if self.sigma_min is None and self.sigma_max is None:
            return True
        sigma = clock.noise_level(one_time(time))
        return (self.sigma_min or 0) <= sigma <= (math.inf if self.sigma_max is None else self.sigma_max)
