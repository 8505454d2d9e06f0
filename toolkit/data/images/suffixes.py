"""Which files are images, by their names."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import IO

from PIL import Image, ImageFile

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".avif", ".jp2", ".tga", ".heic", ".heif"),
)


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """Those of ``SUFFIXES`` that this installation of Pillow can read."""
    Image.init()
    kinds = Image.registered_extensions()
    return frozenset(suffix for suffix in SUFFIXES if kinds.get(suffix) in Image.OPEN)


@functools.cache
def _formats() -> tuple[str, ...]:
    kinds = Image.registered_extensions()
    return tuple(sorted({kinds[suffix] for suffix in readable_suffixes()}))


def open_picture(file: str | Path | IO[bytes]) -> ImageFile.ImageFile:
    """Pillow's ``open`` for the formats of ``SUFFIXES`` alone: for PostScript it would start Ghostscript."""
    return Image.open(file, formats=_formats())


def suffix_of(name: str) -> str:
    """The last suffix, in small letters."""
    return os.path.splitext(name)[1].lower()


def is_image(name: str) -> bool:
    """Whether a file of this name is read as an image."""
    return suffix_of(name) in readable_suffixes()
