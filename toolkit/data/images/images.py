"""Image files: checking them before any long work."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from toolkit.data.fetching import cache_root, kept_if_possible
from toolkit.data.images.archives import ArchivePath
from toolkit.data.images.decoding import ORIENTATION, UNREADABLE, flattened, opened, to_array
from toolkit.data.sets import fixed_subset
from toolkit.errors import UserError, few, refuse_files

REMEMBER_ABOVE = 10_000  # files; checking more than this takes long enough to keep the result
LOOKED_AT = 64  # 16-bit files that are decoded to see how many of the bits are used
_NOTHING = (0, 0, False, False, False)  # of a file that cannot be read
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
_READ_AS_PLAIN = (  # columns of what the headers say, and what then is not obeyed
    (3, "hold several pictures (an animation, or pages), of which the first is read"),
    (4, "have a colour profile other than sRGB, and are read as sRGB"),
)
_log = logging.getLogger(__name__)


class Headers(NamedTuple):
    """What the files say of themselves: ``sizes`` (n, 2) width and height in pixels as shown, ``grey`` bool (n,)."""

    sizes: np.ndarray
    grey: np.ndarray


def check_images(files: list[Path], max_pixels: int, skip_bad: bool = False) -> tuple[Headers, np.ndarray]:
    """What the headers of the readable files say, and which those are: bool (n,).

    Every header is read, and the end of every file looked at. With ``skip_bad`` every file is decoded and bad ones are
    left out, which is logged; else UserError names all of them. The result for a large folder is kept in the cache
    until a file's name, size or time changes.
    """
    check = _kept_rows if len(files) > REMEMBER_ABOVE else _check_all
    rows = check(files, max_pixels, skip_bad)
    good = rows[:, 0] > 0
    if not good.all():
        bad = [str(files[i]) for i in np.flatnonzero(~good)]
        _log.warning("left out %d of %d files that are not readable images: %s", len(bad), len(files), few(bad))
    if not good.any():
        raise UserError(f"{files[0].parent}: none of the {len(files)} files is a readable image")
    for column, what in _READ_AS_PLAIN:
        if (such := np.flatnonzero(rows[:, column])).size:
            _log.warning("%d of %d files %s: %s", such.size, len(files), what, few([str(files[i]) for i in such], 3))
    return Headers(rows[good, :2], rows[good, 2].astype(bool)), good


def _kept_rows(files: list[Path], max_pixels: int, skip_bad: bool) -> np.ndarray:
    digest = hashlib.sha256(f"{len(_NOTHING)} {max_pixels} {skip_bad}\n".encode())
    for file in files:
        about = file.stat()
        digest.update(f"{file.absolute()}\0{about.st_size}\0{about.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    kept = cache_root() / "checked" / f"{digest.hexdigest()[:32]}.npy"
    if not kept.is_file():
        _log.info("checking %d images (kept for the next time)", len(files))
        rows = _check_all(files, max_pixels, skip_bad)
        with kept_if_possible(kept):
            _keep(kept, rows)
        return rows
    return np.load(kept, allow_pickle=False)


def _check_all(files: list[Path], max_pixels: int, skip_bad: bool) -> np.ndarray:
    """Rows of what ``_check_file`` says; all zeros for a bad file, if ``skip_bad``. UserError otherwise."""
    read = each_or_why if skip_bad else each_or_refuse
    found = read(functools.partial(_check_file, max_pixels=max_pixels, whole=skip_bad), files)
    return np.array([_NOTHING if isinstance(one, UserError) else one for one in found], np.int64)


def each_or_refuse(read: Callable[[Path], Any], files: list[Path]) -> list[Any]:
    """``read`` of every file. One UserError names all for which it raised one."""
    found = each_or_why(read, files)
    refuse_files([str(one) for one in found if isinstance(one, UserError)], len(files))
    return found


def each_or_why(read: Callable[[Path], Any], files: list[Path]) -> list[Any]:
    """``read`` of every file, or the UserError that it raised."""

    def attempt(file: Path) -> Any:
        try:
            return read(file)
        except UserError as error:
            return error

    with ThreadPoolExecutor() as pool:
        return list(pool.map(attempt, files, chunksize=64))


def _keep(path: Path, rows: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npy")
    np.save(temporary, rows)
    os.replace(temporary, path)


def check_depth(files: list[Path], max_pixels: int) -> None:
    """Refuse a set whose 16-bit pictures use only the lower bits (a camera's 12, say), which would be nearly black.

    Looked at are those among at most ``LOOKED_AT`` files. A PNG's sBIT changes nothing: by the standard its samples are
    scaled to 16 bits already. Raises UserError.
    """
    looked_at = [_brightest_of_16_bit(file, max_pixels) for file in _some(files)]
    brightest = [value for value in looked_at if value is not None]
    if brightest and 0 < max(brightest) < 64:
        raise UserError(
            f"{_some(files)[0].parent}: the 16-bit pictures use at most 14 of their bits (the first {len(brightest)} "
            "looked at), so they would be nearly black; scale their values to 0..65535, or save them with 8 bits"
        )


def _some(files: list[Path]) -> list[Path]:
    return [files[i] for i in fixed_subset(len(files), LOOKED_AT).tolist()]


def _brightest_of_16_bit(path: Path, max_pixels: int) -> int | None:
    """The largest value in 0..255 of a picture that has 16 bits; None for any other."""
    with opened(path, max_pixels) as image:
        is_deep = image.mode.startswith("I") or ";16" in str(
            getattr(image, "tile", "")
        )  # Pillow cuts 16-bit colour to 8
        return int(to_array(image, channels=3).max()) if is_deep else None


def _check_file(path: Path, max_pixels: int, whole: bool) -> tuple[int, int, bool, bool, bool]:
    """(width, height, grey, one of several pictures, of a profile other than sRGB).

    A file whose end looks wrong, or has no mark to look for, is decoded to be sure.
    """
    with opened(path, max_pixels) as image:
        width, height = shown_size(image)
        is_grey, is_several = image.mode in _GREY_MODES, _is_several(image)
        profile = image.info.get("icc_profile") or b"sRGB"
        if whole or not ends_well(path, image.format):
            image.load()
        if whole:
            flattened(image)
        return width, height, is_grey, is_several, not _is_srgb(profile)


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a picture when it is turned as its camera says, which needs its header alone."""
    turned = "exif" in image.info and image.getexif().get(ORIENTATION, 1) >= 5
    return (image.height, image.width) if turned else image.size


def _is_several(image: Image.Image) -> bool:
    """Whether a file holds more pictures, but for the previews of cameras (MPO)."""
    with contextlib.suppress(*UNREADABLE, IndexError):  # in what follows the first, which is not read
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    return False


def _is_srgb(profile: bytes) -> bool:
    """By its own description."""
    return b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile


def ends_well(path: Path, kind: str | None) -> bool:
    """Whether a file of Pillow's format ``kind`` has its mark at the end; False where there is none to look for."""
    mark = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}.get(kind or "")
    if isinstance(path, ArchivePath):
        return path.is_checked() or (mark is not None and mark in path.read_bytes()[-16:])
    if mark is None:
        return False
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 16))
        return mark in file.read()
