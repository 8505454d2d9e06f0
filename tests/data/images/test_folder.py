"""Folders of images: what is read, and one clear line for each kind of bad input."""

import os
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from toolkit import data
from toolkit.data.config import Data
from toolkit.data.images import folder as folder_module
from toolkit.data.images import images as images_module
from toolkit.data.images.decoding import Reading, decode, to_array
from toolkit.data.images.folder import FolderSplit
from toolkit.data.sets import MemorySplit
from toolkit.errors import UserError


def picture(seed: int, size=(8, 8), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def fill(root, classes=("cat", "dog"), number=6, **options):
    for index, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for one in range(number):
            picture(100 * index + one, **options).save(root / name / f"{one}.png")
    return root


def load(path, **options):
    return data.load(Data(name="folder", path=str(path), **options))


def test_class_folders_give_labels_and_fixed_splits(tmp_path):
    loaded = load(fill(tmp_path, number=10))
    assert loaded.class_names == ("cat", "dog") and loaded.num_classes == 2 and loaded.shape == (3, 8, 8)
    sizes = [len(loaded.train), len(loaded.valid), len(loaded.test)]
    assert sum(sizes) == 20 and sizes[0] >= 12
    assert set(loaded.test.labels) == set(loaded.valid.labels) == {0, 1}
    x, labels = loaded.train.batch([0, sizes[0] - 1])
    assert x.shape == (2, 3, 8, 8) and x.min() >= -1 and x.max() <= 1 and labels.tolist() == [0, 1]


def test_what_is_held_out_stays_so_when_images_come_and_go(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "FEW_PIXELS", 0)
    fill(tmp_path, number=40)

    def sides():
        loaded = load(tmp_path)
        parts = {"train": loaded.train, "valid": loaded.valid, "test": loaded.test}
        return {file.relative_to(tmp_path): name for name, part in parts.items() for file in part.files}

    before = sides()
    for number in range(40, 60):
        picture(number).save(tmp_path / "cat" / f"{number}.png")
    (tmp_path / "cat" / "3.png").unlink()
    (tmp_path / "dog" / "0.png").unlink()
    after = sides()
    assert len(after) == 98 and set(after.values()) == {"train", "valid", "test"}
    assert all(after[name] == side for name, side in before.items() if name in after)


def test_a_folder_is_the_same_wherever_it_lies_and_another_when_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "FEW_PIXELS", 0)
    fill(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    here, there = (load(tmp_path / name).contents() for name in ("here", "there"))
    assert here == there and here["train"]["items"] + here["valid"]["items"] + here["test"]["items"] == 12
    picture(0, size=(8, 8), mode="L").save(tmp_path / "there" / "cat" / "0.png")
    assert load(tmp_path / "there").contents() != here


def test_lazy_and_in_memory_reads_agree(tmp_path, monkeypatch):
    fill(tmp_path, size=(20, 12))
    small = load(tmp_path, size_px=8)
    monkeypatch.setattr(folder_module, "FEW_PIXELS", 0)
    large = load(tmp_path, size_px=8)
    assert isinstance(small.train, MemorySplit) and isinstance(large.train, FolderSplit)
    assert torch.equal(small.train.all()[0], large.train.all()[0])
    assert np.array_equal(small.train.labels, large.train.labels)
    streams = [list(zip(data.batches(large.train, 4, 0, num_workers=n), range(3), strict=False)) for n in (0, 2)]
    assert all(torch.equal(a[0][0], b[0][0]) for a, b in zip(*streams, strict=True))


def test_images_without_classes_have_no_labels(tmp_path):
    for one in range(5):
        picture(one).save(tmp_path / f"{one}.png")
    (tmp_path / "notes.txt").write_text("ignored")
    loaded = load(tmp_path)
    assert loaded.num_classes == 0 and loaded.train.labels is None and loaded.train.batch([0])[1] is None
    deep = load(fill(tmp_path / "deep"), class_labels=False)
    assert deep.num_classes == 0 and deep.train.batch([0])[1] is None


def test_train_and_val_folders_are_kept_apart(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "val", number=3)
    loaded = load(tmp_path)
    assert len(loaded.test) == 6 and len(loaded.train) + len(loaded.valid) == 12
    fill(tmp_path / "test", number=1)
    loaded = load(tmp_path)
    assert [len(loaded.train), len(loaded.valid), len(loaded.test)] == [12, 6, 2]
    fill(tmp_path / "test", classes=("bird",), number=1)
    with pytest.raises(UserError, match=r"test: the classes are not those of train: it has bird besides \(train has"):
        load(tmp_path)


def test_grey_palette_alpha_and_16_bit(tmp_path):
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert (to_array(clear, 3) == 255).all()  # transparent is white
    palette = picture(0, mode="P")
    assert np.array_equal(to_array(palette, 3), np.moveaxis(np.asarray(palette.convert("RGB")), -1, 0))
    deep = Image.fromarray(np.array([[0, 65535], [257, 514]], np.uint16))
    assert to_array(deep, 1).tolist() == [[[0, 255], [1, 2]]]
    assert load(fill(tmp_path / "grey", mode="L")).shape == (1, 8, 8)
    assert load(tmp_path / "grey", channels=3).shape == (3, 8, 8)


def test_exif_orientation_turns_the_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for one in range(4):
        Image.new("RGB", (16, 8), "red").save(tmp_path / f"{one}.jpg", exif=exif)
    assert load(tmp_path).shape == (3, 16, 8)


def test_resize_crops_the_centre(tmp_path):
    wide = Image.new("RGB", (30, 10), "black")
    wide.paste("white", (10, 0, 20, 10))
    wide.save(tmp_path / "wide.png")
    assert (decode(tmp_path / "wide.png", Reading((3, 5, 5), "bicubic", 10**6)) == 255).all()


def test_mixed_sizes_need_a_size(tmp_path):
    picture(0, size=(9, 8)).save(fill(tmp_path) / "dog" / "wide.png")
    with pytest.raises(UserError, match=r"differ in size \(.*0.png is 8x8, .*wide.png is 9x8\); set data.size_px"):
        load(tmp_path)
    assert load(tmp_path, size_px=4).shape == (3, 4, 4)


@pytest.mark.parametrize("lazily", [False, True])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_file_is_named(tmp_path, monkeypatch, lazily, suffix):
    bad = fill(tmp_path, size=(64, 64)) / "cat" / f"bad.{suffix}"
    picture(7, size=(64, 64)).save(bad)
    bad.write_bytes(bad.read_bytes()[:-700])
    if lazily:
        monkeypatch.setattr(folder_module, "FEW_PIXELS", 0)
    with pytest.raises(UserError, match=rf"bad.{suffix}: not a readable image \(.*truncated"):
        load(tmp_path)


def test_files_that_are_no_images_are_named(tmp_path):
    bad = fill(tmp_path) / "cat" / "bad.png"
    for content in (b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40):
        bad.write_bytes(content)
        with pytest.raises(UserError, match=r"bad.png: not a readable image"):
            load(tmp_path)


def test_a_pipe_among_the_pictures_is_not_waited_for(tmp_path):
    os.mkfifo(fill(tmp_path) / "cat" / "pipe.png")
    assert sum(len(split) for split in (load(tmp_path).train, load(tmp_path).valid, load(tmp_path).test)) == 12


def test_what_of_a_file_is_not_obeyed_is_said(tmp_path, caplog):
    fill(tmp_path)
    picture(1).save(tmp_path / "cat/film.gif", save_all=True, append_images=[picture(2)])
    picture(1).save(tmp_path / "cat/wide.png", icc_profile=b"\0" * 128 + b"desc Display P3")
    picture(1).save(tmp_path / "cat/usual.png", icc_profile=b"\0" * 128 + b"desc sRGB IEC61966-2.1")
    load(tmp_path)
    assert "1 of 15 files hold several pictures" in caplog.text and "film.gif" in caplog.text
    assert "1 of 15 files have a colour profile other than sRGB" in caplog.text and "wide.png" in caplog.text


@pytest.mark.parametrize("values", [np.full((8, 8), 70_000, np.int32), np.full((8, 8), 0.5, np.float32)])
def test_pixels_without_a_fixed_range_are_refused_and_left_out_where_asked(tmp_path, values):
    Image.fromarray(values).save(fill(tmp_path) / "cat" / "deep.tif")
    with pytest.raises(UserError, match=r"deep\.tif: not a readable image .*no fixed range"):
        load(tmp_path)
    assert load(tmp_path, skip_bad=True).class_names == ("cat", "dog")


def test_postscript_of_any_name_is_no_image_and_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)  # Pillow would give it to Ghostscript
    bad, text = fill(tmp_path) / "cat" / "bad.png", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    bad.write_text(text)
    with pytest.raises(UserError, match=r"bad.png: not a readable image \(its content is of no known image format"):
        load(tmp_path)


def test_a_flipped_byte_is_found_before_training(tmp_path):
    bad = fill(tmp_path, size=(64, 64)) / "cat" / "0.png"
    content = bytearray(bad.read_bytes())
    content[len(content) // 2] ^= 0xFF
    bad.write_bytes(content)
    with pytest.raises(UserError, match=r"0.png: not a readable image"):
        load(tmp_path)


def test_held_out_pictures_that_are_trained_on_are_counted(tmp_path, caplog):
    fill(tmp_path / "train", number=4)
    fill(tmp_path / "test", number=2)
    picture(77).save(tmp_path / "test" / "cat" / "0.png")
    picture(78).save(fill(tmp_path / "val", number=1) / "cat" / "0.png")
    load(tmp_path)
    assert f"{tmp_path}: 3 of 4 pictures of test are in train too" in caplog.text
    assert f"{tmp_path}: 1 of 2 pictures of valid are in train too" in caplog.text


def test_class_folders_called_by_numbers_say_which_class_is_which(tmp_path, caplog):
    loaded = load(fill(tmp_path, classes=("9", "10", "1")))
    assert loaded.class_names == ("1", "10", "9")
    assert "class 1 is 10, not 9; names of one length" in caplog.text
    caplog.clear()
    load(fill(tmp_path / "padded", classes=("09", "10", "01")))
    assert "as text" not in caplog.text


def test_empty_folders_one_class_and_stray_images(tmp_path):
    with pytest.raises(UserError, match="no images found"):
        load(tmp_path)
    fill(tmp_path, classes=("cat",))
    with pytest.raises(UserError, match=r"one class folder only \(cat\).*data.class_labels=false"):
        load(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match=r"dog: no images found"):
        load(tmp_path)
    fill(tmp_path)
    picture(0).save(tmp_path / "stray.png")
    with pytest.raises(UserError, match=r"images \(stray.png\) beside class folders"):
        load(tmp_path)


def test_too_few_images(tmp_path):
    picture(0).save(tmp_path / "only.png")
    with pytest.raises(UserError, match="too few"):
        load(tmp_path)


def test_the_check_of_a_large_folder_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(images_module, "REMEMBER_ABOVE", 5)
    fill(tmp_path / "set")
    first = load(tmp_path / "set")
    monkeypatch.setattr(images_module, "_check_all", None)  # would fail if the files were read again
    assert torch.equal(first.train.all()[0], load(tmp_path / "set").train.all()[0])


def test_imagenet_by_folder_and_by_batches(tmp_path):
    loaded = data.load(Data(name="imagenet128", path=str(fill(tmp_path / "folder", number=4, size=(150, 140)))))
    assert loaded.shape == (3, 128, 128)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (12, 3 * 64 * 64), dtype=np.uint8)
    root = tmp_path / "batches"
    root.mkdir()
    for number, part in enumerate(np.split(pixels, 2), start=1):
        np.savez(root / f"train_data_batch_{number}.npz", data=part, labels=[1, 2, 3, 1, 2, 3])
    np.savez(root / "val_data.npz", data=pixels[:3], labels=[1, 2, 3])
    loaded = data.load(Data(name="imagenet64", path=str(root)))
    x, labels = loaded.test.all()
    assert loaded.num_classes == 3 and labels.tolist() == [0, 1, 2]
    assert np.array_equal(((x + 1) * 127.5).round().numpy().reshape(3, -1), pixels[:3])
    train = {row.tobytes() for row in ((loaded.train.all()[0] + 1) * 127.5).round().byte().numpy()}
    assert train < {row.tobytes() for row in pixels} and len(loaded.train) + len(loaded.valid) == 12
    np.savez_compressed(root / "val_data.npz", data=pixels[:3], labels=[1, 2, 3])
    with pytest.raises(UserError, match=r"val_data.npz: is compressed"):
        data.load(Data(name="imagenet64", path=str(root)))


def png_of_16_bit_colour(values: np.ndarray) -> bytes:
    """(H, W, 3) uint16 as a PNG, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = chunk(b"IHDR", header), chunk(b"sBIT", b"\x0c\x0c\x0c"), chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["png", "tif", "colour"])
@pytest.mark.parametrize("bits", [12, 14, 16])
def test_12_bit_content_in_16_bit_files_is_refused_instead_of_nearly_black(tmp_path, kind, bits):
    for one in range(6):
        values = np.random.default_rng(one).integers(0, 2**bits, (8, 8, 3)).astype(np.uint16)
        if kind == "colour":
            (tmp_path / f"{one}.png").write_bytes(png_of_16_bit_colour(values))
        else:
            Image.fromarray(values[..., 0]).save(tmp_path / f"{one}.{kind}")
    if bits == 16:
        assert load(tmp_path).train.all()[0].max() > 0.9
        return
    with pytest.raises(UserError, match="16-bit pictures use at most 14 of their bits"):
        load(tmp_path)


def batches_of_imagenet(root):
    root.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3 * 64 * 64), dtype=np.uint8)
    for name in ("train_data_batch_1", "val_data"):
        np.savez(root / f"{name}.npz", data=pixels, labels=[1, 2, 3, 1, 2, 3])
    return root


def test_any_damage_of_an_imagenet_batch_is_one_line(tmp_path):
    """Bytes of the archive's and the arrays' headers changed, cut and doubled; pixels may be any."""
    root = batches_of_imagenet(tmp_path / "batches")
    batch = root / "train_data_batch_1.npz"
    content, random = batch.read_bytes(), np.random.default_rng(1)
    headers = [*range(200), *range(len(content) - 700, len(content))]
    refused = 0
    for _ in range(600):
        damaged = bytearray(content)
        for place in random.choice(headers, random.integers(1, 4)):
            damaged[place] = random.integers(256)
        if random.random() < 0.2:
            del damaged[random.integers(len(damaged)) :]
        batch.write_bytes(damaged)
        try:
            data.load(Data(name="imagenet64", path=str(root)))
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 300


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"labels": [1, 2, 3]}, "'labels' are not 6 whole numbers"),
        ({"labels": [0, 1, 2, 3, 4, 5]}, "'labels' are not"),
        ({"labels": [1.5] * 6}, "'labels' are not"),
        ({"data": np.zeros((6, 3 * 64 * 64), np.float32)}, "'data' is float32"),
        ({"data": np.zeros((6, 12), np.uint8)}, r"'data' is uint8 of shape \(6, 12\)"),
        ({"data": np.zeros((0, 3 * 64 * 64), np.uint8)}, "not an .npz file with an array called data"),
    ],
)
def test_imagenet_batches_of_other_arrays_are_refused(tmp_path, arrays, said):
    root = batches_of_imagenet(tmp_path / "batches")
    good = {"data": np.zeros((6, 3 * 64 * 64), np.uint8), "labels": [1, 2, 3, 1, 2, 3]}
    np.savez(root / "val_data.npz", **(good | arrays))
    with pytest.raises(UserError, match=f"val_data.npz: {said}"):
        data.load(Data(name="imagenet64", path=str(root)))


def test_all_bad_files_are_named_at_once_and_left_out_where_asked(tmp_path, caplog):
    fill(tmp_path, number=12, size=(64, 64))
    broken = tmp_path / "cat" / "3.png"
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 255  # its header and its end are right: only decoding it tells
    broken.write_bytes(content)
    for name in ("cat/x.png", "dog/y.jpg"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"2 of 26 files cannot be used \(data.skip_bad=true .*x.png: .*y.jpg: "):
        load(tmp_path)
    loaded = load(tmp_path, skip_bad=True)
    assert len(loaded.train) + len(loaded.valid) + len(loaded.test) == 23 and loaded.class_names == ("cat", "dog")
    assert "left out 3 of 26 files that are not readable images: " in caplog.text
    assert all(name in caplog.text for name in ("cat/3.png", "cat/x.png", "dog/y.jpg"))
