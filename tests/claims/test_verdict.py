"""Verdicts from whole intervals."""

import math

import pytest

from toolkit.claims.verdict import judge, judge_exact


def test_arithmetic_is_exact_and_a_coarse_reading_widens_the_interval():
    assert judge_exact([511.0, 511.0], {">=": 511, "<=": 511}).verdict == "holds"
    assert judge_exact([511.0], {">=": 512}).verdict == "does not hold"
    assert judge_exact([511.0, 512.0], {">=": 500}).verdict == "inconclusive (not one number)"
    assert judge("value", [0.09, 0.09, 0.09], {"<=": 0.1}).verdict == "holds"
    assert judge("value", [0.09, 0.09, 0.09], {"<=": 0.1}, resolution=0.025).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("kind", "values", "holds", "words"),
    [
        ("value", [0.1, 0.11, 0.12], {"<=": 0.2}, "holds"),
        ("value", [0.3, 0.31, 0.32], {"<=": 0.2}, "does not hold"),
        ("value", [0.1, 0.2, 0.3], {"<=": 0.2}, "inconclusive"),
        ("value", [0.1, 0.11], {"<=": 0.2}, "inconclusive (n=2)"),
        ("value", [0.1], {"<=": 0.2}, "inconclusive (n=1)"),
        ("value", [0.1, 0.11, math.inf], {"<=": 0.2}, "inconclusive (a value is not finite)"),
        ("ratio", [0.1, 0.0, 0.1], {"<=": 0.2}, "inconclusive (a ratio is not positive)"),
        ("ratio", [0.9, 1.0, 1.1], {">=": 0.5, "<=": 2}, "holds"),
        ("ratio", [1e-300, 1e300], {"<=": 2}, "inconclusive (n=2)"),
        ("difference", [-0.5, -0.51, -0.52], {">=": -0.1, "<=": 0.1}, "does not hold"),
    ],
)
def test_the_whole_interval_decides(kind, values, holds, words):
    assert judge(kind, values, holds).verdict == words


def test_intervals_against_known_values():
    found = judge("value", [1.0, 2.0, 3.0], {"<=": 9})  # t(0.975, 2) = 4.30265
    assert (found.low, found.high) == pytest.approx((2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), rel=1e-5)
    ratio = judge("ratio", [math.exp(v) for v in (1.0, 2.0, 3.0)], {"<=": 9})
    assert (ratio.center, ratio.low) == pytest.approx((math.exp(2), math.exp(found.low)))
