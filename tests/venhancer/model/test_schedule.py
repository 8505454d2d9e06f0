"""The noise schedule against the published table and its definition."""

from __future__ import annotations

import math

import pytest
import torch

from toolkit.venhancer.model.schedule import VideoNoiseSchedule

# t: sigma, alpha, log-SNR; computed with the official code
TABLE = {
    0: (0.001106, 0.999999, 13.614),
    49: (0.158737, 0.987321, 3.655),
    99: (0.319489, 0.947590, 2.174),
    149: (0.468452, 0.883489, 1.269),
    199: (0.596763, 0.802417, 0.592),
    249: (0.700710, 0.713446, 0.036),
    299: (0.781177, 0.624309, -0.448),
    499: (0.942608, 0.333902, -2.076),
    899: (0.999094, 0.042566, -6.312),
}


@pytest.mark.parametrize("step", TABLE)
def test_table(step):
    schedule, (sigma, alpha, log_snr) = VideoNoiseSchedule(), TABLE[step]
    assert schedule.sigmas[step].item() == pytest.approx(sigma, abs=1e-6)
    assert schedule.alphas[step].item() == pytest.approx(alpha, abs=1e-5)
    assert 2 * math.log(schedule.alphas[step] / schedule.sigmas[step]) == pytest.approx(log_snr, abs=2e-3)


def test_variance_is_kept_and_the_last_step_is_pure_noise():
    schedule = VideoNoiseSchedule()
    torch.testing.assert_close(schedule.alphas.square() + schedule.sigmas.square(), torch.ones(1000))
    assert (schedule.sigmas.diff() > 0).all()
    assert (schedule.alphas[-1], schedule.sigmas[-1]) == (0, 1)


def test_fractional_times():
    schedule = VideoNoiseSchedule()
    for time in (0.0, 454.0, 999.0):
        assert schedule.at(time) == (schedule.alphas[int(time)].item(), schedule.sigmas[int(time)].item())
    alpha, sigma = schedule.at(454.25)
    ratios = (schedule.sigmas / schedule.alphas).log()
    assert math.log(sigma / alpha) == pytest.approx((0.75 * ratios[454] + 0.25 * ratios[455]).item(), abs=1e-6)
    assert alpha**2 + sigma**2 == pytest.approx(1)
    assert schedule.at(998.5) == (0.0, 1.0)  # between the last two there is no finite ratio


def test_velocity_gives_the_sample_and_the_noise_back():
    schedule, x0, noise = VideoNoiseSchedule(), torch.randn(3, 4, 2, 5, 5), torch.randn(3, 4, 2, 5, 5)
    step = torch.tensor([0, 500, 999])
    x, v = schedule.add_noise(x0, noise, step), schedule.velocity(x0, noise, step)
    torch.testing.assert_close(schedule.clean(x, v, step), x0, atol=1e-5, rtol=1e-5)
    assert torch.equal(x[2], noise[2])


def test_saved_and_loaded(tmp_path):
    VideoNoiseSchedule(scale_max=3.0).save_pretrained(tmp_path)
    again = VideoNoiseSchedule.from_pretrained(tmp_path)
    assert torch.equal(again.sigmas, VideoNoiseSchedule(scale_max=3.0).sigmas)
