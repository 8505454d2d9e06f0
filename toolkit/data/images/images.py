"""Image files: finding them, checking them before any long work, decoding one."""

from __future__ import annotations

import hashlib
import logging
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from toolkit.data.fetching import cache_root
from toolkit.errors import UserError

EXTENSIONS = frozenset([".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"])
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
REMEMBER_ABOVE = 10_000  # files; checking more than this takes long enough to keep the result
_ORIENTATION = 0x0112
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """Image files in a fixed order, their classes int64 (n,) or None, and the classes' names."""

    files: list[Path]
    labels: np.ndarray | None
    class_names: tuple[str, ...]


class Headers(NamedTuple):
    """What the files say of themselves: ``sizes`` (n, 2) width and height in pixels as shown, ``grey`` bool (n,)."""

    sizes: np.ndarray
    grey: np.ndarray


def find_images(root: Path, by_class: bool) -> Found:
    """Images under ``root``, of any depth; with ``by_class`` each direct subfolder is a class, if there are any.

    Raises UserError for no images, an empty class, one class only, or images beside class folders.
    """
    folders = [Path(entry.path) for entry in sorted(os.scandir(root), key=lambda e: e.name) if _visible_folder(entry)]
    if not (by_class and folders):
        return Found(_not_empty(_images_under(root), root), None, ())
    loose = [entry.name for entry in os.scandir(root) if _is_image(entry.name)]
    if loose:
        raise UserError(f"{root}: images ({loose[0]}) beside class folders ({folders[0].name}); move them into classes")
    if len(folders) == 1:
        raise UserError(
            f"{root}: one class folder only ({folders[0].name}); give two or more, or set data.class_labels=false"
        )
    per_class = [_not_empty(_images_under(folder), folder) for folder in folders]
    labels = np.repeat(np.arange(len(folders)), [len(files) for files in per_class])
    return Found([file for files in per_class for file in files], labels, tuple(folder.name for folder in folders))


def _visible_folder(entry: os.DirEntry) -> bool:
    return entry.is_dir() and not entry.name.startswith((".", "__"))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def _images_under(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        found += [Path(place, name) for name in sorted(names) if _is_image(name)]
    return found


def _not_empty(files: list[Path], folder: Path) -> list[Path]:
    if not files:
        raise UserError(f"{folder}: no images found (looked for {', '.join(sorted(EXTENSIONS))})")
    return files


def check_images(files: list[Path]) -> Headers:
    """Read every header and make sure that no file is cut short; UserError names the first bad file.

    The result for a large folder is kept in the cache until a file's name, size or time changes.
    """
    if len(files) <= REMEMBER_ABOVE:
        return _check_all(files)
    digest = hashlib.sha256()
    for file in files:
        about = file.stat()
        digest.update(f"{file.absolute()}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    kept = cache_root() / "checked" / f"{digest.hexdigest()[:32]}.npy"
    if not kept.is_file():
        _log.info("checking %d images (kept for the next time)", len(files))
        _keep(kept, _check_all(files))
    table = np.load(kept, allow_pickle=False)
    return Headers(table[:, :2], table[:, 2].astype(bool))


def _check_all(files: list[Path]) -> Headers:
    with ThreadPoolExecutor() as pool:
        rows = np.array(list(pool.map(_check_file, files, chunksize=64)), np.int64)
    return Headers(rows[:, :2], rows[:, 2].astype(bool))


def _keep(path: Path, headers: Headers) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npy")
    np.save(temporary, np.column_stack([headers.sizes, headers.grey]))
    os.replace(temporary, path)


def _check_file(path: Path) -> tuple[int, int, bool]:
    """(width, height, grey). A file whose end looks wrong, or has no mark to look for, is decoded to be sure."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            if "exif" in image.info and image.getexif().get(_ORIENTATION, 1) >= 5:
                width, height = height, width
            if not _ends_well(path, image.format):
                image.load()
            return width, height, image.mode in _GREY_MODES
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _ends_well(path: Path, kind: str | None) -> bool:
    mark = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}.get(kind or "")
    if mark is None:
        return False
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 16))
        return mark in file.read()


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = "its content is of no known image format" if isinstance(error, Image.UnidentifiedImageError) else error
    return UserError(f"{path}: not a readable image ({reason})")


def decode(path: Path, shape: tuple[int, ...], resized: bool) -> np.ndarray:
    """The picture as uint8 ``shape`` (C, H, W), turned as its EXIF says; ``resized`` crops and resizes it to H x W.

    Raises UserError naming a file that is unreadable or of another size.
    """
    channels, height, width = shape
    try:
        with Image.open(path) as image:
            if resized:
                image.draft(None, (2 * width, 2 * height))  # JPEG only: a smaller, faster decode that is still larger
            array = to_array(ImageOps.exif_transpose(image), channels, width if resized else None)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if array.shape != tuple(shape):
        raise UserError(f"{path}: is {array.shape[2]}x{array.shape[1]} pixels, not {width}x{height}; set data.size_px")
    return array


def to_array(image: Image.Image, channels: int, size_px: int | None = None) -> np.ndarray:
    """uint8 (channels, H, W): palettes resolved, transparency laid on white, 16 bits brought to 8.

    ``size_px`` crops the centre square and resizes it, antialiased bicubic.
    """
    flat = _flatten(image).convert("L" if channels == 1 else "RGB")
    if size_px is not None:
        side = min(flat.size)
        left, top = (flat.width - side) // 2, (flat.height - side) // 2
        square = flat.crop((left, top, left + side, top + side))
        flat = square.resize((size_px, size_px), Image.Resampling.BICUBIC, reducing_gap=2.0)
    array = np.asarray(flat)
    return array[None] if channels == 1 else np.moveaxis(array, -1, 0)


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return image
