"""Large folders: decoded once, read as pixels ever after; filters as the tools that name them; limits before memory."""

import shutil
import struct
import zlib
from collections import Counter, namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.images.test_folder import fill, load, picture
from toolkit import data
from toolkit.data.config import Data
from toolkit.data.images import folder as folder_module
from toolkit.data.images import store as store_module
from toolkit.data.images.decoding import to_array
from toolkit.data.sets import MemorySplit
from toolkit.errors import UserError


@pytest.fixture
def decoded(tmp_path, monkeypatch):
    """A cache of its own, no folder small, and how often each file is decoded."""
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folder_module, "FEW_PIXELS", 0)
    counts, decode = Counter(), store_module.decode

    def counted(path, reading):
        counts[path.name] += 1
        return decode(path, reading)

    monkeypatch.setattr(store_module, "decode", counted)
    monkeypatch.setattr(folder_module, "decode", counted)
    return counts


def splits(loaded):
    return loaded.train, loaded.valid, loaded.test


def maps(tmp_path):
    return sorted((tmp_path / "cache" / "pixels").glob("*.npy"))


def test_every_file_is_decoded_once_for_all_passes_and_later_loads(tmp_path, decoded, monkeypatch):
    fill(tmp_path / "set", size=(24, 20), number=9)
    before = load(tmp_path / "set", size_px=8)
    assert not decoded and before.contents() == load(tmp_path / "set", size_px=8).contents()
    before.prepare()
    for _ in range(3):
        passes = [part.all() for part in splits(before)]
    again = load(tmp_path / "set", size_px=8, class_labels=False, num_train=5)
    assert len(again.train.all()[0]) == 5
    assert sum(decoded.values()) == 18 and len(maps(tmp_path)) == 1
    monkeypatch.setattr(folder_module, "FEW_PIXELS", 2**27)
    small = load(tmp_path / "set", size_px=8)
    assert isinstance(small.train, MemorySplit)
    for part, (x, labels) in zip(splits(small), passes, strict=True):
        assert torch.equal(part.all()[0], x) and torch.equal(part.all()[1], labels)


def test_a_few_images_do_not_wait_for_all(tmp_path, decoded):
    fill(tmp_path / "set", size=(24, 20), number=9)
    few = load(tmp_path / "set", size_px=8).train.all(3)[0]
    assert sum(decoded.values()) == 3 and not maps(tmp_path)
    loaded = load(tmp_path / "set", size_px=8)
    loaded.prepare()
    assert torch.equal(loaded.train.all(3)[0], few) and sum(decoded.values()) == 3 + 18


def test_another_picture_size_or_filter_is_another_map_and_takes_the_place_of_the_older(tmp_path, decoded):
    root = fill(tmp_path / "set", size=(24, 20), number=9)
    load(root, size_px=8).prepare()
    [first] = maps(tmp_path)
    for changes in ({"size_px": 6}, {"size_px": 8, "resize": "box"}):
        load(root, **changes).prepare()
    assert len(maps(tmp_path)) == 3
    picture(5, size=(24, 20)).save(root / "cat" / "0.png")
    changed = load(root, size_px=8)
    changed.prepare()
    assert len(maps(tmp_path)) == 3 and first not in maps(tmp_path)
    assert np.array_equal(changed.train.store.pixels()[0], to_array(picture(5, size=(24, 20)), 3, 8))
    shutil.move(root, tmp_path / "elsewhere")
    decoded.clear()
    load(tmp_path / "elsewhere", size_px=8).prepare()
    assert not decoded


def test_without_the_cache_what_fits_is_kept_in_memory_and_the_rest_decoded_again(tmp_path, decoded, monkeypatch):
    fill(tmp_path / "set", number=9)
    loaded = load(tmp_path / "set", cache=False)
    first, second = loaded.train.all()[0], loaded.train.all()[0]
    assert sum(decoded.values()) == 18 and not maps(tmp_path) and torch.equal(first, second)
    monkeypatch.setattr(folder_module, "IN_MEMORY_BYTES", 18 * 192 - 1)
    loaded = load(tmp_path / "set", cache=False)
    decoded.clear()
    assert torch.equal(loaded.train.all()[0], first) and torch.equal(loaded.train.all()[0], first)
    assert sum(decoded.values()) == 2 * len(loaded.train) and not maps(tmp_path)
    monkeypatch.setattr(folder_module, "FEW_PIXELS", 2**27)  # small files, a large target
    assert not isinstance(load(tmp_path / "set").train, MemorySplit)


def test_a_disk_that_is_too_small_is_said_before_any_work(tmp_path, decoded, monkeypatch):
    loaded = load(fill(tmp_path / "set", number=9))
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: usage(18 * 192 - 1))
    with pytest.raises(UserError, match=r"\d+\.\d KiB are needed for 18 decoded images.*set data\.cache=false"):
        loaded.prepare()
    assert not decoded
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: usage(18 * 192))
    loaded.prepare()
    [path] = maps(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"\.npy: damaged; delete it"):
        load(tmp_path / "set").prepare()


def test_all_files_whose_pixels_turn_out_bad_are_named_at_once(tmp_path, decoded):
    root = fill(tmp_path / "set", size=(64, 64), number=9)
    for name in ("cat/3.png", "dog/4.png"):
        content = bytearray((root / name).read_bytes())
        content[len(content) // 2] ^= 0xFF
        (root / name).write_bytes(content)
    with pytest.raises(UserError, match=r"2 of 18 files cannot be used .*cat/3\.png.*dog/4\.png"):
        load(root).prepare()
    assert not list((tmp_path / "cache" / "pixels").glob("*.npy")) and not list((tmp_path / "cache").glob("pixels/.*"))


# -- filters ---------------------------------------------------------------------------------------------------------


def by_edm(array, size):
    """``center-crop`` of the dataset tool of EDM, written out."""
    crop = np.min(array.shape[:2])
    top, left = (array.shape[0] - crop) // 2, (array.shape[1] - crop) // 2
    array = array[top : (array.shape[0] + crop) // 2, left : (array.shape[1] + crop) // 2]
    return np.array(Image.fromarray(array, "RGB").resize((size, size), Image.Resampling.LANCZOS))


def by_adm(array, size):
    """``center_crop_arr`` of guided-diffusion, written out."""
    image = Image.fromarray(array)
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.Resampling.BOX)
    scale = size / min(*image.size)
    image = image.resize(tuple(round(x * scale) for x in image.size), resample=Image.Resampling.BICUBIC)
    array = np.array(image)
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


def by_means(array, size):
    """The mean of the pixels under each new one; for edges that are multiples."""
    crop = np.min(array.shape[:2])
    top, left = (array.shape[0] - crop) // 2, (array.shape[1] - crop) // 2
    square = array[top : top + crop, left : left + crop].astype(np.float64)
    return square.reshape(size, crop // size, size, crop // size, 3).mean((1, 3))


@pytest.mark.parametrize(
    ("name", "reference", "shape", "size"),
    [
        ("lanczos", by_edm, (90, 131), 24),
        ("lanczos", by_edm, (20, 15), 24),
        ("adm", by_adm, (131, 90), 20),
        ("adm", by_adm, (200, 97), 24),
        ("adm", by_adm, (20, 15), 24),
        ("box", by_means, (64, 71), 16),
    ],
)
def test_a_filter_is_that_of_the_tool_it_is_named_for(name, reference, shape, size):
    array = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = np.moveaxis(to_array(Image.fromarray(array), 3, size, name), 0, -1)
    assert found.shape == (size, size, 3)
    assert np.abs(found.astype(float) - reference(array, size)).max() <= 1
    assert np.abs(found.astype(float) - np.moveaxis(to_array(Image.fromarray(array), 3, size), 0, -1)).max() > 2


def test_the_filter_reaches_the_pixels_and_the_identity(tmp_path):
    root = fill(tmp_path / "set", size=(40, 31), number=9)
    array = np.asarray(Image.open(root / "cat" / "0.png"))
    loaded = load(root, size_px=8, resize="adm")
    values = ((loaded.train.batch([0])[0] + 1) * 127.5).round().byte().numpy()[0]
    assert any(np.array_equal(values, np.moveaxis(by_adm(np.asarray(Image.open(file)), 8), -1, 0))
               for file in (root / "cat").iterdir())  # fmt: skip
    assert array.shape == (31, 40, 3)
    assert loaded.contents()["train"]["identity"] != load(root, size_px=8).contents()["train"]["identity"]


def test_a_filter_is_refused_where_there_is_nothing_to_choose():
    with pytest.raises(UserError, match=r"data\.resize=lanczos: for images in a folder; data\.name=digits has bicubic"):
        data.load(Data(name="digits", resize="lanczos"))


# -- limits and messages ---------------------------------------------------------------------------------------------


def test_an_image_with_too_many_pixels_is_refused_unread(tmp_path):
    fill(tmp_path / "set", number=4)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    def bomb(width, height):
        rows = zlib.compress(bytes(1000))  # far too few, so that decoding would fail
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
        (tmp_path / "set" / "cat" / "bomb.png").write_bytes(png)

    for width in (15_000, 100_000):  # Pillow would warn, and refuse
        bomb(width, 15_000)
        with pytest.raises(UserError, match=r"bomb\.png: .* more than data\.max_pixels=178956970"):
            load(tmp_path / "set", size_px=8)
    bomb(15_000, 15_000)
    assert len(load(tmp_path / "set", size_px=8, max_pixels=400_000_000).train) > 1
    with pytest.raises(UserError, match=r"0\.png: 8x8 pixels is more than data\.max_pixels=63"):
        load(fill(tmp_path / "other"), max_pixels=63)


def test_messages_say_what_to_do(tmp_path):
    (tmp_path / "one").mkdir()
    picture(0).save(tmp_path / "one" / "0.png")
    with pytest.raises(UserError, match=r"one: 1 images are too few to train on and to hold out for .*; add"):
        load(tmp_path / "one")
    fill(tmp_path / "lacking" / "train", ("cat", "dog", "eel"))
    fill(tmp_path / "lacking" / "val", ("cat",))
    with pytest.raises(UserError, match=r"val: .*it lacks the class dog, eel \(train has cat, dog, eel\); give it"):
        load(tmp_path / "lacking")
    fill(tmp_path / "flat" / "train")
    (tmp_path / "flat" / "val").mkdir()
    picture(0).save(tmp_path / "flat" / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(UserError, match=r"val: its images are not in a folder for each class .*valprep\.sh"):
        load(tmp_path / "flat")


def test_classes_are_known_to_measures_where_networks_do_not_see_them(tmp_path, caplog):
    caplog.set_level("INFO")
    root = fill(tmp_path / "set", number=9)
    blind, seeing = load(root, class_labels=False), load(root)
    assert blind.num_classes == 0 and blind.class_names == ("cat", "dog") and blind.train.batch([0])[1] is None
    for part in splits(blind):
        pictures = {values.tobytes(): label for values, label in zip(part.values.numpy(), part.labels, strict=True)}
        for other in splits(seeing):
            for values, label in zip(other.values.numpy(), other.labels, strict=True):
                assert pictures.get(values.tobytes(), label) == label
    shutil.move(root / "dog", tmp_path / "dog")
    lone = load(root, class_labels=False)
    assert lone.train.labels is None and "classes are not known either" in caplog.text
    assert "one class folder only" in caplog.text


def test_knowing_the_classes_changes_neither_the_split_nor_its_identity(tmp_path, monkeypatch):
    fill(tmp_path / "classed", number=9)
    (tmp_path / "plain").mkdir()
    shutil.copytree(tmp_path / "classed", tmp_path / "plain" / "all")
    for few in (2**27, 0):
        monkeypatch.setattr(folder_module, "FEW_PIXELS", few)
        known = load(tmp_path / "classed", class_labels=False)
        monkeypatch.setattr(folder_module, "_find", lambda root, given: folder_module.find_splits(root, given))
        unknown = load(tmp_path / "classed", class_labels=False)
        monkeypatch.undo()
        assert unknown.train.labels is None and known.train.labels is not None
        assert known.contents() == unknown.contents()
