"""What a judge of points says of points that were put where their scores are known."""

import dataclasses
import math
import types

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


@pytest.mark.parametrize(("num", "pool"), [(10, 60), (30, 90)])
def test_the_floor_of_images_draws_from_three_times_the_samples_and_from_some_at_least(monkeypatch, num, pool):
    from toolkit.metrics import judge as module

    train = MemorySplit(torch.randn(200, 4, generator=torch.Generator().manual_seed(0)))
    monkeypatch.setattr(module, "LEAST_FLOOR_POOL", 60)
    judge = module.FeatureJudge.__new__(module.FeatureJudge)
    judge.dataset, judge.stats, seen = types.SimpleNamespace(train=train), {}, []
    of = lambda self, split, order: seen.append(order.tolist()) or torch.zeros(len(order), 1)  # noqa: E731
    monkeypatch.setattr(module.FeatureJudge, "_of", of)
    monkeypatch.setattr(module.FeatureJudge, "_precision_recall", lambda self, found: {"compared": len(found)})
    assert judge.floor(num) == {"compared": num}
    (drawn,) = seen
    assert len(set(drawn)) == pool and drawn != sorted(drawn)
