"""Which pictures a split has, and what becomes of their pixels, with plain numbers."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from toolkit.data.config import Data
from toolkit.data.images import crossfire, drawn_faces, toys
from toolkit.data.images.decoding import FILTERS, MOST_PIXELS, Reading, decode, to_array
from toolkit.data.images.images import _check_file
from toolkit.data.images.pixels import image_set, pool_to, to_channels
from toolkit.errors import UserError


def test_grey_is_the_luma_of_bt601():
    """255 times 0.299, 0.587 and 0.114."""
    colours = 255 * torch.eye(3, dtype=torch.uint8).view(3, 3, 1, 1)
    assert to_channels(colours, 1).flatten().tolist() == [76, 150, 29]


def test_pooled_pixels_are_the_nearest_levels():
    image = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]], dtype=torch.uint8).repeat(2, 1).view(1, 1, 4, 4)
    assert pool_to(image, 2, 0)[0, 0].tolist() == [[1, 0], [1, 0]]  # of 3/4 and 1/4
    assert pool_to(255 * image, 3, 1)[0, 0].tolist() == [[64, 64, 64], [128, 64, 64], [64, 0, 0]]


def splits_of(loaded):
    return {name: getattr(loaded, name) for name in ("train", "valid", "test")}


def test_pictures_keep_their_labels_and_units_lie_on_one_side():
    """Picture n is of level n, class n % 3 and unit n % 6."""
    images = torch.arange(48, dtype=torch.uint8).view(48, 1, 1, 1).expand(-1, 1, 2, 2)
    labels = np.arange(48) % 3
    config = Data(name="made", valid_fraction=0.5)
    made = image_set(config, (images, labels), (images[:5], labels[:5]), tuple("abc"), "", "", np.arange(48) % 6)
    levels = {name: split.values[:, 0, 0, 0].numpy() for name, split in splits_of(made).items()}
    for name, split in splits_of(made).items():
        assert np.array_equal(split.labels, levels[name] % 3)
    assert sorted([*levels["train"], *levels["valid"]]) == list(range(48)) and len(levels["valid"]) == 24
    assert not {*(levels["train"] % 6)} & {*(levels["valid"] % 6)}


def test_points_of_each_split_are_draws_of_their_own_and_of_the_seed():
    drawn = [
        split.values[:3] for seed in (0, 1) for split in splits_of(toys.load_ring(Data(name="ring"), seed)).values()
    ]
    assert len({tuple(one.flatten().tolist()) for one in drawn}) == 6
    assert len(toys.load_ring(Data(name="ring", num_train=80, valid_fraction=0.3), 0).valid) == 8 * 3


def test_no_object_of_the_game_is_in_two_splits(tmp_path, monkeypatch):
    """Twelve objects of two frames, each frame of a grey of its own."""
    records = []
    for level in range(24):
        Image.new("RGB", (32, 32), (level,) * 3).save(buffer := io.BytesIO(), "PNG")
        path = f"./arch/wall/thing_{level // 2}.{level % 2}.png"
        records.append(f"IMAGE {len(buffer.getvalue())} {path}\n".encode() + buffer.getvalue())
    (tmp_path / "crossfire.base").write_bytes(b"".join(records))
    fetched = SimpleNamespace(path=tmp_path, licence="GPL", origin="here")
    monkeypatch.setattr(crossfire.fetching, "fetch", lambda name, path: fetched)
    monkeypatch.setattr(crossfire, "TEST_FRACTION", 0.25)
    made = crossfire.load_crossfire(Data(name="crossfire", valid_fraction=0.33), 0)
    levels = {name: split.values[:, 0, 0, 0].tolist() for name, split in splits_of(made).items()}
    assert {name: len(found) for name, found in levels.items()} == {"train": 12, "valid": 6, "test": 6}
    assert all(level ^ 1 in found for found in levels.values() for level in found)


def test_a_faces_class_is_the_attribute_that_changes_last(tmp_path, monkeypatch):
    monkeypatch.setattr(
        drawn_faces, "ATTRIBUTES", {"hair style": tuple("ab"), "glasses": tuple("xyz"), "mouth": (1, 2)}
    )
    levels = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)
    np.save(tmp_path / drawn_faces.FILE, np.broadcast_to(levels, (12, 2, 2, 3)))
    fetched = SimpleNamespace(path=tmp_path, licence="MIT", origin="here")
    monkeypatch.setattr(drawn_faces.fetching, "fetch", lambda name, path: fetched)
    made = drawn_faces.load_drawn_faces(Data(name="drawn_faces", valid_fraction=0.3), 0)
    for split in splits_of(made).values():
        assert split.labels.tolist() == [level // 6 for level in split.values[:, 0, 0, 0].tolist()]


# -- decoding ----------------------------------------------------------------------------------------------------------


def test_16_bits_become_8_by_257_and_transparency_lies_on_white():
    deep = Image.fromarray(np.array([[256, 257, 65279], [65280, 65534, 65535]], np.uint16))
    assert to_array(deep, channels=1).tolist() == [[[0, 1, 254], [254, 254, 255]]]
    assert to_array(Image.new("RGBA", (1, 1), (0, 0, 0, 51)), channels=1).tolist() == [[[204]]]


def edge(size):
    """Columns of 0 before the middle, of 200 from there on; its place is odd."""
    line = np.where(np.arange(size) < size // 2 + 1, 0, 200).astype(np.uint8)
    return line, Image.fromarray(np.repeat(line[None], size, axis=0))


def test_lanczos_has_three_lobes():
    """sinc(x) sinc(x / 3), stretched by the factor of two, its weights summing to one."""
    line, image = edge(32)
    made = np.asarray(FILTERS["lanczos"](image, 16))[8].astype(int)
    for place in range(4, 12):
        distance = (np.arange(32) + 0.5 - 2 * (place + 0.5)) / 2
        weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
        assert abs(made[place] - np.clip((weights * line).sum() / weights.sum(), 0, 255)) <= 1


def test_adm_halves_by_means_a_picture_of_just_twice_the_size():
    _, image = edge(16)
    assert np.asarray(FILTERS["adm"](image, 8))[4].tolist() == [0, 0, 0, 0, 100, 200, 200, 200]


def test_a_far_larger_picture_is_brought_near_twice_the_size_by_means_first():
    """Of 48 pixels for four: eight means of six each, then by Keys' kernel to half of that."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48), np.uint8))
    means = np.asarray(image, float).reshape(8, 6, 8, 6).mean(axis=(1, 3))
    twice = Image.fromarray(np.rint(means).astype(np.uint8)).resize((4, 4), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(FILTERS["bicubic"](image, 4)).astype(int) - np.asarray(twice)).max() <= 1


def test_a_jpeg_is_decoded_at_no_less_than_twice_the_size(tmp_path):
    """Blocks of eight pixels, each of a grey of its own: two of each block's pixels are left to resize."""
    blocks = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(np.kron(blocks, np.ones((8, 8), np.uint8))).save(tmp_path / "a.jpg", quality=95)
    found = decode(tmp_path / "a.jpg", Reading((1, 8, 8), "bicubic", 10**6))[0].astype(int)
    twice = Image.fromarray(np.kron(blocks, np.ones((2, 2), np.uint8))).resize((8, 8), Image.Resampling.BICUBIC)
    assert np.abs(found - np.asarray(twice)).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_of_a_picture_that_lies_on_its_side_width_and_height_are_as_shown(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png", exif=exif)
    assert _check_file(tmp_path / "a.png", 10**6, whole=False)[:2] == ((2, 3) if orientation > 4 else (3, 2))


def test_a_limit_for_a_set_of_pictures_is_none_for_the_figures_of_a_run(tmp_path, monkeypatch):
    """Pillow's limit is one for the whole process."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", MOST_PIXELS)
    Image.new("L", (8, 8)).save(tmp_path / "small.png")
    Image.new("L", (40, 50)).save(tmp_path / "sheet.png")
    assert _check_file(tmp_path / "small.png", 64, whole=False)[:2] == (8, 8)
    with pytest.raises(UserError, match=r"sheet\.png: 40x50 pixels is more than data\.max_pixels=64"):
        _check_file(tmp_path / "sheet.png", 64, whole=False)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (40, 50)
