"""Drawn faces: the same bytes every time, labels and colours as drawn, no picture in two splits."""

import hashlib
import io
import sys

import numpy as np
import pytest
from PIL import Image

from toolkit import data
from toolkit.data import downloads
from toolkit.data.config import Data
from toolkit.data.images import drawn_faces
from toolkit.data.images.drawn_faces import ATTRIBUTES, COLOURS, FILE, attributes, draw
from toolkit.data.sources import Download
from toolkit.errors import UserError

HAIR = {"short": "SHORT_FLAT", "mohawk": "MOHAWK", "bun": "BUN", "mullet": "SHAGGY_MULLET"}
HAIR |= {"bob": "MIA_WALLACE", "long": "STRAIGHT_STRAND", "wavy": "LOOSE_HAIR", "curly": "CURLY"}

SMALLER = ATTRIBUTES | {"glasses": ("none",), "mouth": ("closed",)}


@pytest.fixture(scope="module")
def packages():
    reason = "the extra faces is not installed"
    return pytest.importorskip("python_avatars", reason=reason), pytest.importorskip("resvg_py", reason=reason)


@pytest.fixture(scope="module")
def content(packages, tmp_path_factory):
    """The file of a smaller set: one mouth, no glasses, the 8 styles in all colours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn_faces, "ATTRIBUTES", SMALLER)
        return (draw(tmp_path_factory.mktemp("drawn")) / FILE).read_bytes()


@pytest.fixture
def few(content, monkeypatch, tmp_path):
    """The smaller set as it loads, and its pictures in order."""
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(drawn_faces, "ATTRIBUTES", SMALLER)
    pin, source = {FILE: hashlib.sha256(content).hexdigest()}, downloads.DOWNLOADS["drawn_faces"].sources
    monkeypatch.setitem(downloads.DOWNLOADS, "drawn_faces", Download(pin, "MIT", "drawn", source))
    return data.load(Data(name="drawn_faces")), np.load(io.BytesIO(content))


def drawn_directly(packages, style, hair, skin, shirt):
    """float64 (32, 32, 3), 0 to 255: the face in these colours, by the packages alone."""
    parts, resvg = packages
    face = parts.Avatar(
        style=parts.AvatarStyle.TRANSPARENT, top=parts.HairType[HAIR[style]], mouth=parts.MouthType.SERIOUS,
        eyes=parts.EyeType.DEFAULT, eyebrows=parts.EyebrowType.DEFAULT, clothing=parts.ClothingType.SHIRT_CREW_NECK,
        hair_color=f"#{hair}", skin_color=f"#{skin}", clothing_color=f"#{shirt}",
    )  # fmt: skip
    svg = face.render().replace("0 0 264 280", "23 6 218 218").replace("264px", "128px").replace("280px", "128px")
    png = resvg.svg_to_bytes(svg_string=svg, background="#FFFFFF", width=128, skip_system_fonts=True)
    image = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"), np.float64)
    return image.reshape(32, 4, 32, 4, 3).mean((1, 3))


def test_labels_and_attributes_are_those_that_are_drawn(few, packages):
    loaded, pictures = few
    for label, name in enumerate(loaded.class_names):
        first = loaded.test.values[list(loaded.test.labels).index(label)].numpy().transpose(1, 2, 0)
        [row] = np.flatnonzero((pictures == first).all((1, 2, 3)))
        values = dict(zip(ATTRIBUTES, attributes()[row], strict=True))
        named = [COLOURS[part][values[part]] for part in COLOURS]
        assert np.abs(drawn_directly(packages, name, *named) - first).max() < 2  # of 255: rounding, layer by layer
    assert len(pictures) == len(attributes()) == 8 * 6 * 4 * 6


def test_the_same_bytes_are_drawn_again_and_no_picture_is_in_two_splits(few, content):
    loaded, pictures = few  # drawn anew: the cache was empty, and held to the sha256 of ``content``
    splits = [{one.tobytes() for one in split.values.numpy()} for split in (loaded.train, loaded.valid, loaded.test)]
    assert len(set.union(*splits)) == sum(map(len, splits)) == len(pictures)
    assert [len(split) for split in splits] == [824, 96, 232]
    assert np.array_equal(data.load(Data(name="drawn_faces"), seed=1).test.labels, loaded.test.labels)
    assert all(set(split.labels) == set(range(8)) for split in (loaded.train, loaded.valid, loaded.test))


def test_without_the_packages_one_line_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "python_avatars", None)
    with pytest.raises(UserError, match=r"drawn: needs python-avatars and resvg-py; pip install .*\[faces\]") as told:
        data.load(Data(name="drawn_faces"))
    assert "\n" not in str(told.value)
