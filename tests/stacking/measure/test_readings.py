"""What is read off curves, on curves whose answers are known."""

import math

import pytest

from toolkit.errors import UserError
from toolkit.stacking.measure.compare import arms_table
from toolkit.stacking.measure.curves import ACCOUNTINGS, Arm, Curve, load_arms
from toolkit.stacking.measure.readings import (
    band,
    crossing,
    final_loss,
    first_to,
    reading,
    recovery_tokens,
    valley,
    variants,
)


def arm(label, points, seed=0, **settings):
    """points: (compute, loss) pairs; the other accountings are half and twice the compute."""
    scale = dict(zip(ACCOUNTINGS, (1, 0.5, 2), strict=True))
    rows = [
        {
            "step": i,
            "tokens": 10 * flops,
            "time_s": flops,
            "train_loss": None if i == 0 else loss,
            "valid_loss": loss,
            **{f"flops.{name}": factor * flops for name, factor in scale.items()},
        }
        for i, (flops, loss) in enumerate(points)
    ]
    return Arm(label, {"seed": seed, "lr": 1e-3, "layers": 12, **settings}, rows)


def power_law(label, factor, start=1, stop=10, **settings):
    """loss = 5 (factor C)^-0.1: reaches any loss with 1 / factor of the compute."""
    points = [start + i * (stop - start) / 50 for i in range(51)]
    return arm(label, [(c, 5 * (factor * c) ** -0.1) for c in points], **settings)


def test_300_against_194_billion_tokens_is_54_6_per_cent():
    scratch, grown = arm("scratch", [(1, 9), (300, 2)]), arm("grown", [(1, 9), (194, 2)])
    read = reading([scratch], grown, final_loss([scratch], grown), "total")
    assert round(100 * read.speedup, 1) == 54.6


@pytest.mark.parametrize("accounting", ACCOUNTINGS)
def test_a_known_ratio_is_read_at_every_loss(accounting):
    scratch, grown = power_law("scratch", 1.0), power_law("grown", 1.5)
    for loss in (4.2, 4.1, final_loss([scratch], grown)):
        assert reading([scratch], grown, loss, accounting).speedup == pytest.approx(0.5, abs=5e-3)


def test_scratch_is_read_at_whichever_rate_gets_there_first():
    early, late = arm("scratch", [(1, 5), (2, 4), (10, 3.9)]), arm("scratch", [(1, 5), (6, 4), (9, 3.5)])
    assert first_to([early, late], 4, "total") == 2 and first_to([early, late], 3.6, "total") > 6
    assert first_to([early], 3.6, "total") is None
    grown = arm("grown", [(1, 4.5), (4, 3.6)])
    assert final_loss([early, late], grown) == 3.6  # the higher of the last losses: both reach it
    assert reading([early, late], grown, 4.8, "total") is None  # the grown network begins below


def test_a_loss_between_points_and_beyond():
    curve = Curve([1, 4, 16], [3.0, 2.0, 1.0])
    assert curve.loss_at(2) == pytest.approx(2.5) and curve.loss_at(16) == 1.0 and curve.loss_at(1) == 3.0
    with pytest.raises(UserError, match="outside of the curve"):
        curve.loss_at(17)


def test_smoothing_keeps_a_straight_line_and_quietens_a_noisy_one():
    straight = arm("grown", [(1 + i, 5 - 0.05 * i) for i in range(41)])
    assert straight.smoothed() == pytest.approx([5 - 0.05 * i for i in range(41)])
    noisy = arm("grown", [(1 + i, 5 - 0.05 * i + 0.1 * (-1) ** i) for i in range(41)])
    errors = [abs(loss - (5 - 0.05 * i)) for i, loss in enumerate(noisy.smoothed())]
    assert max(errors[2:-2]) < 0.03 and max(errors[1:]) < 0.07
    assert arm("grown", [(1, 9), (2, 3)]).smoothed() == [9, 3]  # too short to be smoothed


def test_where_one_curve_stays_below_another():
    grown = Curve([1, 2, 3, 4], [5.0, 4.1, 3.0, 2.0])
    assert crossing(grown, Curve([0.5, 5], [4.0, 4.0])) == 3
    assert crossing(grown, Curve([0.5, 5], [1.0, 1.0])) is None
    assert crossing(Curve([1, 2, 3], [3.0, 5.0, 3.0]), Curve([0.5, 5], [4.0, 4.0])) == 3  # not the first crossing


def test_recovery_from_growth():
    grown = arm("grown", [(1, 4.6), (2, 4.2), (3, 3.9), (4, 4.1)])
    assert recovery_tokens(4.0, grown) == 20
    assert recovery_tokens(3.0, grown) == math.inf
    assert recovery_tokens(4.2, grown) == 10  # as good is enough


def test_arms_are_named_by_what_tells_them_apart():
    arms = [
        arm("scratch", [(1, 3), (2, 2)], lr=1e-3),
        arm("scratch", [(1, 3), (2, 2)], seed=1, lr=1e-3),
        arm("scratch", [(1, 3), (2, 2)], lr=2e-3),
        arm("grown", [(1, 3), (2, 2)], operator="stack", growth_tokens=100, noise=0.0),
        arm("grown", [(1, 3), (2, 2)], operator="zero", growth_tokens=100, noise=0.0),
    ]
    assert {name: len(found) for name, found in variants(arms).items()} == {
        "scratch lr 0.001": 2, "scratch lr 0.002": 1, "grown stack": 1, "grown zero": 1,
    }  # fmt: skip


def test_a_band_over_seeds():
    curves = [power_law("grown", factor, start).curve("total") for factor, start in ((1, 1), (1.2, 2), (0.8, 1))]
    grid, mean, low, high = band(curves)
    assert grid[0] == pytest.approx(2) and grid[-1] == pytest.approx(10)
    assert all(a < b < c for a, b, c in zip(low, mean, high, strict=True))
    assert mean[-1] == pytest.approx(math.fsum(curve.losses[-1] for curve in curves) / 3)
    assert band([Curve([1, 2], [2, 1]), Curve([3, 4], [2, 1])]) is None


def test_tables_of_several_seeds_give_means_and_deviations():
    arms = [arm("scratch", [(1, 3), (2, last)], seed=seed, lr=1e-3, layers=2) for seed, last in ((0, 2.0), (1, 2.2))]
    table = arms_table(arms)
    assert table.rows[0][-1] == "2.100 ± 0.141" and "over 2 seeds" in table.note
    single = arms_table(arms[:1])
    assert single.rows[0][-1] == "2.000" and "seeds" not in single.note


def test_an_isoflop_valley():
    arms = [power_law("grown", factor, growth_tokens=d) for d, factor in ((0, 1.0), (10, 2.0), (50, 1.4))]
    for flops, losses in valley(arms, "growth_tokens", "total").items():
        assert min(losses, key=losses.get) == 10
        assert losses[10] == [pytest.approx(5 * (2 * flops) ** -0.1, rel=1e-3)]


def test_folders_without_curves(tmp_path):
    with pytest.raises(UserError, match="has no curves"):
        load_arms(tmp_path)
    (tmp_path / "curves").mkdir()
    (tmp_path / "curves" / "grown.json").write_text("{")
    with pytest.raises(UserError, match="not a training curve"):
        load_arms(tmp_path)
    power_law("grown", 1.0).save(tmp_path / "curves" / "grown.json")
    assert load_arms(tmp_path)[0].label == "grown"
