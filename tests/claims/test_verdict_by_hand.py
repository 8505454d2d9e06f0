"""Verdicts at their limits, and what a definition's identity depends on, with intervals computed by hand."""

import dataclasses
import math

import numpy as np
import pytest

from toolkit.claims.claims import Claim, Claims, RunSpec, Statistic
from toolkit.claims.verdict import judge, judge_claim, values_by_seed

T_3, T_4 = 4.302652729911275, 3.182446305284263  # Student's 97.5 % quantiles with two and three degrees of freedom


def half(values, quantile):
    return quantile * np.std(values, ddof=1) / math.sqrt(len(values))


def test_a_claim_holds_when_the_whole_interval_does_fails_when_none_of_it_does_and_is_open_between():
    values = [1.0, 1.2, 1.1, 1.4]
    low, high = np.mean(values) - half(values, T_4), np.mean(values) + half(values, T_4)
    found = judge("value", values, {"<=": 2.0})
    assert (found.center, found.low, found.high, found.n) == pytest.approx((1.175, low, high, 4))
    words = lambda holds: judge("value", values, holds).verdict  # noqa: E731
    assert words({"<=": high + 1e-6}) == "holds" and words({"<=": high - 1e-6}) == "inconclusive"
    assert words({"<=": low + 1e-6}) == "inconclusive" and words({"<=": low - 1e-6}) == "does not hold"
    assert words({">=": low - 1e-6}) == "holds" and words({">=": low + 1e-6}) == "inconclusive"
    assert words({">=": high - 1e-6}) == "inconclusive" and words({">=": high + 1e-6}) == "does not hold"
    assert words({">=": low - 1e-6, "<=": high + 1e-6}) == "holds"


def test_two_seeds_decide_nothing_and_three_do():
    assert judge("value", [1.0, 1.0], {"<=": 2}).verdict == "inconclusive (n=2)"
    assert judge("value", [1.0, 1.0, 1.0], {"<=": 2}).verdict == "holds"


def test_ratios_are_judged_in_log_space_and_must_be_positive():
    values = [0.5, 0.8, 0.6]
    logs = np.log(values)
    found = judge("ratio", values, {"<=": 2})
    ends = [math.exp(logs.mean() + sign * half(logs, T_3)) for sign in (-1, 1)]
    assert (found.center, found.low, found.high) == pytest.approx((math.exp(logs.mean()), *ends))
    assert judge("ratio", [0.5, 0.0, 0.6], {"<=": 2}).verdict == "inconclusive (a ratio is not positive)"
    wide = math.log(1e20) * T_3 / math.sqrt(3)  # an end that a float still holds
    assert judge("ratio", [1e-20, 1.0, 1e20], {"<=": 2}).high == pytest.approx(math.exp(wide))


def test_a_metric_that_is_read_coarsely_has_a_wider_interval():
    plain, coarse = (judge("value", [1.0, 1.1, 1.3], {"<=": 9}, resolution=r) for r in (0.0, 0.25))
    assert (plain.low - coarse.low, coarse.high - plain.high) == pytest.approx((0.25, 0.25))


RUN = RunSpec("a", "train-disco", ["optim.num_steps=5"], [0, 1, 2])
OTHER = RunSpec("b", "train-disco", ["model=@a", "data=digits"], [0, 1, 2])
CLAIM = Claim(
    "c", "quick", "said", "table 1", "", None, "", Statistic("value", [("b", "loss")]), [0, 1, 2], {"<=": 1.0}
)


def definition(claim=CLAIM, **runs):
    return Claims("t", {"a": RUN, "b": OTHER} | runs, {"c": claim}).definition(claim)


def test_the_definition_changes_with_all_that_a_result_depends_on_and_with_nothing_else():
    changed = dataclasses.replace
    others = [
        definition(changed(CLAIM, holds={"<=": 1.5})),
        definition(changed(CLAIM, holds={">=": 1.0})),
        definition(changed(CLAIM, seeds=[0, 1, 3])),
        definition(changed(CLAIM, resolution=0.1)),
        definition(changed(CLAIM, statistic=Statistic("value", [("b", "accuracy")]))),
        definition(b=changed(OTHER, overrides=["model=@a", "data=mnist"])),
        definition(b=changed(OTHER, seeds=[3, 4, 5])),
        definition(b=changed(OTHER, each=[["x=1"], ["x=2"], ["x=3"]])),
        definition(b=changed(OTHER, recipe=2)),
        definition(a=changed(RUN, overrides=["optim.num_steps=6"])),  # what b is made from
    ]
    assert len({definition(), *others}) == len(others) + 1
    assert definition(changed(CLAIM, statement="said otherwise", source="table 2")) == definition()
    assert definition(a=changed(RUN, minutes=3.0, quick_overrides=["x=1"])) == definition()


def test_ratios_and_differences_are_of_the_first_term_to_the_second():
    metrics = {4: {"a": {"x": 6.0}, "b": {"x": 1.5}}, 5: {"a": {"x": 1.0}, "b": {"x": 0.0}}}
    terms = [("a", "x"), ("b", "x")]
    assert values_by_seed(Statistic("difference", terms), metrics) == {4: 4.5, 5: 1.0}
    ratios = values_by_seed(Statistic("ratio", terms), metrics)
    assert ratios[4] == 4 and math.isnan(ratios[5])


def test_arithmetic_is_one_number():
    exact = dataclasses.replace(CLAIM, varies="nothing")
    assert judge_claim(exact, [0.5, 0.5]).n == 1 and judge_claim(exact, [0.5]).verdict == "holds"
    assert judge_claim(exact, [0.5, 0.6]).verdict == "inconclusive (not one number)"
    assert judge_claim(exact, [2.0]).verdict == "does not hold"
