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
    assert f"{mean:.{digits}f} dB [{low:.{digits}f}, {high:.{digits}f}]" in PAGE
