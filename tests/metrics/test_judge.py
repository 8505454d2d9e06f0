"""One judge for every paper: the same real items, whoever asks, and scores that say what they should."""

import dataclasses

import pytest
import torch

from toolkit import data
from toolkit.data.config import Data
from toolkit.data.sets import MemorySplit
from toolkit.icg.measure import floor as icg_floor
from toolkit.icg.measure import score as icg_score
from toolkit.metrics.features import features_of
from toolkit.metrics.frechet import frechet_distance
from toolkit.metrics.judge import MOST_NEIGHBOURS, FeatureJudge, PointJudge, make_judge
from toolkit.metrics.neighbours import precision_recall


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOOLKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield data.load(Data(name="digits", size_px=4))


@pytest.fixture(scope="module")
def features(digits):
    return features_of(digits)


@pytest.fixture(scope="module")
def ring():
    return data.load(Data(name="ring"))


def test_the_test_split_itself_is_perfect(digits, features):
    images, labels = digits.test.all()
    found = FeatureJudge(digits, features).score(images[torch.randperm(len(images))])
    assert found["frechet"] == pytest.approx(0, abs=1e-6) and found["precision"] == found["recall"] == 1
    assert set(FeatureJudge(digits, features).score(images, labels)) - set(found) == {"accuracy"}


def test_precision_and_recall_of_two_papers_compare(digits, features):
    images = digits.train.all(200)[0]
    disco, icg = make_judge(digits), FeatureJudge(digits, features, with_valid=True)
    ours, theirs = disco.score(images), icg_score(icg, images, None)
    assert theirs.pop("frechet_valid") > 0
    assert ours == theirs
    assert MOST_NEIGHBOURS == 2500


def test_at_most_so_many_neighbours_a_side(digits, features):
    images = digits.train.all(200)[0]
    judge = FeatureJudge(digits, features, neighbours=2, most_neighbours=50)
    expected = precision_recall(judge.test, features(images[:50]), 2)
    found = judge.score(images)
    assert len(judge.test) == 50 and (found["precision"], found["recall"]) == (expected.precision, expected.recall)
    assert found["frechet"] == pytest.approx(frechet_distance(features(images), features(digits.test.all()[0])))
    expected, few = precision_recall(judge.test[:30], features(images[:30]), 2), judge.score(images[:30])
    assert (few["precision"], few["recall"]) == (expected.precision, expected.recall)  # as many a side
    rows = {tuple(row) for row in features(digits.test.all()[0]).tolist()}
    assert {tuple(row) for row in judge.test.tolist()} < rows


def test_the_floor_is_what_real_items_get(digits, features):
    judge = FeatureJudge(digits, features, with_valid=True)
    small, large = judge.floor(100), judge.floor(1000)
    assert small["frechet"] > large["frechet"] > 0 and small["frechet_sd"] > 0
    assert (small["num"], large["num"]) == (100, 1000)
    assert small["precision"] > 0.5 and small["recall"] > 0.3 and judge.floor(100) == small
    noise = torch.randn(100, *digits.shape).clamp(-1, 1)
    assert judge.score(noise)["frechet"] > 3 * small["frechet"]


def test_accuracy_counts_the_asked_classes(digits, features):
    judge = FeatureJudge(digits, features)
    images, labels = digits.test.all()
    right = judge.classify(images)
    assert judge.accuracy(images, right) == {"accuracy": 1.0}
    assert judge.accuracy(images, (right + 1) % 10) == {"accuracy": 0.0}
    assert judge.accuracy(images, None) == {}
    real = icg_floor(judge, 10)
    assert set(real) == {"accuracy"} and real["accuracy"] == judge.accuracy(images, labels)["accuracy"] > 0.8


def test_few_samples_have_no_distances(digits, features):
    judge = FeatureJudge(digits, features)
    images, labels = digits.test.all(20)
    assert set(icg_score(judge, images, labels.tolist())) == {"accuracy"}
    assert icg_score(judge, images, None) == {}


def test_points_of_a_known_mixture_are_classified_exactly(ring):
    points = ring.test.all()[0]
    for judge in (PointJudge(ring), FeatureJudge(ring, features_of(ring))):
        assert (judge.classify(points) == torch.from_numpy(ring.test.labels)).double().mean() > 0.99
    far = FeatureJudge(ring, features_of(ring)).score(points + 100)
    assert far["off_mode"] == 1 and far["precision"] == 0


def test_points_are_near_others_of_the_same_density(ring):
    judge = make_judge(ring)
    floor = judge.floor(1000)
    assert isinstance(judge, PointJudge) and floor["num"] == 1000 and abs(floor["energy"]) < 0.01
    assert floor["modes_missed"] == 0 and 0.2 < floor["mode_chi2_per_mode"] < 3
    one_mode = ring.mixture.centres[0].float().expand(1000, -1)
    lost = judge.score(one_mode)
    assert lost["modes_missed"] == len(ring.mixture.centres) - 1 and lost["energy"] > 100 * abs(floor["energy"])


def test_points_of_no_known_density_have_an_energy_alone(ring):
    unknown = dataclasses.replace(ring, mixture=None)
    judge = make_judge(unknown)
    assert set(judge.score(ring.train.all(500)[0])) == {"energy"} and judge.classify(ring.train.all(5)[0]) is None


def test_a_split_in_class_order_does_not_bias_the_neighbours(digits, features):
    order = torch.argsort(torch.from_numpy(digits.test.labels), stable=True)
    in_order = MemorySplit(digits.test.values[order], digits.test.labels[order.numpy()])
    judge = FeatureJudge(dataclasses.replace(digits, test=in_order), features, most_neighbours=100)
    nearest = torch.cdist(judge.test, features(in_order.all()[0])).argmin(1)
    assert len(set(in_order.labels[nearest.numpy()].tolist())) >= 9


def test_a_judge_says_what_its_distances_are_taken_in(digits, features, ring):
    unlabelled = dataclasses.replace(digits, train=MemorySplit(digits.train.values), class_names=())
    assert "classifier" in FeatureJudge(digits, features).space
    assert "principal components" in make_judge(unlabelled).space
    assert "coordinates" in make_judge(ring).space
