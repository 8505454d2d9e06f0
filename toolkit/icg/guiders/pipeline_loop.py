"""Where the denoising loop of a pipeline is, told by its scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.errors import UserError

NATIVE_OFF = "switch the pipeline's own guidance off (guidance_scale=1.0; true_cfg_scale=1.0 for Flux)"


class Loop:
    """Step and time of every call of the network, which itself may see t / 1000, 1 - t, log sigma and more."""

    def __init__(self, pipe: Any, time_unit: float) -> None:
        self.pipe, self.scheduler, self.time_unit = pipe, pipe.scheduler, time_unit
        self.times = np.zeros(0)
        self.first: int | None = None
        self.step = self.rows = 0
        self.called = False

    def begins(self, set_timesteps: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = set_timesteps(*args, **kwargs)
            self.times = self.scheduler.timesteps.detach().cpu().double().numpy()
            self.first, self.step, self.called = None, 0, False
            return result

        return wrapper

    def steps(self, step: Callable[..., Any]) -> Callable[..., Any]:
        parameters = inspect.signature(step)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            given = parameters.bind_partial(*args, **kwargs).arguments
            sample = given.get("sample")
            if self.called and isinstance(sample, Tensor) and self.rows > len(sample):
                raise UserError(f"{type(self.pipe).__name__} doubles its batch: {NATIVE_OFF}")
            self._verify(given.get("timestep"))
            result = step(*args, **kwargs)
            self.step, self.called = self.step + 1, False
            return result

        return wrapper

    def enter(self, time: Any, rows: int) -> tuple[int, int, float]:
        """(step, number of steps, the scheduler's time) of a call at the network's ``time``."""
        if self.called:
            raise UserError(f"{type(self.pipe).__name__} calls its network twice in a step: {NATIVE_OFF}")
        if getattr(self.pipe, "do_classifier_free_guidance", False):
            raise UserError(f"{type(self.pipe).__name__} has guidance of its own switched on: {NATIVE_OFF}")
        if self.first is None:
            self.first = self._find(float(torch.as_tensor(time).float().max()) * self.time_unit)
        self.called, self.rows = True, rows
        return self.step, len(self.times) - self.first, self._time()

    def _time(self) -> float:
        assert self.first is not None
        return float(self.times[min(self.first + self.step, len(self.times) - 1)])

    def _find(self, time: float) -> int:
        """Position in the schedule of a run's first call; image-to-image pipelines begin in the middle.

        They tell the scheduler, where it listens; else the network's time tells, if it is in the scheduler's own unit.
        """
        if not len(self.times):
            raise UserError(f"{type(self.pipe).__name__} did not call its scheduler's set_timesteps inside guided()")
        begin = getattr(self.scheduler, "begin_index", None)
        if begin is not None:
            return int(begin)
        distances = np.abs(self.times - time)
        in_unit = abs(time) > 1 and distances.min() <= 0.01 * np.abs(self.times).max()  # bfloat16 times are 0.4% off
        return int(distances.argmin()) if in_unit else 0

    def _verify(self, time: Any) -> None:
        """Hold the position to the time that the pipeline gives its scheduler after the network's call."""
        if not self.called or isinstance(time, int) or time is None:  # some count steps here
            return
        at, near = float(torch.as_tensor(time).float().max()), 0.01 * np.abs(self.times).max()
        if abs(at - self._time()) > near and np.abs(self.times - at).min() <= near:
            raise UserError(
                f"{type(self.pipe).__name__} begins at time {at:g} of its schedule, its network was guided as at "
                f"{self._time():g}: pass time_unit, the scheduler's time over the network's"
            )
