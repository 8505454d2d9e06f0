"""Turning, curvature and Jacobians on fields whose values are known."""

import math

import pytest
import torch
from torch import nn

from toolkit.metrics.turning import angle_between, curvature, follow, jacobian_norm, turning_grid


def test_small_angles_keep_their_digits():
    u = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64)
    angles = torch.tensor([1e-7, 0.5, math.pi], dtype=torch.float64)
    assert torch.allclose(angle_between(u, torch.stack([angles.cos(), angles.sin()], 1) * 5), angles, rtol=1e-6)


def test_a_gaussian_is_reached_on_a_straight_line():
    start = 10 * torch.randn(20, 3, 4, generator=torch.Generator().manual_seed(0))
    mean, std = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), 0.5
    sigmas = turning_grid(10.0, 0.5)
    path = follow(lambda x, s: (std**2 * x + s**2 * mean) / (std**2 + s**2), start, sigmas)
    assert path.turning.max() < 0.05 and path.defect.abs().max() < 1e-5
    # exact solution: x - mean shrinks as sqrt(std^2 + sigma^2)
    shrink = math.sqrt((std**2 + 0.05**2) / (std**2 + 100))
    assert torch.allclose(path.x, (mean + shrink * (start - mean)).double(), atol=1e-3)


def test_rotation_turns_by_its_known_angle():
    # D = x - sigma A x with A a quarter turn gives dx/dsigma = A x: one radian per unit of sigma, for x and slope
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    field = lambda x, s: x - s * (x @ quarter.T)  # noqa: E731
    sigmas = torch.linspace(3, 1, 300, dtype=torch.float64)
    x = torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    path = follow(field, x, sigmas, dtype=torch.float64)
    assert torch.allclose(path.turning, torch.full((2,), math.degrees(2.0), dtype=torch.float64), rtol=1e-4)
    assert torch.allclose(path.defect, torch.full((2,), 1 / math.sin(1.0) - 1, dtype=torch.float64), rtol=1e-3)
    bent = curvature(field, x, 2.0, dtype=torch.float64)  # a circle of radius |x|
    assert torch.allclose(bent, torch.tensor([1.0, 0.25], dtype=torch.float64), rtol=1e-2)


def test_a_coarse_grid_is_refused():
    with pytest.raises(ValueError, match="at least 200"):
        follow(lambda x, s: x, torch.zeros(1, 2), torch.linspace(1, 0.1, 50))


def test_the_grid_ends_above_a_tenth_of_the_data():
    grid = turning_grid(80.0, 0.5)
    assert len(grid) == 200 and grid[0].item() == pytest.approx(80) and grid[-1].item() == pytest.approx(0.05)
    assert (grid.diff() < 0).all()


def test_jacobians_of_a_network_exact_and_estimated():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 30), nn.Tanh(), nn.Linear(30, 12), nn.Unflatten(1, (3, 4)))
    denoise = lambda x, s: net(x) / s  # noqa: E731
    x = torch.randn(5, 3, 4)
    by_torch = torch.stack(
        [torch.autograd.functional.jacobian(lambda one: net(one[None])[0] / 2, row).square().sum() for row in x]
    )
    exact = jacobian_norm(denoise, x, 2.0)
    assert torch.allclose(exact, by_torch.double(), rtol=1e-5)
    estimate = jacobian_norm(denoise, x, 2.0, torch.Generator().manual_seed(0), num_probes=800)
    assert torch.allclose(estimate, exact, rtol=0.1)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_jacobians_need_gradients_and_a_generator():
    with pytest.raises(ValueError, match="no gradient"):
        jacobian_norm(torch.no_grad()(lambda x, s: x * 2), torch.zeros(1, 2), 1.0)
    with pytest.raises(ValueError, match="generator"):
        jacobian_norm(lambda x, s: x * 2, torch.zeros(1, 2), 1.0, num_probes=2)
    with torch.no_grad():
        assert jacobian_norm(lambda x, s: x * 2, torch.zeros(1, 2), 1.0) == 8
