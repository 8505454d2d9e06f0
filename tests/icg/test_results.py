"""The frontier, the scale that the validation split chooses, the table; from scores that are known."""

import math

import pytest

from toolkit.icg.columns import DROPPING, GIVEN, PLAIN, Column, columns
from toolkit.icg.config import SampleICG
from toolkit.icg.methods import CFG, ICG, TSG, CFGAndTSG, ICGAndTSG, NoGuidance
from toolkit.icg.results import Result, all_scores, along_the_scale, frontier_ratio, headline, metrics, prompts_table
from toolkit.icg.sources.base import Source


def result(name, scale, accuracy, frechet, model=PLAIN, valid=None, shown=True, repeats=1):
    kinds = {"none": NoGuidance, "none_dropping": NoGuidance, "cfg": CFG, "icg": ICG, "icg_tsg": ICGAndTSG}
    column = Column(name, kinds[name](), scale, model, Source(), shown)
    score = {"frechet": frechet, "accuracy": accuracy, "frechet_valid": frechet if valid is None else valid}
    return Result(column, [score] * repeats, calls=2, seconds=0.1)


def curve(name, factor, model):
    points = [(1.25, 0.7, 30.0), (1.5, 0.8, 20.0), (2.0, 0.9, 40.0)]
    return [result(name, scale, accuracy, factor * frechet, model) for scale, accuracy, frechet in points]


def both(factor):
    starts = [result("none", 1.0, 0.5, factor * 50.0), result("none_dropping", 1.0, 0.5, 50.0, DROPPING)]
    return [*starts, *curve("icg", factor, PLAIN), *curve("cfg", 1.0, DROPPING)]


def test_a_frontier_that_is_a_constant_factor_away_gives_that_factor():
    assert frontier_ratio(both(1.3), "icg", "cfg") == pytest.approx(1.3)
    assert frontier_ratio(both(1.3), "cfg", "icg") == pytest.approx(1 / 1.3)


def test_two_points_a_curve_are_enough_for_a_ratio():
    ours = [result("none", 1.0, 0.5, 60.0), result("icg", 2.0, 0.9, 30.0)]
    theirs = [result("none_dropping", 1.0, 0.5, 20.0, DROPPING), result("cfg", 2.0, 0.9, 10.0, DROPPING)]
    assert frontier_ratio([*ours, *theirs], "icg", "cfg") == pytest.approx(3.0)


def test_each_curve_begins_with_its_own_model_without_guidance():
    assert along_the_scale(both(2.0), "icg", "frechet")[0] == (1.0, 100.0)
    assert along_the_scale(both(2.0), "cfg", "frechet")[0] == (1.0, 50.0)


def test_two_methods_together_do_not_begin_without_guidance():
    """At w = 1 of ICG time-step guidance is left, which is no point of "none"."""
    results = [result("none", 1.0, 0.5, 50.0), result("icg_tsg", 1.5, 0.8, 20.0)]
    assert along_the_scale(results, "icg_tsg", "frechet") == [(1.5, 20.0)]
    results.append(result("icg_tsg", 1.0, 0.7, 30.0))
    assert along_the_scale(results, "icg_tsg", "frechet") == [(1.0, 30.0), (1.5, 20.0)]


def test_curves_that_share_no_accuracy_have_no_ratio():
    far = [result("none", 1.0, 0.1, 50.0), result("icg", 2.0, 0.2, 40.0)]
    near = [result("none_dropping", 1.0, 0.5, 50.0, DROPPING), result("cfg", 2.0, 0.9, 40.0, DROPPING)]
    assert frontier_ratio([*far, *near], "icg", "cfg") is None
    assert not any(key.startswith("frontier") for key in metrics([*far, *near], {}))


def test_the_scale_is_chosen_on_validation_and_scored_on_test():
    results = [
        result("none", 1.0, 0.5, 50.0, valid=60.0),
        result("icg", 1.5, 0.8, 20.0, valid=25.0),
        result("icg", 2.0, 0.9, 15.0, valid=30.0),
    ]
    found = metrics(results, {"frechet": 3.0})
    assert found["best.icg.w"] == 1.5 and found["best.icg.frechet"] == 20.0 and found["best.icg.accuracy"] == 0.8
    assert found["floor.frechet"] == 3.0 and found["icg.w_1p5.calls"] == 2 and found["none.frechet"] == 50.0


def test_repeats_give_a_spread():
    found = metrics([result("icg", 1.5, 0.8, 20.0, repeats=3)], {})
    assert found["sd.icg.w_1p5.frechet"] == 0.0
    assert not any(math.isnan(value) for value in found.values())


def test_repeats_are_averaged_and_times_have_two_digits():
    one = result("icg", 1.5, 0.8, 20.0)
    one.scores, one.seconds = [{"frechet": value} for value in (1.0, 2.0, 6.0)], 0.12345
    assert headline([one], {}, "", "").rows == [["ICG 1.5", 3.0, 2, 0.12]]
    one.scores = one.scores[1:]
    found = metrics([one], {})
    assert (found["icg.w_1p5.frechet"], found["sd.icg.w_1p5.frechet"]) == (4.0, pytest.approx(8**0.5))


def test_the_table_shows_what_was_asked_and_all_scores_the_rest():
    results = [result("none", 1.0, 0.5, 50.0, GIVEN), result("icg", 1.5, 0.8, 20.0, GIVEN)]
    results.append(result("icg", 2.0, 0.9, 15.0, GIVEN, shown=False))
    table = headline(results, {"frechet": 3.0}, "title", "note")
    assert [row[0] for row in table.rows] == ["none", "ICG 1.5", "real images"]
    assert table.columns == ["guidance", "FD", "accuracy", "calls", "s/image"]
    assert len(all_scores(results, "").rows) == 3


def test_without_scores_there_are_no_empty_columns():
    column = Column("icg", ICG(), 1.5, GIVEN, Source(), True)
    table = headline([Result(column, [], 8, 0.5)], {}, "title", "not measured: why")
    assert table.columns == ["guidance", "calls", "s/image"] and table.rows[0][1:] == [8, 0.5]


def test_labels_show_both_scales_of_a_combination():
    both = Column("icg_tsg", ICGAndTSG(tsg=TSG(scale=4.0)), 1.5, GIVEN, Source(), True)
    assert both.label == "ICG 1.5 + TSG 4"
    assert Column("cfg_tsg", CFGAndTSG(), 2.0, DROPPING, Source(), True).label == "CFG 2 + TSG 2.5 (drop)"


def test_prompts_are_told_in_a_table():
    source = Source()
    source.prompts = ["a cat", "a dog"]
    assert prompts_table(source, 3).rows == [[0, "a cat"], [1, "a dog"], [2, "a cat"]]  # in turn


class Any(Source):
    """Takes every method."""

    def refuse(self, guidance):
        """None is refused."""


@pytest.mark.parametrize("compare", [None, ["none"]])
def test_only_methods_with_a_null_condition_are_of_the_model_that_dropped_labels(compare):
    """The control, whose null was never trained, is of the other model, at the scale that is asked for."""
    config = SampleICG(guidance=ICG(scale=2.25), compare=compare)
    config.measure.untrained_null = True
    sources = {PLAIN: Any(), DROPPING: Any()}
    found = columns(config, sources, measured=False)
    assert all(one.source is sources[one.model] for one in found)
    of_all = {"tsg.w_5": PLAIN, "icg_tsg.w_2p25": PLAIN, "cfg.w_2p25": DROPPING} if compare is None else {}
    assert {one.key: one.model for one in found} == of_all | {
        "none": PLAIN, "none_dropping": DROPPING, "icg.w_2p25": PLAIN, "null.w_2p25": PLAIN,
    }  # fmt: skip
