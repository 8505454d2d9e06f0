"""Power-function averages and what is put together of them, against integrals taken number by number in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from toolkit.zoo.edm.post_hoc_ema import (
    PowerEMA,
    Profile,
    gamma_of,
    inner_product,
    post_hoc_weights,
)

STEPS = 400


def density(tau, profile):
    """Eq. 1."""
    t, gamma = profile
    return np.where(tau <= t, (gamma + 1) * tau**gamma / t ** (gamma + 1), 0.0)


def midpoints(end, number=400_000):
    return (np.arange(number) + 0.5) * end / number, end / number


def step_weights(profile):
    """How much the average holds of the weights after each step: its profile, integrated over the step."""
    edges = np.clip(np.arange(STEPS + 1.0), 0, profile.images)
    return np.diff((edges / profile.images) ** (profile.gamma + 1))


def trajectory():
    """Weights that fall, wander and end (steps, 3)."""
    rng = np.random.default_rng(0)
    walk = rng.standard_normal((STEPS, 3)).cumsum(0) * 0.05
    return walk + 10 / np.arange(1, STEPS + 1)[:, None] ** 0.5


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_two_lengths_of_the_paper(sigma_rel, gamma):
    assert gamma_of(sigma_rel) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.25, 0.28])
def test_sigma_rel_is_the_deviation_of_the_profile(sigma_rel):
    gamma = gamma_of(sigma_rel)
    tau, width = midpoints(1.0)
    weight = density(tau, (1.0, gamma)) * width
    deviation = np.sqrt((weight * tau**2).sum() - (weight * tau).sum() ** 2)
    assert deviation == pytest.approx(sigma_rel, rel=2e-5)
    assert (gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5 == pytest.approx(sigma_rel, rel=1e-9)  # eq. 3


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.29, float("nan")])
def test_lengths_that_no_profile_has(sigma_rel):
    with pytest.raises(ValueError, match=r"at most 0\.28"):
        gamma_of(sigma_rel)


def test_the_tracked_average_is_the_integral_over_its_profile():
    """Steps of 7 images, of which only the ratio to all counts."""
    model, weights = nn.Linear(3, 1, bias=False).double(), trajectory()
    average = PowerEMA(model, 0.1)
    for one in weights:
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(one)[None])
        average.update(7)
    expected = step_weights(Profile(STEPS, gamma_of(0.1))) @ weights
    np.testing.assert_allclose(average.model.weight[0].numpy(), expected, rtol=1e-12)
    assert average.num_images == 7 * STEPS


@pytest.mark.parametrize("pair", [((3.0, 17.0), (5.0, 7.0)), ((5.0, 17.0), (3.0, 7.0)), ((4.0, 2.0), (4.0, 9.0))])
def test_inner_products_are_integrals(pair):
    one, other = (Profile(*profile) for profile in pair)
    tau, width = midpoints(6.0)
    numeric = (density(tau, one) * density(tau, other)).sum() * width
    assert inner_product(one, other) == pytest.approx(numeric, rel=1e-4)
    assert inner_product(one, other) == inner_product(other, one)


def snapshots(every):
    return [Profile(float(t), gamma_of(s)) for t in range(every, STEPS + 1, every) for s in (0.05, 0.1)]


def test_a_snapshot_is_itself():
    profiles = snapshots(50)
    found = post_hoc_weights(profiles, profiles[5])
    np.testing.assert_allclose(found, np.eye(len(profiles))[5], atol=1e-7)


@pytest.mark.parametrize("sigma_rel", [0.04, 0.08, 0.15, 0.25])
def test_any_length_is_near_the_exact_average_of_the_trajectory(sigma_rel):
    """The error is a small part of the distance to the nearest of the averages that were stored."""
    weights, target = trajectory(), Profile(STEPS, gamma_of(sigma_rel))
    exact, profiles = step_weights(target) @ weights, snapshots(25)
    stored = np.array([step_weights(one) @ weights for one in profiles])
    error = np.abs(post_hoc_weights(profiles, target) @ stored - exact).max()
    nearest = min(np.abs(one - exact).max() for one in stored[-2:])
    assert error < 0.04 * nearest


def test_the_sum_is_the_best_one_there_is():
    """What is left of the profile is orthogonal to every stored one, by quadrature."""
    profiles, target = snapshots(100), Profile(STEPS, gamma_of(0.2))
    tau, _ = midpoints(float(STEPS))
    found = post_hoc_weights(profiles, target)
    left = density(tau, target) - sum(x * density(tau, one) for x, one in zip(found, profiles, strict=True))
    for one in profiles:
        p = density(tau, one)
        assert abs((left * p).sum()) < 1e-5 * np.linalg.norm(p) * np.linalg.norm(density(tau, target))
    assert np.linalg.norm(left) > 1e-2 * np.linalg.norm(density(tau, target))


def test_what_cannot_be_put_together():
    profiles = snapshots(100)
    with pytest.raises(ValueError, match="same time"):
        post_hoc_weights([*profiles, profiles[0]], profiles[1])
    with pytest.raises(ValueError, match="later than every snapshot"):
        post_hoc_weights(profiles, Profile(STEPS + 1.0, 5.0))
