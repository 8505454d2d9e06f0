"""Distances between sets against closed forms and brute force."""

import math

import numpy as np
import pytest
import torch

from toolkit.data.images.toys import ring
from toolkit.metrics.distances import energy_distance, sliced_wasserstein2, wasserstein2, within_mode_w2
from toolkit.metrics.frechet import GaussianStats, frechet_distance, frechet_floor, gaussian_stats
from toolkit.metrics.neighbours import memorisation_ratio, nearest_distances, precision_recall


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spd(dim: int, seed: int) -> torch.Tensor:
    root = normal(dim, dim, seed=seed)
    return root @ root.T + 0.1 * torch.eye(dim)


def test_frechet_of_known_gaussians():
    a = GaussianStats(torch.tensor([1.0, 0.0]).double(), torch.diag(torch.tensor([4.0, 9.0])).double(), 10)
    b = GaussianStats(torch.tensor([0.0, 2.0]).double(), torch.diag(torch.tensor([1.0, 1.0])).double(), 10)
    assert frechet_distance(a, b) == pytest.approx(5 + (2 - 1) ** 2 + (3 - 1) ** 2)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_frechet_agrees_with_the_matrix_square_root():
    from scipy.linalg import sqrtm

    for dim in (3, 20):
        a = GaussianStats(normal(dim, seed=1), spd(dim, 2), 10)
        b = GaussianStats(normal(dim, seed=3), spd(dim, 4), 10)
        root = sqrtm((a.covariance @ b.covariance).numpy())
        expected = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace() - 2 * np.trace(root).real
        assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-8)
        assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)


def test_frechet_is_stable_with_fewer_points_than_features():
    few, many = normal(10, 30), normal(1000, 30, seed=1)
    assert math.isfinite(frechet_distance(few, many)) and frechet_distance(few, few) < 1e-6
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(few * math.nan, many)
    with pytest.raises(ValueError, match="n >= 2"):
        gaussian_stats(few[:1])


def test_the_floor_falls_with_the_number_of_items_and_says_what_it_used():
    train, reference = normal(3000, 8), normal(3000, 8, seed=1)
    random = torch.Generator().manual_seed(0)
    small, large = (frechet_floor(train, reference, num, random) for num in (100, 2000))
    assert small.mean > 3 * large.mean and small.sd > 0 and (small.num, small.num_draws) == (100, 3)
    assert frechet_floor(train, reference, 5000, random).num == 3000
    whole = frechet_floor(train, reference, 3000, random)
    assert (whole.num_draws, whole.sd) == (1, 0.0)  # all of them are one draw


def test_energy_distance_by_hand_and_unbiased():
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]])
    assert energy_distance(x, y) == pytest.approx(2 * 1 - 2 - 0)
    same = [energy_distance(normal(300, 2, seed=2 * s), normal(300, 2, seed=2 * s + 1)) for s in range(40)]
    assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(40) and min(same) < 0
    x, y = normal(300, 2), normal(2500, 2, seed=1) + 1  # more than one chunk
    within = [torch.cdist(one, one).sum() / (len(one) * (len(one) - 1)) for one in (x, y)]
    assert energy_distance(x, y) == pytest.approx(float(2 * torch.cdist(x, y).mean() - sum(within)), abs=1e-6)


def test_wasserstein_of_a_shift_is_its_length():
    x = normal(400, 3)
    shift = torch.tensor([1.0, 2.0, 2.0])
    assert wasserstein2(x, (x + shift).flip(0)) == pytest.approx(3.0)
    assert sliced_wasserstein2(x, x + shift, torch.Generator().manual_seed(0), 2000) == pytest.approx(3.0, rel=0.05)
    with pytest.raises(ValueError, match="at most 2000"):
        wasserstein2(normal(2001, 1), normal(2001, 1))
    with pytest.raises(ValueError, match="equal numbers"):
        sliced_wasserstein2(x, x[:10], torch.Generator())


def test_within_mode_distance_ignores_mode_counts():
    mixture = ring()
    reference, _ = mixture.sample(125, torch.Generator().manual_seed(0))
    balanced, _ = mixture.sample(125, torch.Generator().manual_seed(1))
    skewed = torch.cat([balanced[:1000:8], balanced, balanced[:500] + 1e-3])[:1600]
    assert wasserstein2(balanced, reference) == pytest.approx(0.097, abs=0.01)  # exactly balanced counts, n = 1000
    uneven = mixture.centres[torch.randint(8, (1000,), generator=torch.Generator().manual_seed(2))]
    assert wasserstein2(uneven + 0.2 * normal(1000, 2), reference) > 0.25
    assert within_mode_w2(skewed, reference, mixture.centres) < 0.12
    assert within_mode_w2(reference * 1.1, reference, mixture.centres) == pytest.approx(0.3, rel=0.1)
    with pytest.raises(ValueError, match="no mode"):
        within_mode_w2(mixture.centres[:1], mixture.centres[4:5], mixture.centres)


def test_precision_and_recall_by_brute_force():
    real, samples = normal(200, 3), torch.cat([normal(100, 3, seed=1) * 0.5, normal(50, 3, seed=2) + 4])

    def inside(points, centres, k=3):
        radii = torch.cdist(centres, centres).sort(1).values[:, k]
        return float((torch.cdist(points, centres) <= radii).any(1).double().mean())

    found = precision_recall(real, samples)
    assert found.precision == pytest.approx(inside(samples, real), abs=0.01)
    assert found.recall == pytest.approx(inside(real, samples), abs=0.01)
    assert precision_recall(real, real).precision == 1
    assert precision_recall(real, real + 100).recall == 0
    with pytest.raises(ValueError, match="more than k=3"):
        precision_recall(real[:3], samples)


def test_memorisation_shows_copies():
    train, held_out = normal(500, 8), normal(200, 8, seed=1)
    assert memorisation_ratio(normal(200, 8, seed=2), held_out, train) == pytest.approx(1, abs=0.1)
    assert memorisation_ratio(train[:200] + 0.01 * held_out, held_out, train) < 0.05
    assert nearest_distances(train[:3] + 0.5, train[:3] + 0.5).max() < 1e-2
    parts = nearest_distances(torch.tensor([[0.0], [10.0]]), [torch.tensor([[1.0], [30.0]]), torch.tensor([[13.0]])])
    assert parts.tolist() == [1, 3]  # the nearest of all batches
    with pytest.raises(ValueError, match="held-out images are training"):
        memorisation_ratio(held_out, train[:10], train)
