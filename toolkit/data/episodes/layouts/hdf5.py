"""hdf5 files, opened late and read within bounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.episodes.episode import as_frames
from toolkit.data.episodes.layouts.base import choose_camera, decode, is_pictures, pictures, stack
from toolkit.data.episodes.npz import MOST_BYTES
from toolkit.errors import UserError
from toolkit.installation import install_hint
from toolkit.plain_files import why

JPEG = b"\xff\xd8"


@contextmanager
def opened(path: Path, what: str) -> Iterator[Any]:
    """The file, open for reading. Raises UserError where it is no ``what``, or h5py is missing."""
    try:
        import h5py
    except ImportError:
        raise UserError(f"{what}: needs h5py; {install_hint('formats')}") from None
    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except (OSError, LookupError, AttributeError, RuntimeError, TypeError, ValueError) as error:  # what h5py raises
        raise UserError(f"{path}: not a {what} file, or damaged ({why(path, error, 300)})") from None


def take(where: str | Path, group: Any, key: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
    """Rows of an array of ``group``. Raises UserError where it is missing, no array, or too large to hold."""
    if key not in group:
        raise UserError(f"{where}: no '{key}' in it (found {', '.join(sorted(group)) or 'nothing'})")
    array = group[key]
    if getattr(array, "shape", None) is None or not array.shape:
        raise UserError(f"{where}: '{key}' is no array")
    rows = min(array.shape[0], array.shape[0] if stop is None else stop) - start
    size = rows * int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.itemsize
    if size > MOST_BYTES:
        raise UserError(
            f"{where}: '{key}' has {size / 2**30:.0f} GiB in one episode, at most {MOST_BYTES >> 30} are read"
        )
    return np.asarray(array[start:stop])


def camera(where: str | Path, group: Any, wanted: str | None, encoded: bool = False) -> str:
    """The path below ``group`` of its only array of pictures, or of the one that is wanted.

    encoded: a row may also be the bytes of a picture's file.
    """
    found: list[str] = []

    def look(name: str, item: Any) -> None:
        shape = getattr(item, "shape", None)
        if shape is not None and (is_pictures(shape, item.dtype) or (encoded and _is_encoded(item))):
            found.append(name)

    group.visititems(look)
    return choose_camera(where, found, wanted)


def _is_encoded(array: Any) -> bool:
    """Whether the first row begins as a JPEG file does."""
    if array.ndim not in (1, 2) or not len(array) or array.dtype.kind not in "Ou":
        return False
    first = array[0]
    return isinstance(first, np.ndarray) and first.dtype == np.uint8 and first[:2].tobytes() == JPEG


def frames(where: str | Path, group: Any, key: str) -> NDArray[np.uint8]:
    """The pictures (T, H, W, 3) of an array of ``group``, which may be encoded."""
    rows = take(where, group, key)
    if rows.ndim > 2 or not _is_encoded(rows):
        return as_frames(where, key, pictures(rows))
    shown = decode(where, rows[0].tobytes())
    if shown.nbytes * len(rows) > MOST_BYTES:
        raise UserError(
            f"{where}: '{key}' has {len(rows)} frames of {shown.shape[1]}x{shown.shape[0]}, more than is read"
        )
    return stack(where, [decode(where, one.tobytes()) for one in rows])
