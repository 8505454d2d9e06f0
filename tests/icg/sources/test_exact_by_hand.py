"""The exact model: Gaussians on a circle, their denoisers written out, and what is measured of ICG's bias on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from toolkit.icg.config import SampleICG
from toolkit.icg.methods import NoGuidance
from toolkit.icg.sources.base import Request
from toolkit.icg.sources.exact import SIGMAS, ExactSource, exact_dataset
from toolkit.runs.seeds import generator


@pytest.fixture
def source():
    config = SampleICG(seed=0)
    config.exact.num_classes, config.exact.std = 5, 0.4
    return ExactSource(config, torch.device("cpu"))


ANGLES = 2 * math.pi * np.arange(5) / 5
CENTRES = 3 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)


def of_classes(x, sigma):
    """E[y | x, c] of every class (n, 5, 2), and their posterior probabilities (n, 5)."""
    variance = 0.4**2 + sigma**2
    means = (0.4**2 * x[:, None] + sigma**2 * CENTRES) / variance
    nearness = np.exp(-((x[:, None] - CENTRES) ** 2).sum(-1) / (2 * variance))
    return means, nearness / nearness.sum(1, keepdims=True)


def test_a_class_is_its_own_gaussian_and_no_class_the_mixture(source):
    x = np.random.default_rng(0).normal(size=(6, 2)) * 3
    means, shares = of_classes(x, 1.3)
    labels = torch.tensor([0, 1, 2, 3, 4, 4])
    given = torch.from_numpy(x)
    one_hot = torch.eye(5)[labels]
    one_hot[3:] = 0
    expected = means[np.arange(6), labels]
    np.testing.assert_allclose(source.denoiser(given, 1.3, labels), expected, atol=1e-6)
    expected[3:] = (shares[..., None] * means).sum(1)[3:]
    np.testing.assert_allclose(source.denoiser(given, 1.3, one_hot), expected, atol=1e-6)


def test_samples_without_guidance_are_of_their_class(source):
    points, calls = source.draw(NoGuidance(), 1.0, Request(0, 0, 0, 500))
    assert calls == 2 * source.config.sampling.num_steps - 1
    for label in range(5):
        mine = points[label::5].double().numpy()
        np.testing.assert_allclose(mine.mean(0), CENTRES[label], atol=0.16)  # four standard errors
        np.testing.assert_allclose(mine.std(0), 0.4, atol=0.11)


def test_its_data_are_draws_of_the_mixture_one_for_each_split(source):
    dataset = exact_dataset(source.config)
    sums = []
    for split in (dataset.train, dataset.valid, dataset.test):
        points, labels = split.all()
        assert np.bincount(labels).tolist() == [1000] * 5
        apart = points.numpy() - CENTRES[labels]
        assert abs(apart.std() - 0.4) < 0.02 and abs(apart.mean()) < 0.02
        sums.append(float(points.sum()))
    assert len(set(sums)) == 3


def test_the_bias_is_that_of_the_mean_over_classes_to_the_mixture(source):
    source.config.seed = 3
    found, random = source.extra_metrics(), generator(3, "bias")
    points, labels = source.denoiser.mixture.sample(800, random)
    for sigma, name in zip(SIGMAS, ("0p1", "0p3", "1", "3", "10"), strict=True):
        x = (points + sigma * torch.randn(points.shape, generator=random, dtype=torch.float64)).numpy()
        means, shares = of_classes(x, sigma)
        marginal = (shares[..., None] * means).sum(1)
        direction = means[np.arange(len(x)), labels] - marginal
        bias = means.mean(1) - marginal
        wanted = math.sqrt((bias**2).sum() / (direction**2).sum())
        assert found[f"bias.sigma_{name}"] == pytest.approx(wanted, rel=1e-4)
    assert found["bias.sigma_0p1"] > 100 * found["bias.sigma_10"]
