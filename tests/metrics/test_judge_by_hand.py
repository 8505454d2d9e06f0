"""What a judge of points says of points that were put where their scores are known."""

import dataclasses
import math
import types

import pytest
import torch

from toolkit import data
from toolkit.data.config import Data
from toolkit.data.sets import MemorySplit
from toolkit.metrics.frechet import frechet_distance
from toolkit.metrics.judge import FeatureJudge, PointJudge


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


def test_images_are_judged_beside_each_split_in_its_own_name(ring):
    rng = torch.Generator().manual_seed(0)
    train, valid, test, samples = (torch.randn(40, 3, generator=rng) + shift for shift in (0.0, 3.0, 7.0, 1.0))
    splits = {name: MemorySplit(x) for name, x in (("train", train), ("valid", valid), ("test", test))}
    identity = type("Identity", (), {"kind": "pca", "net": None, "__call__": lambda self, x: x})()
    for with_valid in (False, True):
        judge = FeatureJudge(dataclasses.replace(ring, mixture=None, **splits), identity, with_valid=with_valid)
        found = judge.score(samples)
        assert found["frechet"] == pytest.approx(frechet_distance(samples, test))
        assert ("frechet_valid" in found) == with_valid
    assert found["frechet_valid"] == pytest.approx(frechet_distance(samples, valid))
