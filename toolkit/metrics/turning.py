"""How bent the sampling ODE dx/dsigma = (x - D(x, sigma)) / sigma is, and how complex its denoiser.

Every function takes ``denoise(x, sigma) -> D`` with x (n, ...) and sigma a 0-d tensor. The state is float64, the
denoiser is called in float32 unless ``dtype`` says otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.zoo.precision import widest_float

Denoise = Callable[[Tensor, Tensor], Tensor]
MIN_GRID = 200


@dataclass(frozen=True)
class Path:
    """Per trajectory, each (n,): ``turning`` in degrees, ``defect`` = length / chord - 1; the ends ``x`` (n, ...)."""

    turning: Tensor
    defect: Tensor
    x: Tensor


def turning_grid(sigma_max: float, sigma_data: float, num_points: int = MIN_GRID, rho: float = 7.0) -> Tensor:
    """Noise levels from ``sigma_max`` down to 0.1 ``sigma_data``, spaced as in Karras et al. 2022 (eq. 5).

    Below that the direction is set by the last bits of the denoiser and its turning says nothing of the path.
    """
    ends = torch.tensor([sigma_max, 0.1 * sigma_data], dtype=torch.float64) ** (1 / rho)
    return torch.lerp(ends[0], ends[1], torch.linspace(0, 1, num_points, dtype=torch.float64)) ** rho


@torch.no_grad()
def follow(denoise: Denoise, x: Tensor, sigmas: Tensor, dtype: torch.dtype = torch.float32) -> Path:
    """Integrate by Heun's method along ``sigmas`` (at least 200, falling) and add up the angles between tangents.

    The total turning angle is the sum over grid points of the angle between successive directions of dx/dsigma.
    """
    if len(sigmas) < MIN_GRID:
        raise ValueError(f"{len(sigmas)} noise levels: the turning angle needs a grid of at least {MIN_GRID}")
    start = x = x.to(widest_float(x.device))
    sigmas = sigmas.to(x)
    slope = _slope(denoise, x, sigmas[0], dtype)
    turning, length = x.new_zeros(len(x)), x.new_zeros(len(x))
    for now, after in itertools.pairwise(sigmas):
        predicted = x + (after - now) * slope
        moved = x + (after - now) * (slope + _slope(denoise, predicted, after, dtype)) / 2
        new_slope = _slope(denoise, moved, after, dtype)
        turning += angle_between(slope, new_slope)
        length += (moved - x).flatten(1).norm(dim=1)
        x, slope = moved, new_slope
    return Path(turning.rad2deg(), length / (x - start).flatten(1).norm(dim=1) - 1, x)


def _slope(denoise: Denoise, x: Tensor, sigma: Tensor, dtype: torch.dtype) -> Tensor:
    return (x - denoise(x.to(dtype), sigma.to(dtype)).to(x.dtype)) / sigma


def angle_between(u: Tensor, v: Tensor) -> Tensor:
    """Angle in radians between vectors (n, ...), accurate for small angles too, where an arc cosine is not."""
    u, v = u.flatten(1), v.flatten(1)
    u, v = u / u.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
    return 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))


@torch.no_grad()
def curvature(
    denoise: Denoise, x: Tensor, sigma: float, step: float = 1e-3, dtype: torch.dtype = torch.float32
) -> Tensor:
    """|T(t) - T(t - dt)| / |x(t) - x(t - dt)| with unit tangents T and one Euler step (DisCo-Diff, appendix F): (n,).

    Report its median: the speed is in the denominator, so a few points near a zero of the field rule the mean.
    """
    x = x.to(widest_float(x.device))
    level = torch.tensor(sigma, dtype=x.dtype, device=x.device)
    slope = _slope(denoise, x, level, dtype)
    back = x - step * slope
    earlier = _slope(denoise, back, level - step, dtype)
    tangents = [one.flatten(1) / one.flatten(1).norm(dim=1, keepdim=True) for one in (slope, earlier)]
    return (tangents[0] - tangents[1]).norm(dim=1) / (x - back).flatten(1).norm(dim=1)


def jacobian_norm(
    denoise: Denoise,
    x: Tensor,
    sigma: Tensor | float,
    generator: torch.Generator | None = None,
    num_probes: int | None = None,
) -> Tensor:
    """Squared Frobenius norm of the denoiser's Jacobian dD/dx per sample: (n,), float64 where the device has it.

    Exact by default, one backward pass per output value; with ``num_probes`` Hutchinson's estimate
    E|J^T v|^2 over random signs v (needs ``generator``). Samples must not see each other (no batch statistics).
    Raises ValueError when ``denoise`` does not let gradients through.
    """
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        denoised = denoise(x, level).flatten(1)
        if not denoised.requires_grad:
            raise ValueError("denoise gives no gradient with respect to x (is it under torch.no_grad?)")
        total = torch.zeros(len(x), dtype=widest_float(x.device), device=x.device)
        for probe in _probes(denoised, generator, num_probes):
            (row,) = torch.autograd.grad(denoised, x, probe, retain_graph=True)
            total += row.detach().flatten(1).to(total.dtype).square().sum(1)
    return total / (num_probes or 1)


def _probes(like: Tensor, generator: torch.Generator | None, num_probes: int | None):
    if num_probes is None:
        for index in range(like.shape[1]):
            probe = torch.zeros_like(like)
            probe[:, index] = 1
            yield probe
        return
    if generator is None:
        raise ValueError("random probes need a generator")
    for _ in range(num_probes):
        signs = torch.randint(2, like.shape, generator=generator, device=generator.device) * 2 - 1
        yield signs.to(like)
