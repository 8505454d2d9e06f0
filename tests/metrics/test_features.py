"""The fixed features: kept in the cache, equal every time, and telling classes apart."""

from types import SimpleNamespace

import pytest
import torch

from tests.copies import with_a_comment
from toolkit import data
from toolkit.data.config import Data
from toolkit.metrics import features as module
from toolkit.metrics.features import FeatureNet, features_of
from toolkit.metrics.frechet import frechet_distance


@pytest.fixture
def digits(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    return data.load(Data(name="digits"))


def test_the_classifier_is_good_and_trained_once(digits, monkeypatch):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = features_of(digits)
    assert torch.equal(torch.get_rng_state(), before)
    images, labels = digits.test.all()
    assert first.kind == "classifier" and first.accuracy(images, labels) > 0.95
    monkeypatch.setattr(module, "train_classifier", None)  # would fail if it trained again
    assert torch.equal(features_of(digits)(images), first(images))
    assert first(images).shape == (len(images), module.NUM_FEATURES)
    noisy = (images + 0.5 * torch.randn(images.shape)).clamp(-1, 1)
    reference = first(digits.train.all()[0])
    assert frechet_distance(first(noisy), reference) > 3 * frechet_distance(first(images), reference)


def test_classes_are_told_from_what_is_positive_in_the_features():
    torch.manual_seed(0)
    net, x = FeatureNet((1, 8, 8), 3), torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(net(x), net.to_logits(net.features(x).clamp(min=0)))


def test_large_images_are_halved_at_once():
    for size, stride in (((24, 30), 2), ((30, 24), 2), ((23, 30), 1)):
        assert FeatureNet((1, *size), 2).body[0].stride == (stride, stride)


def test_a_damaged_cache_is_made_again_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    tiny = data.load(Data(name="digits", size_px=4, class_labels=False))  # measures see the labels all the same
    assert features_of(tiny).kind == "classifier"
    (kept,) = (tmp_path / "features").glob("digits-*.safetensors")
    content = kept.read_bytes()
    kept.write_bytes(content[:100])
    features_of(tiny)
    assert kept.read_bytes() == content


def test_the_kept_classifier_is_named_by_the_data_and_the_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    commented = with_a_comment(module, tmp_path, monkeypatch)
    tiny = data.load(Data(name="digits", size_px=4))
    name = module._cache_path(tiny)
    assert commented._cache_path(tiny) == name and name.parent == tmp_path / "features"
    assert module._cache_path(data.load(Data(name="digits", size_px=4, num_train=100))) != name
    monkeypatch.setattr(module, "RECIPE", 0)
    assert module._cache_path(tiny) != name


def test_without_labels_principal_components_serve(digits):
    digits.train.labels = None
    found = features_of(digits)
    images = digits.test.all()[0]
    assert found.kind == "pca" and found(images).shape == (len(images), module.NUM_PCA)
    kept = found(digits.train.all()[0]).var(0)
    assert (kept[:-1] >= kept[1:] - 1e-6).all()
    with pytest.raises(ValueError, match="no classes"):
        found.predict(images)


def test_points_are_their_own_features():
    ring = data.load(Data(name="ring"))
    points = ring.test.all()[0]
    assert torch.equal(features_of(ring)(points), points)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 8, 8), (3, 16, 12), (1, 28, 28), (3, 64, 64), (3, 96, 128)])
def test_any_image_size_fits(shape):
    net = FeatureNet(shape, 7)
    assert net(torch.zeros(2, *shape)).shape == (2, 7) and net.features(torch.zeros(2, *shape)).shape == (2, 64)


def test_principal_components_are_the_axes_of_most_variance_about_the_mean(digits):
    digits.train.labels = None
    found, pixels = features_of(digits), digits.train.all(module.NUM_FOR_PCA)[0].flatten(1).double()
    largest = torch.linalg.eigvalsh(torch.cov(pixels.T)).flip(0)[: module.NUM_PCA]
    made = found(digits.train.all(module.NUM_FOR_PCA)[0]).double()
    torch.testing.assert_close(torch.cov(made.T), torch.diag(largest), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.mean(0), torch.zeros(module.NUM_PCA).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("items", "steps"), [(10, 200), (1600, 250), (10**6, 300)])
def test_a_classifier_sees_each_item_twenty_times_within_limits(items, steps, monkeypatch):
    seen = []

    class Split:
        labels = [0, 1] * (items // 2)

        def __len__(self):
            return items

        def batch(self, chosen):
            seen.append(len(chosen))
            return torch.zeros(len(chosen), 1, 4, 4), None

    monkeypatch.setattr(module, "NUM_IMAGES", 300 * 128 + 5)
    module.train_classifier(FeatureNet((1, 4, 4), 2, width=2), SimpleNamespace(train=Split()))
    assert seen == [128] * steps


def test_a_classifier_that_cannot_be_kept_serves_all_the_same(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    tiny = data.load(Data(name="digits", size_px=4, class_labels=False))
    kept = features_of(tiny)(tiny.test.all()[0])
    (tmp_path / "file").write_text("where a cache cannot be")
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "file"))
    assert torch.equal(features_of(tiny)(tiny.test.all()[0]), kept)
    assert "not kept for the next time (Not a directory); set TOOLKIT_CACHE=FOLDER" in caplog.text
