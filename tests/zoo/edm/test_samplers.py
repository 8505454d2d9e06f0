"""Samplers against Gaussian data, where the exact denoiser and the ODE's solution are known in closed form.

For y ~ N(mean, s^2 I): D(x, sigma) = (s^2 x + sigma^2 mean) / (s^2 + sigma^2), and along the ODE
(x - mean) / sqrt(s^2 + sigma^2) stays what it was.
"""

import pytest
import torch

from toolkit.disco.guidance import LatentGuidance
from toolkit.zoo.edm.samplers import (
    IMAGENET64_RESTART,
    IMAGENET64_RESTART_STEPS,
    RestartInterval,
    edm_sigmas,
    heun,
    heun_churn,
    num_evaluations,
    restart,
)

STD, MEAN = 0.5, 0.3


def denoise(x, sigma):
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def exact(x, sigma_from, sigma_to):
    return MEAN + (x - MEAN) * ((STD**2 + sigma_to**2) / (STD**2 + sigma_from**2)) ** 0.5


def noise(num, sigma):
    generator = torch.Generator().manual_seed(0)
    return MEAN + (STD**2 + sigma**2) ** 0.5 * torch.randn(num, 1, dtype=torch.float64, generator=generator)


def counted():
    """The analytic denoiser behind LatentGuidance, which counts."""
    return LatentGuidance(lambda x, sigma, class_labels=None: denoise(x, sigma))


def test_the_edm_grid_is_the_published_one():
    sigmas = edm_sigmas(18)
    assert len(sigmas) == 19 and sigmas.dtype == torch.float64
    torch.testing.assert_close(sigmas[[0, 1, 17, 18]], torch.tensor([80.0, 57.585982, 0.002, 0.0]).double())
    third = (80 ** (1 / 7) + 3 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert sigmas[3].item() == pytest.approx(third)
    assert edm_sigmas(1).tolist() == [80.0, 0.0]


def test_heun_follows_the_ode_to_second_order():
    x = noise(100, 10.0)
    errors = []
    for steps in (20, 40, 80):
        sigmas = torch.linspace(10.0, 0.1, steps + 1, dtype=torch.float64)
        errors.append((heun(denoise, x, sigmas) - exact(x, 10.0, 0.1)).abs().max().item())
    assert errors[0] / errors[1] > 3.3 and 3.7 < errors[1] / errors[2] < 4.3, errors


def test_heun_reaches_the_data_on_the_edm_grid():
    x = noise(1000, 80.0)
    torch.testing.assert_close(heun(denoise, x, edm_sigmas(240)), exact(x, 80.0, 0.0), atol=1e-3, rtol=0)


def test_evaluations_are_counted_and_predicted():
    for steps in (1, 2, 18):
        guided = counted()
        heun(guided, noise(2, 80.0), edm_sigmas(steps))
        assert guided.num_evaluations == num_evaluations(steps) == 2 * steps - 1


def test_the_published_restart_setting_makes_623_evaluations():
    guided = counted()
    x = restart(guided, noise(2, 80.0), edm_sigmas(IMAGENET64_RESTART_STEPS))
    assert guided.num_evaluations == num_evaluations(IMAGENET64_RESTART_STEPS, IMAGENET64_RESTART) == 623
    assert x.isfinite().all()


def test_churn_without_noise_is_heun():
    x, sigmas = noise(5, 80.0), edm_sigmas(10)
    assert torch.equal(heun_churn(denoise, x, sigmas, s_churn=0.0), heun(denoise, x, sigmas))
    outside = heun_churn(denoise, x, sigmas, s_churn=10.0, s_tmin=100.0)
    assert torch.equal(outside, heun(denoise, x, sigmas))


@pytest.mark.parametrize("sampler", ["churn", "restart"])
def test_stochastic_samplers_keep_the_data_law(sampler):
    x, generator = noise(20_000, 80.0), torch.Generator().manual_seed(1)
    if sampler == "churn":
        y = heun_churn(denoise, x, edm_sigmas(60), s_churn=40.0, generator=generator)
    else:
        intervals = [RestartInterval(12, 3, 0.3, 1.0), RestartInterval(12, 2, 1.1, 10.0)]
        y = restart(denoise, x, edm_sigmas(60), intervals, s_noise=1.0, generator=generator)
    assert y.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert y.std().item() == pytest.approx(STD, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([x[:, 0], y[:, 0]]))[0, 1].item()) < 0.999  # the noise really was redrawn


@pytest.mark.parametrize("sampler", [heun_churn, restart])
def test_stochastic_samplers_repeat_with_their_generator(sampler):
    x, sigmas = noise(3, 80.0), edm_sigmas(36)
    options = {"s_churn": 20.0} if sampler is heun_churn else {}
    first, again, other = (
        sampler(denoise, x, sigmas, generator=torch.Generator().manual_seed(seed), **options) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_state_is_float64_and_the_callback_sees_every_step():
    seen = []
    x = heun(denoise, noise(2, 80.0).float(), edm_sigmas(4), callback=lambda *args: seen.append(args))
    assert x.dtype == torch.float64
    assert [step for step, *_ in seen] == [0, 1, 2, 3]
    assert seen[-1][2] == 0.0 and torch.equal(seen[-1][1], x) and torch.equal(seen[-1][3], x)


def test_a_grid_too_coarse_for_the_intervals_is_refused():
    with pytest.raises(ValueError, match="too coarse"):
        restart(denoise, noise(1, 80.0), edm_sigmas(3))
    with pytest.raises(ValueError, match="num_steps"):
        edm_sigmas(0)
