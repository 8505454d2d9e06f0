"""A preconditioned network: what it is shown, what is made of its answer, and what its error counts."""

from __future__ import annotations

import math

import torch

from tests.venhancer.networks import tiny_pipeline

STEPS, STD = torch.tensor([40, 700]), 0.7


def test_x0_is_c_skip_x_and_c_out_times_what_the_network_says_of_the_best_linear_guess():
    """Karras et al. 2022, table 1, for x_t = alpha x_0 + sigma eps with x_0 of deviation 0.7."""
    torch.manual_seed(1)
    plain, preconditioned = tiny_pipeline(), tiny_pipeline(data_std=STD)
    x, text = torch.randn(2, 12, 3, 4, 4), torch.zeros(2, 1, 4)
    sigma = plain.scheduler.sigmas[STEPS].double().view(2, 1, 1, 1, 1)
    alpha = (1 - sigma**2).sqrt()
    total = (alpha * STD) ** 2 + sigma**2  # the variance of x_t
    c_skip, c_out = alpha * STD**2 / total, sigma * STD / total.sqrt()
    with torch.no_grad():
        said = plain.velocity((c_skip / STD * x).float(), STEPS, text)  # of the same weights
        v = preconditioned.velocity(x, STEPS, text)
    torch.testing.assert_close(alpha * x - sigma * v, c_skip * x + c_out * said, atol=1e-4, rtol=1e-4)

    x0 = torch.randn_like(x)
    target = (x0 - c_skip * x) / c_out  # of the network
    error = (said - target).square().flatten(1).mean(1)
    of_v = (v - (alpha * x - x0) / sigma).square().flatten(1).mean(1)
    weight = preconditioned.loss_weight(STEPS, x).flatten()
    torch.testing.assert_close(weight * of_v, error, atol=1e-3, rtol=1e-3)
    assert plain.loss_weight(STEPS, x).tolist() == [1.0] and math.isfinite(error.sum())


def test_a_residual_starts_without_any_signal_and_latents_a_hundred_steps_before_the_end():
    pipelines = [tiny_pipeline(diffuses=one) for one in ("residuals", "latents")]
    assert [one.diffuses_residuals for one in pipelines] == [True, False]
    assert [one.start_step for one in pipelines] == [1000, 900]
