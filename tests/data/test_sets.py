"""Built-in sets: ranges, splits that do not move with the seed, the toys' densities."""

import hashlib

import numpy as np
import pytest
import torch

from toolkit import data
from toolkit.data.config import Data
from toolkit.data.images import toys
from toolkit.data.images.pixels import pool_to, resize, to_channels
from toolkit.data.sets import MemorySplit, fixed_subset, hold_out, limit_train
from toolkit.data.splits import hold_out_named
from toolkit.errors import UserError


def test_digits_are_in_range_with_disjoint_stratified_splits():
    digits = data.load(Data(name="digits"), seed=0)
    assert digits.shape == (1, 8, 8) and digits.num_classes == 10
    assert len(digits.train) + len(digits.valid) + len(digits.test) == 1797
    x, labels = digits.train.all()
    assert x.dtype == torch.float32 and x.min() == -1 and x.max() == 1 and labels.dtype == torch.int64
    assert np.bincount(digits.test.labels).min() >= 34  # a fifth of the rarest class
    train, test = ({row.tobytes() for row in split.all()[0].numpy()} for split in (digits.train, digits.test))
    assert len(train & test) <= 1  # the set itself may hold a picture twice


def test_digits_are_those_that_scikit_learn_loads():
    from sklearn.datasets import load_digits

    def rows(images, labels):
        return sorted((*image.ravel().tolist(), int(label)) for image, label in zip(images, labels, strict=True))

    theirs, digits = load_digits(), data.load(Data(name="digits"))
    splits = [split.all() for split in (digits.train, digits.valid, digits.test)]
    levels = torch.cat([(x + 1) * 8 for x, _ in splits]).round()  # 0..16
    assert rows(levels, torch.cat([labels for _, labels in splits])) == rows(theirs.images, theirs.target)


def test_real_splits_do_not_depend_on_the_seed_and_generated_ones_do():
    first, second = (data.load(Data(name="digits"), seed) for seed in (0, 1))
    assert first.train.fingerprint() == second.train.fingerprint()
    first, second = (data.load(Data(name="ring"), seed) for seed in (0, 1))
    assert first.train.fingerprint() != second.train.fingerprint()


def test_class_labels_off_hides_them_from_networks_not_from_measures():
    digits = data.load(Data(name="digits", class_labels=False))
    assert digits.num_classes == 0 and digits.train.batch([0, 1])[1] is None
    assert digits.train.labels is not None and len(digits.class_names) == 10


def test_size_channels_and_number_of_images_follow_the_config():
    digits = data.load(Data(name="digits", size_px=16, channels=3, num_train=100))
    assert digits.shape == (3, 16, 16) and len(digits.train) == 100
    with pytest.raises(UserError, match=r"data.num_train=9999: only 1295"):
        data.load(Data(name="digits", num_train=9999))
    with pytest.raises(UserError, match=r"data.channels=2"):
        data.load(Data(name="digits", channels=2))


def test_ring_is_exactly_balanced_with_known_components():
    ring = data.load(Data(name="ring"))
    assert len(ring.train) == 8000 and set(np.bincount(ring.train.labels)) == {1000}
    points, _ = ring.train.all()
    radii = (points.double() - ring.mixture.centres[ring.train.labels]).pow(2).mean().sqrt()
    assert abs(radii - 0.2) < 0.005
    assert ring.mixture.centres.norm(dim=1).allclose(torch.tensor(3.0, dtype=torch.float64))
    assert abs(ring.sigma_data - 2.13) < 0.02  # sqrt(3^2 / 2 + 0.2^2) per coordinate


def test_grid_and_checkerboard():
    grid = data.load(Data(name="grid25", num_train=50))
    assert len(grid.train) == 50 and grid.num_classes == 25
    many = data.load(Data(name="grid25", num_train=25_000)).train.all()[0]
    near = (many / 2).round() * 2  # the centre of each, and 25,000 draws of two coordinates of deviation 0.05
    assert abs(float((many - near).std()) - 0.05) < 0.001 and set(near.flatten().tolist()) == {-4, -2, 0, 2, 4}
    with pytest.raises(UserError, match="multiple of 25"):
        data.load(Data(name="grid25", num_train=51))
    points, squares = toys.checkerboard(500, torch.Generator().manual_seed(0))
    cells = ((points + 4) // 2).long()
    assert ((cells.sum(1) % 2) == 0).all() and len(np.unique(squares)) == 8 and points.abs().max() <= 4


def test_points_refuse_image_options():
    with pytest.raises(UserError, match=r"data.size_px: data.name=ring is a set of points"):
        data.load(Data(name="ring", size_px=8))


def test_sigma_data_is_the_standard_deviation_of_all_training_values():
    digits = data.load(Data(name="digits"))
    assert digits.sigma_data == pytest.approx(float(digits.train.all()[0].double().std()), abs=1e-12)


def test_sigma_data_is_the_same_where_networks_are_built_on_the_meta_device():
    values = torch.arange(250, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    with torch.device("meta"):  # as of the matched baseline of a run that is resumed
        inside = _set_of(values).sigma_data
    assert inside == _set_of(values).sigma_data > 0.5


def _set_of(values):
    split = MemorySplit(values)
    return data.Dataset("made", split, split, split, 0, (), "", "")


def test_hold_out_keeps_units_together_and_classes_present():
    labels = np.repeat([0, 1], [30, 10])
    units = np.arange(40) // 5
    kept, held_out = hold_out(labels, 40, 0.2, "valid", units)
    assert not set(units[kept]) & set(units[held_out]) and len(kept) + len(held_out) == 40
    assert set(labels[held_out]) == {0, 1}
    with pytest.raises(UserError, match="too few"):
        hold_out(None, 1, 0.5, "test")


def test_limited_reads_are_a_fixed_spread_subset():
    split = MemorySplit(torch.arange(100.0)[:, None])
    first, _ = split.all(10)
    assert torch.equal(first, split.all(10)[0]) and len(first) == 10 and first.max() > 50
    assert torch.equal(fixed_subset(5, 9), torch.arange(5))
    assert sorted(limit_train(np.arange(5) * 2, 5)) == sorted(limit_train(np.arange(5) * 2, None)) == [0, 2, 4, 6, 8]
    with pytest.raises(UserError, match="only 5"):
        limit_train(np.arange(5), 6)


def test_pooling_resizing_and_grey():
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[..., 2:6, 2:6] = 200
    assert pool_to(image, 8, 2)[0, 0, 1, 1] == 200 and pool_to(image, 8, 2).sum() == 200
    wide = torch.full((2, 3, 10, 20), 7, dtype=torch.uint8)
    assert resize(wide, 5).shape == (2, 3, 5, 5) and (resize(wide, 5) == 7).all()
    ramp = torch.arange(20, dtype=torch.uint8).expand(1, 1, 10, 20)
    assert resize(ramp, 10)[0, 0, 0].tolist() == list(range(5, 15))  # the square in the middle
    red = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    red[:, 0] = 255
    assert to_channels(red, 1).item() == 76
    stripes = torch.tensor([0, 200, 200, 0], dtype=torch.uint8).repeat(64, 16)
    assert (resize(stripes[None, None], 16)[..., 2:-2, 2:-2].int() - 100).abs().max() <= 1  # averaged, not picked


def test_wrong_names_and_paths_are_one_line():
    with pytest.raises(UserError, match="did you mean 'digits'"):
        data.check(Data(name="digit"))
    with pytest.raises(UserError, match=r"data.path: data.name=folder needs"):
        data.check(Data(name="folder"))
    with pytest.raises(UserError, match="no such folder"):
        data.check(Data(name="folder", path="/nowhere/at/all"))
    with pytest.raises(UserError, match="is a file"):
        data.check(Data(name="folder", path=__file__))
    with pytest.raises(UserError, match="reads no files"):
        data.check(Data(name="digits", path="."))


def test_a_stand_in_has_the_shape_of_a_set_whose_folder_is_absent():
    dataset = data.stand_in(Data(name="imagenet64"))
    assert (dataset.shape, dataset.num_classes) == ((3, 64, 64), 1000)
    assert data.stand_in(Data(name="folder", size_px=32, channels=1)).shape == (1, 32, 32)
    with pytest.raises(UserError, match=r"data\.size_px: only the files of data\.name=folder would tell; set it"):
        data.stand_in(Data(name="folder"))


def test_hold_out_by_name_takes_the_share_and_leaves_a_class_on_both_sides():
    names = [f"{number}.png" for number in range(4000)]
    kept, held_out = hold_out_named(names, None, 0.1, "test")
    assert 340 < len(held_out) < 460 and len(kept) + len(held_out) == 4000 and not set(kept) & set(held_out)
    assert set(held_out) != set(hold_out_named(names, None, 0.1, "valid")[1])
    labels = np.repeat(np.arange(50), 2)  # two items each: one on either side
    kept, held_out = hold_out_named(names[:100], labels, 0.01, "test")
    assert labels[held_out].tolist() == labels[kept].tolist() == list(range(50))
    with pytest.raises(UserError, match="1 items are too few to hold out a test split"):
        hold_out_named(["one"], None, 0.5, "test")


def test_of_a_class_that_would_be_wholly_on_one_side_the_item_nearest_to_the_line_changes_it():
    """With a share of nothing the item of the smallest hash is held out, with all of it that of the largest stays."""
    names = [f"item {number}" for number in range(6)]
    hashes = [hashlib.sha256(f"test\0{name}".encode()).digest() for name in names]
    labels = np.array([0, 0, 0, 1, 1, 1])
    least = [min(group, key=hashes.__getitem__) for group in ((0, 1, 2), (3, 4, 5))]
    most = [max(group, key=hashes.__getitem__) for group in ((0, 1, 2), (3, 4, 5))]
    assert hold_out_named(names, labels, 0.0, "test")[1].tolist() == least
    assert hold_out_named(names, labels, 1.0, "test")[0].tolist() == most
