import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from toolkit.errors import UserError
from toolkit.measure.images import ImageSet


def pictures(num=5, height=6, width=4):
    return np.random.RandomState(1).randint(0, 256, (num, height, width, 3)).astype(np.uint8)


def write_folder(folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03}.png")
    return folder


def all_of(source, size=2):
    return torch.cat(list(ImageSet(source).batches(size)))


def test_folder_zip_and_array_hold_the_same_images(tmp_path):
    images = pictures()
    folder = write_folder(tmp_path / "folder", images)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(folder.iterdir(), reverse=True):
            archive.write(path, f"00000/{path.name}")
        archive.writestr("dataset.json", "{}")
    np.savez(tmp_path / "stored.npz", images)
    np.savez_compressed(tmp_path / "packed.npz", arr_0=images, arr_1=np.arange(5))
    expected = torch.from_numpy(images).permute(0, 3, 1, 2)
    for name in ("folder", "set.zip", "stored.npz", "packed.npz"):
        assert torch.equal(all_of(tmp_path / name), expected), name
        assert len(ImageSet(tmp_path / name)) == 5


def test_grey_is_repeated(tmp_path):
    for name in "ab":
        Image.fromarray(np.full((4, 4), 7, np.uint8)).save(tmp_path / f"{name}.png")
    assert torch.equal(all_of(tmp_path), torch.full((2, 3, 4, 4), 7, dtype=torch.uint8))


def test_every_suffix_that_training_reads_counts_and_others_are_said(tmp_path, caplog):
    images = pictures(6)
    for suffix in ("png", "gif", "tga", "jpe", "jfif", "ppm"):
        Image.fromarray(images[0]).save(tmp_path / f"a.{suffix}")
    (tmp_path / "b.raw").write_bytes(b"x")
    found = ImageSet(tmp_path)
    assert [path.suffix for path in found.files] == [".gif", ".jfif", ".jpe", ".png", ".ppm", ".tga"]
    assert torch.cat(list(found.batches(4))).shape == (6, 3, 6, 4)
    assert "passed over, not read as images: 1 .raw" in caplog.text


def test_pictures_are_decoded_as_training_decodes_them(tmp_path):
    """Sixteen bits brought to eight, turned as a camera says."""
    deep = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    turned = Image.fromarray(pictures(1, height=6, width=4)[0])
    exif = turned.getexif()
    exif[0x0112] = 6  # turned by a quarter
    turned.save(tmp_path / "turned.png", exif=exif)
    found = all_of(tmp_path)
    assert torch.equal(found[0, 0], torch.from_numpy((deep // 257).astype(np.uint8)))
    assert torch.equal(found[1], torch.from_numpy(np.array(turned)).rot90(-1, (0, 1)).permute(2, 0, 1))


def refuse(source, match):
    with pytest.raises(UserError, match=match):
        all_of(source)


def test_what_cannot_be_measured_is_named(tmp_path):
    refuse(tmp_path / "none", "none: expected a folder or .zip of images, or an .npz")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "empty: no images found")
    folder = write_folder(tmp_path / "sizes", pictures())
    Image.fromarray(pictures(height=9)[0]).save(folder / "004.png")
    refuse(folder, r"004\.png: is 4x9 where .*000\.png is 4x6; expected one size")
    folder = write_folder(tmp_path / "damaged", pictures())
    (folder / "002.png").write_bytes((folder / "002.png").read_bytes()[:60])
    refuse(folder, r"002\.png: not a readable image")
    folder = write_folder(tmp_path / "alpha", pictures())
    Image.fromarray(np.zeros((6, 4, 4), np.uint8)).save(folder / "001.png")
    refuse(folder, r"001\.png: mode RGBA; expected pictures without transparency")


def test_all_bad_images_are_named_before_the_first_is_measured(tmp_path):
    folder = write_folder(tmp_path / "set", pictures(6))
    Image.fromarray(np.zeros((6, 4, 4), np.uint8)).save(folder / "004.png")
    (folder / "005.png").write_bytes((folder / "005.png").read_bytes()[:60])
    with pytest.raises(
        UserError, match=r"^2 of 6 images cannot be measured: .*004\.png: mode RGBA.*, .*005\.png: not a"
    ):
        ImageSet(folder)
    assert len(ImageSet(folder, most=4)) == 4  # those that are asked for are whole
    with pytest.raises(UserError, match=r"set: 1 image; expected two or more"):
        ImageSet(folder, most=1)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 5_000, 5_000, 8, 2, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    (tmp_path / "bomb.png").write_bytes(png)
    refuse(tmp_path, r"bomb\.png: 5000x5000; expected at most 4096")


def test_arrays_of_other_kinds_and_damaged_ones_are_named(tmp_path):
    np.savez(tmp_path / "float.npz", np.zeros((2, 4, 4, 3)))
    refuse(tmp_path / "float.npz", r"holds float64 \(2, 4, 4, 3\); expected uint8 of shape \(n, height, width, 3\)")
    np.savez(tmp_path / "object.npz", np.array([{}, {}], dtype=object))
    refuse(tmp_path / "object.npz", r"holds object \(2,\)")
    np.savez(tmp_path / "named.npz", a=pictures(), b=pictures())
    refuse(tmp_path / "named.npz", r"holds a\.npy, b\.npy; expected samples under arr_0")
    (tmp_path / "text.npz").write_text("text")
    refuse(tmp_path / "text.npz", r"text\.npz: not an \.npz of arrays")
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 64, 64, 3)})
    with zipfile.ZipFile(tmp_path / "lying.npz", "w") as archive:
        archive.writestr("arr_0.npy", data.getvalue() + bytes(64 * 64 * 3))
    refuse(tmp_path / "lying.npz", r"lying\.npz: cut short after 1 of 1000000000")
