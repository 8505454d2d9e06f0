"""The speedup at equal loss on curves whose answer is known."""

import pytest

from toolkit.errors import UserError
from toolkit.stacking.measure.curves import Curve
from toolkit.stacking.measure.readings import Reading


def power_law(factor, points=40):
    """Loss 3 (C / factor)^-0.1: the same loss at ``factor`` times the compute."""
    flops = [factor * 10 ** (i / 10) for i in range(points)]
    return Curve(flops, [3 * (spent / factor) ** -0.1 for spent in flops])


def speedup(scratch, grown, loss):
    return Reading(loss, scratch.compute_to(loss), grown.compute_to(loss)).speedup


def test_the_papers_7b_numbers():
    tokens_to_flops = 6 * 5.933e9
    scratch = Curve([tokens_to_flops * t for t in (100e9, 300e9)], [2.1, 1.935])
    grown = Curve([tokens_to_flops * t for t in (50e9, 194e9)], [2.1, 1.935])
    assert round(100 * speedup(scratch, grown, 1.935), 1) == 54.6


@pytest.mark.parametrize("loss", [2.9, 2.0, 1.5])
def test_known_ratio_at_every_loss(loss):
    assert speedup(power_law(1.5), power_law(1.0), loss) == pytest.approx(0.5, rel=1e-9)


def test_interpolates_in_log_compute():
    assert Curve([1e10, 1e12], [3.0, 2.0]).compute_to(2.5) == pytest.approx(1e11)


def test_the_first_crossing_counts():
    assert Curve([1.0, 2.0, 3.0, 4.0], [3.0, 2.0, 2.5, 1.0]).compute_to(2.0) == 2.0


@pytest.mark.parametrize("loss", [3.5, 0.1])
def test_a_loss_outside_of_a_curve_is_refused(loss):
    with pytest.raises(UserError, match="outside of the curve"):
        speedup(power_law(1.5), power_law(1.0), loss)


def test_curves_that_are_none():
    with pytest.raises(UserError, match="at least two points"):
        Curve([1.0], [2.0])
    with pytest.raises(UserError, match="rising"):
        Curve([2.0, 1.0], [2.0, 1.0])
