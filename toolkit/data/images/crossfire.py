"""Sprites of the game Crossfire: a small colour set, 32x32, classed by their folder in the game's archive."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from toolkit.data import fetching
from toolkit.data.config import Data
from toolkit.data.images.decoding import to_array
from toolkit.data.images.pixels import image_set
from toolkit.data.sets import Dataset, hold_out
from toolkit.errors import UserError

CLASSES = (
    "armour",
    "connect",
    "exit",
    "floor",
    "ground",
    "misc",
    "monster",
    "planes",
    "player",
    "road",
    "spell",
    "system",
    "wall",
    "weapon",
)
SIZE_PX = 32
TEST_FRACTION = 0.15


def load_crossfire(config: Data, seed: int) -> Dataset:
    """The 32x32 sprites of the 14 folders that have at least a hundred; identical pictures are kept once.

    Frames of one animation look alike, so whole objects are held out for test and validation, not single frames.
    """
    fetched = fetching.fetch("crossfire", config.path)
    pictures: dict[bytes, tuple[str, str]] = {}
    for path, png in _records((fetched.path / "crossfire.base").read_bytes()):
        category, name = path.split("/")[2], path.split("/")[-1].split(".")[0]
        if category in CLASSES:
            pictures.setdefault(png, (category, name))
    opened = [(Image.open(io.BytesIO(png)), what) for png, what in pictures.items()]
    opened = [(image, what) for image, what in opened if image.size == (SIZE_PX, SIZE_PX)]
    images = np.stack([to_array(image, channels=3) for image, _ in opened])
    labels = np.array([CLASSES.index(category) for _, (category, _) in opened])
    _, units = np.unique([f"{category}/{name}" for _, (category, name) in opened], return_inverse=True)
    train, test = hold_out(labels, len(labels), TEST_FRACTION, "test", units)
    return image_set(
        config,
        (images[train], labels[train]),
        (images[test], labels[test]),
        CLASSES,
        fetched.licence,
        fetched.origin,
        units[train],
    )


def _records(content: bytes) -> Iterator[tuple[str, bytes]]:
    """(path, PNG bytes) of each record ``IMAGE <bytes> <path>\\n<png>``."""
    position = 0
    while position < len(content):
        end = content.find(b"\n", position)
        header = content[position:end].decode("ascii", "replace").split()
        if end < 0 or len(header) != 3 or header[0] != "IMAGE" or not header[1].isdigit():
            raise UserError(f"crossfire.base: no image record at byte {position}")
        size = int(header[1])
        yield header[2], content[end + 1 : end + 1 + size]
        position = end + 1 + size
