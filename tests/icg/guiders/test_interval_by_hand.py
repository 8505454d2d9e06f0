"""Ends of intervals, projection with momentum, and CADS, each with its formula written out."""

import pytest
import torch

from toolkit.errors import UserError
from toolkit.icg.guiders.cads import Annealing
from toolkit.icg.guiders.clock import NoiseLevels, TrainingSteps
from toolkit.icg.guiders.interval import Interval
from toolkit.icg.guiders.projection import Projection


def test_steps_count_from_the_first_share_up_to_the_last_and_not_with_it():
    interval = Interval(start=0.25, stop=0.8)
    assert [step for step in range(10) if interval.holds_step(step, 10)] == [2, 3, 4, 5, 6, 7]


def test_both_ends_of_time_and_noise_are_within():
    times = Interval(t_min=200, t_max=700)
    clock = TrainingSteps(500)  # t counts to 500: 100 is 200 thousandths
    assert [t for t in (99, 100, 101, 349, 350, 351) if times.holds_time(t, clock)] == [100, 101, 349, 350]
    noise = Interval(sigma_min=0.5, sigma_max=3.0)
    assert [s for s in (0.49, 0.5, 1.0, 3.0, 3.01, 5.0) if noise.holds_time(s, NoiseLevels())] == [0.5, 1.0, 3.0]


def project(d, p, eta, norm):
    """Sadat et al. 2024: limit the norm, split along the prediction, keep eta of what is parallel."""
    length = sum(float(one) ** 2 for one in d) ** 0.5
    d = d * min(1.0, norm / length)
    parallel = (d @ p) / (p @ p) * p
    return (d - parallel) + eta * parallel


@pytest.mark.parametrize("norm", [0.5, 50.0])
def test_projection_is_its_formula_with_momentum(norm):
    rng = torch.Generator().manual_seed(0)
    first, second, prediction = torch.randn(3, 2, 5, generator=rng, dtype=torch.float64)
    made = Projection(eta=0.3, norm=norm, momentum=-0.4)
    once, twice = made(first, prediction, "cfg"), made(second, prediction, "cfg")
    for row in range(2):
        torch.testing.assert_close(once[row], project(first[row], prediction[row], 0.3, norm))
        mixed = second[row] - 0.4 * first[row]
        torch.testing.assert_close(twice[row], project(mixed, prediction[row], 0.3, norm))


@pytest.mark.parametrize(("t", "gamma"), [(0.3, 1.0), (0.5, 1.0), (0.6, 0.75), (0.8, 0.25), (0.9, 0.0), (1.0, 0.0)])
def test_the_condition_is_annealed_by_algorithm_1(t, gamma):
    rng = torch.Generator().manual_seed(0)
    y, noise = torch.randn(2, 3, 6, generator=rng)
    noisy = gamma**0.5 * y + 0.7 * (1 - gamma) ** 0.5 * noise
    restored = torch.stack([(n - n.mean()) / n.std() * one.std() + one.mean() for n, one in zip(noisy, y, strict=True)])
    found = Annealing(scale=0.7, mix=0.8).anneal(y, noise, t)
    torch.testing.assert_close(found, 0.8 * restored + 0.2 * noisy, rtol=1e-4, atol=1e-5)


def test_annealing_ends_where_it_is_divided_by_their_distance():
    """gamma = (tau2 - t) / (tau2 - tau1): both ends at one place have none."""
    assert Annealing(1.0, tau1=0.0, tau2=1.0).gamma(0.25) == 0.75
    for words in ({"tau1": 0.5, "tau2": 0.5}, {"tau1": -0.1}, {"tau2": 1.1}, {"mix": 1.1}, {"mix": -0.1}):
        with pytest.raises(UserError, match="cads_"):
            Annealing(1.0, **words)
    with pytest.raises(UserError, match="scale at least 0"):
        Annealing(-1.0)
