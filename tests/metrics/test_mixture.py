"""The closed forms of the toy mixtures against published values and brute force."""

import math

import pytest
import torch

from toolkit.data.images.toys import grid25, ring
from toolkit.metrics.mixture import bayes_loss, mode_counts, nearest_centre, off_mode_fraction, posterior_mean
from toolkit.metrics.turning import curvature, follow, jacobian_norm, turning_grid

RING = ring()
# Exact fields of the ring (radius 3, standard deviation 0.2). sigma; mean squared error per coordinate without and with
# the component known, the former by quadrature over the plane; squared Jacobian norms; median curvature without it.
TABLE = [
    (0.1, 0.0080, 0.0080, 1.280, 1.280, 0.0),
    (0.3, 0.02911, 0.0277, 0.328, 0.189, 0.0),
    (0.5, 0.08343, 0.0345, 0.987, 0.038, 0.15),
    (0.7, 0.23038, 0.0370, 1.284, 0.011, 1.25),
    (1.0, 0.54877, 0.0385, 1.244, 0.003, 0.88),
    (1.5, 1.25124, 0.0393, 1.021, 0.001, 0.077),
    (3.0, 2.96543, 0.0398, 0.248, 0.000, 0.0),
    (10.0, 4.34267, 0.0400, 0.004, 0.000, 0.0),
]


def noisy(sigma: float, num_each: int = 1000):
    random = torch.Generator().manual_seed(0)
    points, components = RING.sample(num_each, random)
    return points + sigma * torch.randn(points.shape, generator=random, dtype=torch.float64), torch.tensor(components)


def exact(components=None):
    return lambda x, sigma: posterior_mean(x, sigma, RING.centres, RING.std, components)


@pytest.mark.parametrize(("sigma", "free", "known", "jacobian", "jacobian_known", "bent"), TABLE)
def test_the_ring_has_its_known_values(sigma, free, known, jacobian, jacobian_known, bent):
    loss = bayes_loss(sigma, RING.centres, RING.std, torch.Generator().manual_seed(0))
    assert loss == pytest.approx(free, rel=5e-3)
    assert bayes_loss(sigma, RING.centres, RING.std, torch.Generator(), component_known=True) == pytest.approx(
        known, abs=6e-5
    )
    x, components = noisy(sigma)
    assert jacobian_norm(exact(), x, sigma).mean() == pytest.approx(jacobian, rel=0.04, abs=1e-3)
    assert jacobian_norm(exact(components), x, sigma).mean() == pytest.approx(jacobian_known, abs=1e-3)
    assert curvature(exact(), x, sigma, dtype=torch.float64).median() == pytest.approx(bent, rel=0.15, abs=2e-3)
    assert curvature(exact(components), x, sigma, dtype=torch.float64).median() < 1e-6


def test_the_loss_of_the_exact_denoiser_is_the_bayes_loss():
    random = torch.Generator().manual_seed(0)
    clean, components = RING.sample(4000, random)
    for sigma in (0.3, 1.0):
        x = clean + sigma * torch.randn(clean.shape, generator=random, dtype=torch.float64)
        for known in (None, torch.tensor(components)):
            error = (posterior_mean(x, sigma, RING.centres, RING.std, known) - clean).square().mean()
            least = bayes_loss(sigma, RING.centres, RING.std, random, component_known=known is not None)
            assert error == pytest.approx(least, rel=0.02)


def test_the_posterior_mean_against_a_sum_over_the_plane():
    ticks = torch.linspace(-6, 6, 601, dtype=torch.float64)
    plane = torch.cartesian_prod(ticks, ticks)
    density = torch.exp(-torch.cdist(plane, RING.centres).square() / (2 * RING.std**2)).sum(1)
    x = torch.tensor([[1.3, 0.8]], dtype=torch.float64)
    weights = density * torch.exp(-(plane - x).square().sum(1) / (2 * 0.9**2))
    by_hand = (weights[:, None] * plane).sum(0) / weights.sum()
    assert torch.allclose(posterior_mean(x, 0.9, RING.centres, RING.std)[0], by_hand, atol=1e-6)


def test_sigma_may_differ_per_sample():
    x, _ = noisy(1.0, 2)
    sigmas = torch.linspace(0.1, 5, len(x), dtype=torch.float64)
    one_by_one = [posterior_mean(p[None], float(s), RING.centres, 0.2) for p, s in zip(x, sigmas, strict=True)]
    assert torch.allclose(posterior_mean(x, sigmas, RING.centres, 0.2), torch.cat(one_by_one))


def test_exact_trajectories_turn_as_published():
    start = 80 * torch.randn(3000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigmas = turning_grid(80, 2.13, 250)
    path = follow(exact(), start, sigmas, dtype=torch.float64)
    assert path.turning.mean() == pytest.approx(105.4, rel=0.03)
    assert path.turning.median() == pytest.approx(74, rel=0.06)
    components = torch.arange(3000) % 8
    straight = follow(exact(components), start, sigmas, dtype=torch.float64)
    assert straight.turning.max() < 1e-3 and straight.defect.abs().max() < 1e-9 and path.defect.median() > 1e-4


def test_off_mode_fraction_counts_only_the_far():
    points = torch.cat([RING.centres, RING.centres * 1.2, RING.centres * 1.3])  # 0, 3 and 4.5 standard deviations
    assert off_mode_fraction(points, RING.centres, RING.std) == pytest.approx(1 / 3)


def test_mode_counts_judge_unequal_shares():
    grid = grid25()
    points, components = grid.sample(40, torch.Generator().manual_seed(0))
    assert torch.equal(nearest_centre(points, grid.centres), torch.tensor(components))
    balanced = mode_counts(points, grid.centres)
    assert balanced.chi2 == 0 and balanced.p_value == 1 and balanced.counts == [40] * 25
    assert mode_counts(points[:500], grid.centres).p_value < 1e-6
    three = mode_counts(torch.tensor([0.0, 0.0, 0.0, 5.0, 9.0, 9.0])[:, None], torch.tensor([[0.0], [5.0], [9.0]]))
    assert (three.counts, three.chi2) == ([3, 1, 2], 1.0)
    assert three.p_value == pytest.approx(math.exp(-1.0 / 2))  # chi squared of two degrees of freedom
    random = torch.randint(25, (1000,), generator=torch.Generator().manual_seed(3))
    assert mode_counts(grid.centres[random], grid.centres).p_value > 0.01
