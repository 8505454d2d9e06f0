"""Drawn faces, 32x32 in colour, classed by hair style: every combination of six attributes once.

The parts are python_avatars', drawn by resvg; this needs the extra ``faces``. Every shape is filled
with one colour, so a pixel is affine in the colours: a face is drawn once per colour that it has, not per combination.
"""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data import fetching
from toolkit.data.config import Data
from toolkit.data.sets import Dataset, hold_out
from toolkit.data.sources import SourceFailed
from toolkit.installation import install_hint

ATTRIBUTES: dict[str, tuple[str, ...]] = {  # the first is the class, the last changes from picture to picture
    "hair style": ("short", "mohawk", "bun", "mullet", "bob", "long", "wavy", "curly"),
    "glasses": ("none", "glasses", "sunglasses"),
    "mouth": ("smiling", "closed", "open"),
    "hair colour": ("black", "auburn", "blond", "red", "pink", "silver"),
    "skin colour": ("pale", "light", "brown", "dark"),
    "shirt colour": ("blue", "red", "green", "yellow", "slate", "purple"),
}
COLOURS: dict[str, tuple[str, ...]] = {
    "hair colour": ("2C1B18", "A55728", "E8C070", "D93A10", "F59797", "B9B4C4"),
    "skin colour": ("FFDBB4", "EDB98A", "AE5D29", "614335"),
    "shirt colour": ("5199E4", "FF5C5C", "6CD28A", "FFD54F", "3C4F5C", "A678DE"),
}
SIZE_PX = 32
DRAWN_PX = 128  # and averaged, which leaves no seams between shapes that touch
VIEW = "23 6 218 218"  # of the drawing: head and shoulders
FILE = "drawn_faces.npy"
TEST_FRACTION = 0.2


def load_drawn_faces(config: Data, seed: int) -> Dataset:
    """All combinations, a fifth of each hair style's held out for test: no picture stands in two splits."""
    from toolkit.data.images.pixels import image_set

    fetched = fetching.fetch("drawn_faces", config.path)
    images = np.moveaxis(np.load(fetched.path / FILE, allow_pickle=False), -1, 1)
    labels = attributes()[:, 0]
    kept, held_out = hold_out(labels, len(labels), TEST_FRACTION, "test")
    train, test = ((images[rows], labels[rows]) for rows in (kept, held_out))
    return image_set(config, train, test, ATTRIBUTES["hair style"], fetched.licence, fetched.origin)


def attributes() -> np.ndarray:
    """int64 (n, 6): of each picture, in order, which value of each of ``ATTRIBUTES`` it shows."""
    return np.array(list(itertools.product(*(range(len(values)) for values in ATTRIBUTES.values()))))


def draw(scratch: Path) -> Path:
    """A source of the catalogue: uint8 (n, 32, 32, 3) in ``FILE``. Raises SourceFailed where a package is missing."""
    folder = scratch / "drawn"
    folder.mkdir()
    painted = np.array(list(itertools.product(*(_rgb(values) for values in COLOURS.values()))))  # (k, 3 parts, 3)
    shapes = itertools.product(ATTRIBUTES["hair style"], ATTRIBUTES["glasses"], ATTRIBUTES["mouth"])
    sheets = [_of_shape(style, glasses, mouth, painted) for style, glasses, mouth in shapes]
    np.save(folder / FILE, np.concatenate(sheets))
    return folder


def _rgb(colours: tuple[str, ...]) -> list[np.ndarray]:
    return [np.array(list(bytes.fromhex(colour)), np.float64) / 255 for colour in colours]


def _of_shape(style: str, glasses: str, mouth: str, painted: np.ndarray) -> np.ndarray:
    """uint8 (k, 32, 32, 3): the picture in each of the ``painted`` colours (k, 3, 3) of hair, skin and shirt."""
    black = _render(style, glasses, mouth, white=None)
    shares = np.stack([_render(style, glasses, mouth, white=part) - black for part in COLOURS])
    return np.round(255 * (black + np.einsum("phwc,kpc->khwc", shares, painted))).clip(0, 255).astype(np.uint8)


def _render(style: str, glasses: str, mouth: str, white: str | None) -> np.ndarray:
    """float64 (32, 32, 3) in [0, 1]: hair, skin and shirt black, but ``white`` (a key of ``COLOURS``); on white."""
    parts, resvg, picture = _packages()
    hair = {
        "short": parts.HairType.SHORT_FLAT,
        "mohawk": parts.HairType.MOHAWK,
        "bun": parts.HairType.BUN,
        "mullet": parts.HairType.SHAGGY_MULLET,
        "bob": parts.HairType.MIA_WALLACE,
        "long": parts.HairType.STRAIGHT_STRAND,
        "wavy": parts.HairType.LOOSE_HAIR,
        "curly": parts.HairType.CURLY,
    }
    worn = {
        "none": parts.AccessoryType.NONE,
        "glasses": parts.AccessoryType.PRESCRIPTION_2,
        "sunglasses": parts.AccessoryType.SUNGLASSES,
    }
    said = {
        "smiling": parts.MouthType.BIG_SMILE,
        "closed": parts.MouthType.SERIOUS,
        "open": parts.MouthType.SCREAM_OPEN,
    }
    fills = {part: "#FFFFFF" if part == white else "#000000" for part in COLOURS}
    svg = parts.Avatar(
        style=parts.AvatarStyle.TRANSPARENT,
        top=hair[style],
        accessory=worn[glasses],
        mouth=said[mouth],
        eyes=parts.EyeType.DEFAULT,
        eyebrows=parts.EyebrowType.DEFAULT,
        nose=parts.NoseType.DEFAULT,
        clothing=parts.ClothingType.SHIRT_CREW_NECK,
        hair_color=fills["hair colour"],
        skin_color=fills["skin colour"],
        clothing_color=fills["shirt colour"],
    ).render()
    svg = svg.replace('viewBox="0 0 264 280"', f'viewBox="{VIEW}"')
    svg = svg.replace('width="264px" height="280px"', f'width="{DRAWN_PX}px" height="{DRAWN_PX}px"')
    png = resvg.svg_to_bytes(svg_string=svg, background="#FFFFFF", width=DRAWN_PX, skip_system_fonts=True)
    pixels = np.asarray(picture.open(io.BytesIO(bytes(png))).convert("RGB"), np.float64) / 255
    cell = DRAWN_PX // SIZE_PX
    return pixels.reshape(SIZE_PX, cell, SIZE_PX, cell, 3).mean(axis=(1, 3))


def _packages() -> tuple[Any, Any, Any]:
    """python_avatars, resvg_py and Pillow's Image."""
    try:
        import python_avatars
        import resvg_py
        from PIL import Image
    except ImportError:
        raise SourceFailed(f"needs python-avatars and resvg-py; {install_hint('faces')}") from None
    return python_avatars, resvg_py, Image
