"""Intervals against scipy's own and against how often they cover the truth."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from toolkit.metrics.stats import difference, ratio, summary

A, B = [2.0, 2.4, 1.9, 2.2], [1.0, 1.3, 1.1, 0.9]


def test_summary_is_students_interval():
    found = summary(A)
    expected = scipy_stats.t.interval(0.95, 3, loc=np.mean(A), scale=scipy_stats.sem(A))
    assert (found.low, found.high) == pytest.approx(expected)
    assert (found.mean, found.sd, found.n) == pytest.approx((np.mean(A), np.std(A, ddof=1), 4))


def test_one_seed_decides_nothing_and_none_is_an_error():
    found = summary([0.1])
    assert found.low == -math.inf and not found.below(100) and not found.above(-100)
    for bad in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="need finite values"):
            summary(bad)


def test_differences_paired_and_independent():
    paired = difference(A, B)
    test = scipy_stats.ttest_rel(A, B).confidence_interval()
    assert (paired.low, paired.high) == pytest.approx((test.low, test.high))
    welch = difference(A, B, paired=False)
    test = scipy_stats.ttest_ind(A, B, equal_var=False).confidence_interval()
    assert (welch.low, welch.high) == pytest.approx((test.low, test.high)) and welch.above(0)
    with pytest.raises(ValueError, match="cannot be paired"):
        difference(A, B[:2])
    assert difference(A, [1.0], paired=False).low == -math.inf
    assert difference([1.0, 1.0], [3.0, 3.0], paired=False).high == -2


def test_ratios_are_symmetric_in_logarithms():
    there, back = ratio(A, B), ratio(B, A)
    assert there.mean == pytest.approx(1 / back.mean) and there.low == pytest.approx(1 / back.high)
    assert ratio([2.0, 4.0], [1.0, 2.0]).mean == pytest.approx(2) and ratio([1.0], [2.0]).high == math.inf
    with pytest.raises(ValueError, match="positive"):
        ratio([1.0, 0.0], [1.0, 1.0])


def test_the_interval_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(5, 2, (600, 3))
    found = [summary(list(row)) for row in draws]
    covered = np.mean([one.low <= 5 <= one.high for one in found])
    assert 0.92 < covered < 0.98
