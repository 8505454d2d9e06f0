"""What a judge of points says of points that were put where their scores are known."""

import dataclasses
import math

import pytest
import torch

from toolkit import data
from toolkit.data.config import Data
from toolkit.data.sets import MemorySplit
from toolkit.metrics.judge import PointJudge


@pytest.fixture(scope="module")
def ring():
    return data.load(Data(name="ring"))


def test_unequal_shares_are_pearsons_chi_squared_per_degree_of_freedom(ring):
    centres = ring.mixture.centres.float()
    assert len(centres) == 8
    found = PointJudge(ring).score(centres.repeat_interleave(torch.tensor([4, 2, 2, 2, 2, 2, 2, 0]), dim=0))
    assert found["mode_chi2_per_mode"] == pytest.approx((2**2 / 2 + 2**2 / 2) / 7)  # two are expected of each mode
    assert (found["modes_missed"], found["off_mode"]) == (1, 0)


def test_the_floor_is_what_training_items_score_against_test_items(ring):
    train, test = torch.full((20, 2), 5.0), torch.zeros(30, 2)
    judge = PointJudge(dataclasses.replace(ring, train=MemorySplit(train), test=MemorySplit(test), mixture=None))
    assert judge.floor(10) == pytest.approx(
        {"energy": 2 * math.hypot(5, 5), "num": 10}
    )  # twice the distance of the two points
