"""The solvers against their textbook forms, an independent library, and exact solutions."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from toolkit.errors import UserError
from toolkit.venhancer.model.samplers import guide, plan_evaluations, sample, sampling_times
from toolkit.venhancer.model.schedule import VideoNoiseSchedule

SCHEDULE = VideoNoiseSchedule()


def test_fast_mode_is_the_releases_list():
    times = sampling_times("fast", "dpmpp_2m_sde")
    expected = [899, 799, 699, 599, 500, 454.5, 408.9, 363.4, 317.8, 272.3, 226.7, 181.2, 135.6, 90.1]
    assert times == pytest.approx(expected, abs=0.05)
    assert len(plan_evaluations(SCHEDULE, "dpmpp_2m_sde", times)) == 14


@pytest.mark.parametrize(("solver", "evaluations"), [("dpmpp_2m_sde", 10), ("ddim", 10), ("heun", 19)])
def test_normal_mode(solver, evaluations):
    times = sampling_times(10, solver)
    assert len(times) == 10 and times[0] == 899 and times == sorted(times, reverse=True)
    assert times[1] == pytest.approx(899 - 900 / (11 if solver == "dpmpp_2m_sde" else 10))
    assert len(plan_evaluations(SCHEDULE, solver, times)) == evaluations


@pytest.mark.parametrize("steps", [0, 901, "slow", True, 2.5])
def test_steps_out_of_range(steps):
    with pytest.raises(UserError, match="steps="):
        sampling_times(steps, "ddim")
    assert len(sampling_times(1, "ddim")) == 1


def test_unknown_solver():
    with pytest.raises(UserError, match="did you mean 'heun'"):
        plan_evaluations(SCHEDULE, "huen", [899.0])


def toy_velocity(z, step):
    """v of a smooth, non-linear x0 prediction."""
    alpha, sigma = SCHEDULE.alphas[step].double(), SCHEDULE.sigmas[step].double()
    x0 = torch.tanh(z) * (0.5 + alpha / 3) + 0.1
    return (alpha * z - x0) / sigma


def run(solver, times, z, noise):
    evaluations = plan_evaluations(SCHEDULE, solver, times)
    return sample(lambda z, one: one.clean(z, toy_velocity(z, one.step)), z, evaluations, lambda i, _: noise[i])


def test_dpm_solver_equals_diffusers_with_the_same_noise():
    steps = [899, 799, 699, 599, 500, 454, 409, 363, 318, 272, 227, 181, 136, 90]
    variances = 1 - SCHEDULE.sigmas.double().square()
    betas = 1 - variances / torch.cat([torch.ones(1), variances[:-1]])
    theirs = DPMSolverMultistepScheduler(
        trained_betas=betas.tolist(),
        prediction_type="v_prediction",
        algorithm_type="sde-dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    theirs.set_timesteps(timesteps=steps)
    torch.manual_seed(0)
    z, noise = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(14, 2, 3, 4, 4, dtype=torch.float64)
    x = z
    for index, step in enumerate(theirs.timesteps):
        x = theirs.step(toy_velocity(x, int(step)), step, x, variance_noise=noise[index]).prev_sample
    ours = run("dpmpp_2m_sde", [float(step) for step in steps], z, noise)
    torch.testing.assert_close(ours, x.double(), atol=2e-5, rtol=0)


def ve_heun(x, ratios, denoise):
    """Karras et al. 2022, algorithm 2, on x = z / alpha, written from the paper."""
    for here, after in zip(ratios, [*ratios[1:], 0.0], strict=True):
        slope = (x - denoise(x, here)) / here
        ahead = x + (after - here) * slope
        if after:
            slope = (slope + (ahead - denoise(ahead, after)) / after) / 2
            ahead = x + (after - here) * slope
        x = ahead
    return x


def test_heun_equals_the_paper_on_whole_steps():
    steps = [899, 650, 400, 150]

    def denoise(x, ratio):
        step = (SCHEDULE.sigmas.double() / SCHEDULE.alphas.double() - ratio).abs().argmin()
        z = x * SCHEDULE.alphas[step].double()
        return SCHEDULE.alphas[step].double() * z - SCHEDULE.sigmas[step].double() * toy_velocity(z, step)

    z = torch.randn(2, 8, dtype=torch.float64)
    ratios = [(SCHEDULE.sigmas[step].double() / SCHEDULE.alphas[step].double()).item() for step in steps]
    expected = ve_heun(z / SCHEDULE.alphas[899].double(), ratios, denoise)
    torch.testing.assert_close(run("heun", [float(step) for step in steps], z, None), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_gaussian_data_are_transported_exactly_in_the_limit(solver):
    """Data N(0, 1/4): the probability flow scales z by sqrt(1/4 / (alpha^2 / 4 + sigma^2))."""

    def clean(z, one):
        a, s = SCHEDULE.at(float(one.step))
        return a * 0.25 / (a * a * 0.25 + s * s) * z

    z = torch.tensor([1.0, -2.0], dtype=torch.float64)
    alpha, sigma = SCHEDULE.at(899.0)
    exact = z * 0.5 / math.sqrt(alpha**2 / 4 + sigma**2)
    errors = []
    for steps in (15, 60):
        times = [float(round(time)) for time in sampling_times(steps, solver)]
        evaluations = plan_evaluations(SCHEDULE, solver, times)
        errors.append((sample(clean, z, evaluations) - exact).abs().max().item())
    assert errors[1] < errors[0] / 2 and errors[1] < 0.05


@pytest.mark.parametrize("solver", ["dpmpp_2m_sde", "heun", "ddim"])
def test_from_zero_snr_everything_is_finite_and_a_perfect_denoiser_wins(solver):
    truth = torch.randn(4, 4)
    evaluations = plan_evaluations(SCHEDULE, solver, sampling_times(5, solver, start_step=1000))
    assert evaluations[0].alpha == 0
    out = sample(lambda z, one: truth, torch.randn(4, 4), evaluations)
    torch.testing.assert_close(out, truth, atol=1e-5, rtol=0)


def test_guidance():
    torch.manual_seed(0)
    v, v_negative = torch.randn(2, 4, 3, 5, 5), 2 * torch.randn(2, 4, 3, 5, 5)
    torch.testing.assert_close(guide(v, v_negative, 1.0, 0.0), v)
    plain = guide(v, v_negative, 7.5, 0.0)
    torch.testing.assert_close(plain, v_negative + 7.5 * (v - v_negative))
    full = guide(v, v_negative, 7.5, 1.0)
    torch.testing.assert_close(full.flatten(1).std(dim=1), v.flatten(1).std(dim=1))
    torch.testing.assert_close(guide(v, v_negative, 7.5, 0.2), 0.2 * full + 0.8 * plain)
