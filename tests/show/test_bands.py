"""Mean and spread over seeds, against numbers worked out here."""

import math

import pytest

from toolkit.show.bands import MOST_STEPS, average
from toolkit.show.charts import HEIGHT, LEFT, RIGHT, WIDTH, Line, chart

NAN = math.nan


def test_the_mean_and_the_sample_deviation_by_hand():
    runs = [[(0, 1.0), (10, 2.0)], [(0, 3.0), (10, 6.0)], [(0, 8.0), (10, 1.0)]]
    first, second = average(runs)
    # 1, 3, 8: mean 4, squares 9 + 1 + 16 = 26 over 2; 2, 6, 1: mean 3, squares 1 + 9 + 4 = 14 over 2
    assert first == pytest.approx((0, 4.0, 13**0.5, 3))
    assert second == pytest.approx((10, 3.0, 7**0.5, 3))


def test_a_run_counts_between_its_own_values_alone():
    found = {step: rest for step, *rest in average([[(0, 0.0), (10, 10.0)], [(5, 7.0)]])}
    assert found[0][0] == 0 and math.isnan(found[0][1]) and found[0][2] == 1
    assert found[5] == pytest.approx([6.0, 2**0.5, 2])  # 5 on the straight line, and 7
    assert found[10][0] == 10 and found[10][2] == 1


def test_a_value_that_is_not_finite_leaves_its_run_out_there_and_nowhere_else():
    found = {step: rest for step, *rest in average([[(0, 1.0), (1, NAN), (2, 5.0)], [(0, 3.0), (1, 4.0), (2, 7.0)]])}
    assert found[0] == pytest.approx([2.0, 2**0.5, 2]) and found[2] == pytest.approx([6.0, 2**0.5, 2])
    assert found[1][0] == 4 and found[1][2] == 1
    ((step, mean, _, count),) = average([[(3, math.inf)], []])
    assert step == 3 and math.isnan(mean) and count == 0


def test_a_step_that_was_logged_twice_counts_once_and_many_steps_are_an_even_choice():
    assert average([[(1, 5.0), (2, 1.0), (1, 3.0)], [(1, 1.0), (2, 1.0)]])[0] == pytest.approx((1, 2.0, 2**0.5, 2))
    many = average([[(step, float(step)) for step in range(50_000)]] * 2)
    assert len(many) == MOST_STEPS and many[0][0] == 0 and many[-1][0] == 49_999
    assert all(step == mean for step, mean, _, _ in many)


def test_a_band_is_drawn_one_deviation_above_and_below_its_line():
    line = Line("mean", 0, [(0, 4.0, 1.0, 3), (10, 4.0, 2.0, 3)])
    page = chart("loss", [line])
    band = page.split('<path class="band s0" d="M')[1].split("Z")[0]
    places = [tuple(map(float, place.split())) for place in band.split("L")]
    path = page.split('<path class="line s0 d0" d="M')[1].split('"')[0]
    means = [tuple(map(float, place.split())) for place in path.split("L")]
    assert [x for x, _ in places] == [LEFT, WIDTH - RIGHT, WIDTH - RIGHT, LEFT]
    above, below = (
        [means[0][1] - places[0][1], means[1][1] - places[1][1]],
        [
            places[3][1] - means[0][1],
            places[2][1] - means[1][1],
        ],
    )
    assert above == pytest.approx(below, abs=0.11) and above[1] == pytest.approx(2 * above[0], abs=0.2)
    assert all(0 <= y <= HEIGHT for _, y in places)
    assert "4 ± 2 (n=3)" in page


def test_a_band_below_a_logarithmic_axis_ends_at_it():
    line = Line("mean", 0, [(0, 100.0, 10.0, 2), (1, 1.0, 5.0, 2)])
    page = chart("loss", [line])
    assert "log scale" in page
    band = page.split('<path class="band s0" d="M')[1].split("Z")[0]
    assert all(0 <= float(place.split()[1]) <= HEIGHT for place in band.split("L"))
