"""Which step the network is told, and which frames are key frames, with plain numbers."""

from __future__ import annotations

import pytest

from toolkit.venhancer.model.conditioning import key_frame_index
from toolkit.venhancer.model.samplers import plan_evaluations
from toolkit.venhancer.model.schedule import VideoNoiseSchedule


@pytest.mark.parametrize("solver", ["dpmpp_2m_sde", "heun", "ddim"])
def test_the_network_is_told_the_nearest_whole_step(solver):
    schedule = VideoNoiseSchedule()
    times = [899.0, 699.6, 454.5, 408.9, 135.64, 90.1]
    nearest = [899, 700, 454, 409, 136, 90]  # a half goes to the even one, as in the released sampler
    if solver == "heun":  # whose corrector is at the time that follows
        nearest = [899, 700, 700, 454, 454, 409, 409, 136, 136, 90, 90]
    evaluations = plan_evaluations(schedule, solver, times)
    assert [one.step for one in evaluations] == nearest
    for one, step in zip(evaluations, nearest, strict=True):
        assert (one.alpha, one.sigma) == (schedule.alphas[step].item(), schedule.sigmas[step].item())


def test_every_kth_frame_of_a_window_is_a_key_frame_and_the_others_have_none():
    assert key_frame_index(0, 7, 3).tolist() == [[0, -1, -1, 1, -1, -1, 2]]
    assert key_frame_index(4, 9, 2).tolist() == [[0, -1, 1, -1, 2]]  # counted from the window's own first
    assert key_frame_index(5, 8, 1).tolist() == [[0, 1, 2]]
