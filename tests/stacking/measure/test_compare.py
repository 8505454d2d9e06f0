"""Which arms a grown network is compared with, and comparisons of which little is left to read."""

import pytest

from tests.stacking.measure.test_readings import arm
from toolkit.runs.record import Run
from toolkit.stacking.config import GrowLLM
from toolkit.stacking.measure.compare import draw, read_arm

SETTINGS = {"base_layers": 3, "growth_tokens": 100.0, "hidden_size": 16, "factor": 4.0}


def ends(label, first, last, **settings):
    """An arm of two points (compute, loss)."""
    return arm(label, [first, last], **(SETTINGS | settings))


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, GrowLLM())


def test_runs_that_differ_in_target_or_base_are_not_each_others_controls():
    grown = ends("grown", (2, 6), (9, 3))
    scratch, base, continued = (ends(label, (1, 6.5), (9, 3.5)) for label in ("scratch", "base", "continued"))
    others = [
        ends("scratch", (1, 6), (2, 2.9), layers=6),
        ends("scratch", (1, 6), (2, 2.9), hidden_size=8),
        *(ends(label, (1, 9), (2, 8), growth_tokens=7.0) for label in ("base", "continued")),
        ends("base", (1, 9), (2, 8), base_layers=1),
        ends("base", (1, 9), (2, 8), seed=1),
    ]
    config = GrowLLM()
    alone = read_arm(grown, [grown, scratch, base, continued], config)
    among = read_arm(grown, [*others, grown, scratch, base, continued], config)
    assert among["readings"] == alone["readings"] and among["metrics"] == alone["metrics"]
    assert (alone["metrics"]["growth.base_loss"], alone["metrics"]["final.scratch"]) == (3.5, 3.5)
    assert read_arm(grown, [*others, grown, base, continued], config) is None


def test_an_arm_that_was_measured_at_its_ends_only_has_no_curve(run):
    """``compare.eval_every_steps`` larger than the training: at step 0 nothing was spent yet."""
    grown, scratch, base = ends("grown", (9, 4), (18, 3)), ends("scratch", (0, 6), (9, 3)), ends("base", (0, 6), (9, 4))
    assert grown.has_curve() and not scratch.has_curve() and not base.has_curve()
    assert read_arm(grown, [grown, scratch, base], GrowLLM()) is None
    draw(run, GrowLLM(), [grown, scratch, base], [])
    assert (run.dir / "figures" / "loss_flops.png").is_file()


def test_a_valley_without_a_compute_that_all_reach_is_left_out(run):
    grown = [ends("grown", (start, 4), (1.5 * start, 3), factor=start) for start in (1, 2, 4)]
    draw(run, GrowLLM(), grown, [])
    assert not (run.dir / "figures" / "valley_factor.png").exists()
