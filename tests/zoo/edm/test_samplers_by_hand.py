"""Stochastic samplers step by step, with the algorithm of the paper written out on a denoiser that is not linear."""

import itertools
import math

import torch

from toolkit.zoo.edm.samplers import RestartInterval, heun_churn, restart

LEVELS = [5.0, 2.0, 0.9, 0.4, 0.0]


def denoise(x, sigma):
    return torch.tanh(x) / (1 + sigma) + 0.1 * sigma


def heun_step(x, sigma, sigma_next):
    """Karras et al. 2022, algorithm 1, lines 4 to 8."""
    d = (x - denoise(x, sigma)) / sigma
    x_next = x + (sigma_next - sigma) * d
    if sigma_next:
        d_next = (x_next - denoise(x_next, sigma_next)) / sigma_next
        x_next = x + (sigma_next - sigma) * (d + d_next) / 2
    return x_next


def churned(s_churn, s_tmin, s_tmax, s_noise):
    """Karras et al. 2022, algorithm 2: gamma = min(S_churn / N, sqrt(2) - 1) within [S_tmin, S_tmax]."""
    rng, x = torch.Generator().manual_seed(4), start()
    for sigma, sigma_next in itertools.pairwise(LEVELS):
        gamma = min(s_churn / 4, math.sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0
        raised = sigma + gamma * sigma
        if gamma:
            noise = torch.randn(x.shape, dtype=x.dtype, generator=rng)
            x = x + s_noise * math.sqrt(raised**2 - sigma**2) * noise
        x = heun_step(x, raised, sigma_next)
    return x


def start():
    return 5 * torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_churn_is_algorithm_2():
    for keys in ((0.8, 0.0, math.inf, 1.0), (0.8, 0.9, 2.0, 1.007), (40.0, 0.0, 1.0, 0.9)):
        found = heun_churn(denoise, start(), LEVELS, *keys, generator=torch.Generator().manual_seed(4))
        torch.testing.assert_close(found, churned(*keys))


def test_restart_is_its_algorithm():
    """After arriving at 0.9: twice up to 3 by noise, and down in two steps of the grid with rho 3."""
    found = restart(
        denoise, start(), LEVELS, [RestartInterval(3, 2, 0.8, 3.0)], 1.01, 3.0, torch.Generator().manual_seed(4)
    )
    rng, x = torch.Generator().manual_seed(4), start()
    x = heun_step(heun_step(x, 5.0, 2.0), 2.0, 0.9)
    between = ((3 ** (1 / 3) + 0.9 ** (1 / 3)) / 2) ** 3
    for _ in range(2):
        noise = torch.randn(x.shape, dtype=x.dtype, generator=rng)
        x = x + 1.01 * math.sqrt(3.0**2 - 0.9**2) * noise
        x = heun_step(heun_step(x, 3.0, between), between, 0.9)
    torch.testing.assert_close(found, heun_step(heun_step(x, 0.9, 0.4), 0.4, 0.0))
