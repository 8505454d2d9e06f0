"""Zips and stacks of images: the sets that the same files in a folder would be; one line for what cannot be read."""

import json
import shutil
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.images.test_folder import fill, load, picture
from toolkit.data.images import folder as folder_module
from toolkit.errors import UserError


def zipped(folder, path, method=zipfile.ZIP_STORED, inside=""):
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, inside + file.relative_to(folder).as_posix())
    return path


def parts(loaded):
    return {"train": loaded.train, "valid": loaded.valid, "test": loaded.test}


def same(one, other):
    """Same images, labels and identities in every split."""
    assert one.contents() == other.contents() and one.class_names == other.class_names
    for name, part in parts(one).items():
        (x, labels), (y, others) = part.all(), parts(other)[name].all()
        assert torch.equal(x, y) and (labels is None) == (others is None)
        assert labels is None or torch.equal(labels, others)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("few", [2**27, 0])
def test_a_zip_is_the_folder_that_it_was_made_of(tmp_path, monkeypatch, method, few):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folder_module, "FEW_PIXELS", few)
    root = fill(tmp_path / "set" / "train", number=9, size=(12, 10))
    fill(tmp_path / "set" / "val", number=2, size=(12, 10))
    (root / "notes.txt").write_text("not an image")
    for size_px in (None, 6):
        folder = load(tmp_path / "set", size_px=size_px)
        same(load(zipped(tmp_path / "set", tmp_path / "set.zip", method), size_px=size_px), folder)
    inside = zipped(tmp_path / "set", tmp_path / "inside.zip", method, "my photographs/")
    same(load(inside, size_px=6), folder)


def test_a_zip_of_the_dataset_tools_has_the_classes_of_its_dataset_json(tmp_path):
    for number in range(12):
        place = tmp_path / "set" / f"{number // 5:05d}" / f"img{number:08d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(place)
    pairs = [[f"{number // 5:05d}/img{number:08d}.png", number % 3] for number in range(12)]
    (tmp_path / "set" / "dataset.json").write_text(json.dumps({"labels": pairs}))
    loaded = load(zipped(tmp_path / "set", tmp_path / "set.zip"))
    assert loaded.class_names == ("0", "1", "2") and loaded.num_classes == 3
    for part in parts(loaded).values():
        for values, label in zip(part.values.numpy(), part.labels, strict=True):
            numbers = [n for n in range(12) if np.array_equal(np.moveaxis(values, 0, -1), np.asarray(picture(n)))]
            assert [number % 3 for number in numbers] == [label]
    same(loaded, load(tmp_path / "set"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../out.png", r"the member '\.\./out\.png' leads out of the archive"),
        ("/etc/out.png", r"leads out of the archive"),
        ("a//b.png", r"leads out of the archive"),
        ("a\\..\\b.png", r"leads out of the archive"),
        ("cat/0.png", r"the member 'cat/0\.png' is there twice"),
        ("cat", r"the member 'cat' is there twice"),
        ("cat/0.png/x.png", r"'cat/0\.png' is a file and a folder"),
    ],
)
def test_members_that_lead_out_or_hide_others_are_refused(tmp_path, name, said):
    path = zipped(fill(tmp_path / "set"), tmp_path / "set.zip")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns() if name == "cat/0.png" else _nothing():
        archive.writestr(name, b"x")
    with pytest.raises(UserError, match=rf"set\.zip: .*{said}"):
        load(path)


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def patched(path, member, offset, content):
    """Overwrite bytes of a member's entry in the directory at the end of a zip."""
    whole = bytearray(path.read_bytes())
    place = whole.rindex(b"PK\x01\x02", 0, whole.rindex(member.encode()))
    whole[place + offset : place + offset + len(content)] = content
    path.write_bytes(whole)


def test_a_member_that_is_not_what_the_directory_says_is_named(tmp_path):
    root = fill(tmp_path / "set")
    true_size = (root / "dog" / "3.png").stat().st_size
    for size, said in (
        (true_size - 9, "CRC|size"),
        (true_size + 9, "size|EOF|End"),
        (2**31, r"says that it holds 2\.0 GiB"),
    ):
        path = zipped(root, tmp_path / "set.zip", zipfile.ZIP_DEFLATED)
        patched(path, "dog/3.png", 24, struct.pack("<I", size))
        with pytest.raises(UserError, match=rf"dog/3\.png.*({said})"):
            load(path)
    path = zipped(root, tmp_path / "set.zip")
    patched(path, "dog/3.png", 8, b"\1\0")
    with pytest.raises(UserError, match=r"the member 'dog/3\.png' is encrypted"):
        load(path)
    path = zipped(root, tmp_path / "set.zip")
    whole = bytearray(path.read_bytes())
    whole[whole.index((root / "cat" / "1.png").read_bytes()) + 50] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"set\.zip/cat/1\.png: not a readable image \(Bad CRC-32"):
        load(path)
    assert len(load(path, skip_bad=True).train) > 5
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"set\.zip: not a zip file"):
        load(path)


# -- stacks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures():
    """uint8 (20, 9, 7, 3), and classes."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (20, 9, 7, 3), dtype=np.uint8), random.permutation(np.repeat([3, 5], 10))


@pytest.mark.parametrize("few", [2**27, 0])
def test_a_stack_of_adm_is_read_with_its_classes(tmp_path, monkeypatch, pictures, few):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folder_module, "FEW_PIXELS", few)
    pixels, labels = pictures
    np.savez(tmp_path / "set.npz", pixels, labels)
    loaded = load(tmp_path / "set.npz")
    assert loaded.class_names == ("3", "5") and loaded.shape == (3, 9, 7)
    known = {pixels[row].tobytes(): int(labels[row]) for row in range(20)}
    seen = []
    for part in parts(loaded).values():
        x, given = part.all()
        for values, label in zip(((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy(), given, strict=True):
            assert known[np.ascontiguousarray(values).tobytes()] == int(loaded.class_names[label])
            seen.append(np.ascontiguousarray(values).tobytes())
    assert len(seen) == len(set(seen)) == 20
    assert not list((tmp_path / "cache").glob("pixels/*.npy"))
    assert load(tmp_path / "set.npz").contents() == loaded.contents()


def test_channels_first_grey_and_another_size(tmp_path, pictures):
    pixels, _ = pictures
    np.save(tmp_path / "last.npy", pixels)
    np.save(tmp_path / "first.npy", np.moveaxis(pixels, -1, 1))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(pixels))
    wanted = load(tmp_path / "last.npy")
    same(load(tmp_path / "first.npy"), wanted)
    same(load(tmp_path / "fortran.npy"), wanted)
    np.save(tmp_path / "grey.npy", pixels[..., 0])
    assert load(tmp_path / "grey.npy").shape == (1, 9, 7)
    assert load(tmp_path / "grey.npy", channels=3, size_px=4).shape == (3, 4, 4)
    (tmp_path / "files").mkdir()
    for row, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / "files" / f"{row:08d}.png")
    stack, files = (
        load(tmp_path / "last.npy", size_px=4, resize="box"),
        load(tmp_path / "files", size_px=4, resize="box"),
    )
    both = [torch.cat([part.values for part in parts(one).values()]).unique(dim=0) for one in (stack, files)]
    assert torch.equal(*both)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": np.zeros((9, 8, 8, 3), np.float32)}, r"must hold one uint8 array .*; has a float32 \(9, 8, 8, 3\)"),
        ({"a": np.zeros((9, 8, 8, 4), np.uint8)}, r"a is \(9, 8, 8, 4\); images have 1 channel or 3"),
        ({"a": np.zeros((9, 8, 8, 3), np.uint8), "b": np.zeros((9, 8, 8, 3), np.uint8)}, "must hold one uint8 array"),
        ({"a": np.zeros((9, 8, 8, 3), np.uint8), "y": np.zeros(8, np.int64)}, "only classes are read, 9 whole numbers"),
        ({"a": np.zeros((9, 8, 8, 3), np.uint8), "y": np.zeros(9)}, "only classes are read, 9 whole numbers"),
        ({"a": np.zeros((9, 8, 8, 3), np.uint8), "y": np.zeros(9, int)}, r"one class only \(0\)"),
        ({"a": np.array([{}] * 9, dtype=object)}, "pickled objects, which are not read"),
    ],
)
def test_stacks_of_something_else_are_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(UserError, match=rf"set\.npz: {said}" if "has a" in said else said):
        load(tmp_path / "set.npz")


def test_compressed_cut_and_foreign_files_are_refused(tmp_path, pictures):
    np.savez_compressed(tmp_path / "set.npz", pictures[0])
    with pytest.raises(UserError, match=r"set\.npz: is compressed.*rewrite it with numpy\.savez"):
        load(tmp_path / "set.npz")
    np.save(tmp_path / "set.npy", pictures[0])
    shutil.copy(tmp_path / "set.npy", tmp_path / "cut.npy")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"cut\.npy: not an \.npy file"):
        load(tmp_path / "cut.npy")
    (tmp_path / "set.rar").write_bytes(b"")
    with pytest.raises(UserError, match=r"set\.rar: is a file, not a folder \(nor one of \.zip, \.npz, \.npy, "):
        load(tmp_path / "set.rar")
