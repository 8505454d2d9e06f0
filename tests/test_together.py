"""experiments/together: every interval again from the values of its record, and what its page says of it."""

import json
import math
import statistics

import pytest
from scipy import stats

from tests.toyroom.harness import REPO

TOGETHER = REPO / "experiments" / "together"
PAGE = (TOGETHER / "README.md").read_text()


def record(name):
    return json.loads((TOGETHER / f"{name}.json").read_text())


def interval(values):
    """Mean, and Student's interval of 95 %."""
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean, mean - half, mean + half


@pytest.mark.parametrize(("kind", "digits"), [("imagined", 3), ("simulated", 2)])
def test_enhanced_rollouts(kind, digits):
    found = record("enhanced_rollouts")
    psnr = found["psnr"][kind]
    assert len(psnr["ours"]) == len(psnr["bicubic"]) == 16
    mean, low, high = interval([ours - bicubic for ours, bicubic in zip(*psnr.values(), strict=True)])
    assert [found[kind]["gain"], *found[kind]["interval_95"]] == pytest.approx([mean, low, high])
    assert f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}] dB" in PAGE


def check_gaps(found, values, digits):
    """The differences of the grown arm to its rivals, by the record, by hand and on the page."""
    for rival in ("scratch", "continued"):
        pairs = zip(values["grown"], values[rival], strict=True)
        mean, low, high = interval([grown - other for grown, other in pairs])
        said = found[f"grown_minus_{rival}"]
        assert [said["mean"], *said["interval_95"]] == pytest.approx([mean, low, high]) and said["n"] >= 3
        assert f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]" in PAGE, (rival, mean, low, high)


@pytest.mark.parametrize(("measure", "digits"), [("tokens", 2), ("psnr", 2), ("obeyed", 2)])
def test_grown_world(measure, digits):
    found = record("grown_world")
    seeds = found["seeds"].values()
    assert all(0.97 < one["compute"][arm] < 1.03 for one in seeds for arm in ("scratch", "grown", "continued"))
    values = {arm: [one["arms"][arm][measure] for one in seeds] for arm in ("scratch", "grown", "continued")}
    check_gaps(found[measure], values, digits)


def test_grown_prior():
    found = record("grown_prior")
    values = {arm: [one["nats"][arm] for one in found["seeds"].values()] for arm in ("scratch", "grown", "continued")}
    check_gaps(found["nats"], values, 3)
