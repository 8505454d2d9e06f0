"""Samplers of the EDM family as pure functions: the Heun ODE, its stochastic variant ("churn") and Restart.

``denoise(x, sigma) -> D`` takes the noisy batch in the state's precision and sigma as a Python float; casting to the
network's precision is the denoiser's affair. ``x`` starts at noise level ``sigmas[0]`` (unit noise times sigmas[0]).
The state is float64, as in the reference implementation of EDM (float32 on MPS, which has no float64).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.zoo.edm.noise import Source, normal
from toolkit.zoo.precision import widest_float

Denoise = Callable[[Tensor, float], Tensor]
Callback = Callable[[int, Tensor, float, Tensor], None]
"""Called after each step with (step, x, sigma of x, the step's first denoised estimate)."""


@dataclass(frozen=True)
class RestartInterval:
    """Go back from sigma_min to sigma_max by adding noise, integrate down on a grid of ``num_points``; repeat."""

    num_points: int
    num_restarts: int
    sigma_min: float
    sigma_max: float


# Xu et al. 2023 (Restart), the ImageNet-64 setting on EDM that DisCo-Diff uses: 623 evaluations in all.
IMAGENET64_RESTART_STEPS = 36
IMAGENET64_RESTART_NOISE = 1.003
IMAGENET64_RESTART = (
    RestartInterval(10, 3, 19.35, 40.79),
    RestartInterval(10, 3, 1.09, 1.92),
    RestartInterval(7, 6, 0.59, 1.09),
    RestartInterval(7, 6, 0.30, 0.59),
    RestartInterval(7, 25, 0.06, 0.30),
)


def edm_sigmas(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """The n+1 noise levels of n steps, float64, from sigma_max to sigma_min, then 0 (Karras et al. 2022, eq. 5)."""
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: must be at least 1")
    return torch.cat([_grid(num_steps, sigma_min, sigma_max, rho), torch.zeros(1, dtype=torch.float64)])


def num_evaluations(num_steps: int, intervals: Iterable[RestartInterval] = ()) -> int:
    """Denoiser evaluations of ``heun`` (2n - 1), or of ``restart`` with these intervals, on a grid that ends at 0."""
    return 2 * num_steps - 1 + sum(2 * (one.num_points - 1) * one.num_restarts for one in intervals)


@torch.no_grad()
def heun(denoise: Denoise, x: Tensor, sigmas: Tensor | Sequence[float], callback: Callback | None = None) -> Tensor:
    """Integrate the probability-flow ODE along ``sigmas`` (Karras et al. 2022, algorithm 1).

    Two evaluations a step, one for a step to sigma 0: 2n - 1 for ``edm_sigmas(n)``. Returns x at sigmas[-1] in the
    state's precision.
    """
    x = x.to(widest_float(x.device))
    for step, (sigma, sigma_next) in enumerate(pairwise(_floats(sigmas))):
        x, denoised = _heun_step(denoise, x, sigma, sigma_next)
        if callback:
            callback(step, x, sigma_next, denoised)
    return x


@torch.no_grad()
def heun_churn(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    s_churn: float,
    s_tmin: float = 0.0,
    s_tmax: float = float("inf"),
    s_noise: float = 1.0,
    generator: Source = None,
    callback: Callback | None = None,
) -> Tensor:
    """Heun steps that each begin by raising the noise level within [s_tmin, s_tmax] (Karras et al. 2022, algorithm 2).

    The evaluations are those of ``heun``; ``s_churn=0`` is ``heun``. generator: of the noise, one for the batch or a
    ``SampleNoise`` of its samples.
    """
    x, levels = x.to(widest_float(x.device)), _floats(sigmas)
    rise = min(s_churn / (len(levels) - 1), 2**0.5 - 1)
    for step, (sigma, sigma_next) in enumerate(pairwise(levels)):
        sigma_hat = sigma
        if s_tmin <= sigma <= s_tmax and rise > 0:
            sigma_hat = sigma * (1 + rise)
            x = _add_noise(x, sigma, sigma_hat, s_noise, generator)
        x, denoised = _heun_step(denoise, x, sigma_hat, sigma_next)
        if callback:
            callback(step, x, sigma_next, denoised)
    return x


@torch.no_grad()
def restart(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    intervals: Sequence[RestartInterval] = IMAGENET64_RESTART,
    s_noise: float = IMAGENET64_RESTART_NOISE,
    rho: float = 7.0,
    generator: Source = None,
    callback: Callback | None = None,
) -> Tensor:
    """Heun ODE with Restart (Xu et al. 2023, algorithm 1).

    Each interval's sigma_min is moved to the nearest level of ``sigmas``; on arriving there, noise up to sigma_max is
    added and integrated away again, ``num_restarts`` times. Raises UserError where two intervals fall on one level, or
    one falls on the highest.
    """
    x, levels = x.to(widest_float(x.device)), _floats(sigmas)
    at_level = _place(intervals, levels)
    for step, (sigma, sigma_next) in enumerate(pairwise(levels)):
        x, denoised = _heun_step(denoise, x, sigma, sigma_next)
        if callback:
            callback(step, x, sigma_next, denoised)
        if step + 1 in at_level:
            x = _restart_interval(denoise, x, sigma_next, at_level[step + 1], s_noise, rho, generator)
    return x


def _restart_interval(
    denoise: Denoise,
    x: Tensor,
    sigma_min: float,
    interval: RestartInterval,
    s_noise: float,
    rho: float,
    generator: Source,
) -> Tensor:
    levels = _floats(_grid(interval.num_points, sigma_min, interval.sigma_max, rho))
    for _ in range(interval.num_restarts):
        x = _add_noise(x, levels[-1], levels[0], s_noise, generator)
        for sigma, sigma_next in pairwise(levels):
            x, _ = _heun_step(denoise, x, sigma, sigma_next)
    return x


def _place(intervals: Sequence[RestartInterval], levels: list[float]) -> dict[int, RestartInterval]:
    """The index of the nearest positive level to each interval's sigma_min -> the interval."""
    placed: dict[int, RestartInterval] = {}
    for interval in intervals:
        index = min(
            (i for i, level in enumerate(levels) if level > 0), key=lambda i: abs(levels[i] - interval.sigma_min)
        )
        if index in placed or index == 0:
            raise UserError(
                f"restart interval at sigma {interval.sigma_min}: the grid of {len(levels) - 1} steps is too coarse"
            )
        placed[index] = interval
    return placed


def _heun_step(denoise: Denoise, x: Tensor, sigma: float, sigma_next: float) -> tuple[Tensor, Tensor]:
    """One Heun step of dx/dsigma = (x - D(x, sigma)) / sigma; Euler's where sigma_next is 0. Returns (x, D)."""
    denoised = denoise(x, sigma).to(x.dtype)
    if sigma_next == 0:
        return denoised, denoised
    # Euler moves x along the line to D. The slope there differs from the first by (D - D') / sigma_next, and the
    # trapezoid adds half of that over the step: Karras et al. 2022, algorithm 1, lines 5 and 8, in two operations.
    x_euler = torch.lerp(denoised, x, sigma_next / sigma)
    change = denoised - denoise(x_euler, sigma_next)
    return torch.add(x_euler, change, alpha=0.5 * (sigma_next - sigma) / sigma_next), denoised


def _add_noise(x: Tensor, sigma: float, sigma_up: float, s_noise: float, generator: Source) -> Tensor:
    noise = normal(x.shape, generator, x.device, x.dtype)
    return x + s_noise * (sigma_up**2 - sigma**2) ** 0.5 * noise


def _grid(num_points: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    ramp = torch.linspace(0, 1, num_points, dtype=torch.float64)
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (top + ramp * (bottom - top)) ** rho


def _floats(sigmas: Tensor | Sequence[float]) -> list[float]:
    return [float(one) for one in (sigmas.tolist() if torch.is_tensor(sigmas) else sigmas)]  # MPS has no float64
