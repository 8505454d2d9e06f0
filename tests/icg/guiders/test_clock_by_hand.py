"""The noise level of flows and of variance-preserving schedules, written out."""

import math

import pytest
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from toolkit.icg import SchedulerClock


def test_a_flows_noise_over_its_signal_is_t_over_the_rest():
    clock = SchedulerClock(FlowMatchEulerDiscreteScheduler())  # x_t = (1 - t) x + t eps, t in thousandths
    assert [clock.noise_level(time) for time in (0, 250, 750, 1000)] == pytest.approx([0, 1 / 3, 3, math.inf])


def test_the_noise_of_a_variance_preserving_schedule_is_that_of_its_kept_share():
    scheduler = DDPMScheduler()  # betas from 1e-4 to 0.02, evenly
    kept, levels = 1.0, []
    for step in range(1000):
        kept *= 1 - (1e-4 + (0.02 - 1e-4) * step / 999)
        levels.append(math.sqrt((1 - kept) / kept))
    clock = SchedulerClock(scheduler)
    assert [clock.noise_level(step) for step in (1, 500, 999)] == pytest.approx(
        [levels[s] for s in (1, 500, 999)], rel=1e-3
    )
    assert clock.noise_level(500.5) == pytest.approx(math.sqrt(levels[500] * levels[501]), rel=1e-3)
