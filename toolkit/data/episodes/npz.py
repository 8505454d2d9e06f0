"""Arrays of an ``.npz`` that are held whole: sizes are held against the file and a limit before memory is taken."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.images.arrays import DAMAGES
from toolkit.errors import UserError, bytes_text
from toolkit.plain_files import visible_files, why

MOST_BYTES = 8 * 2**30  # of an episode
BOMB_BYTES, BOMB_RATIO = 2**30, 500  # so large, and so many times as large as the file: nothing that was recorded
_READERS = {(1, 0): np.lib.format.read_array_header_1_0}


def npz_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files below ``folder`` that are called ``.npz``, in small letters or large, and the others; no hidden ones."""
    files = visible_files(folder)
    found = [path for path in files if path.suffix.lower() == ".npz"]
    return found, [path for path in files if path.suffix.lower() != ".npz"]


def array_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Array name -> shape, from the headers of the arrays. Raises UserError for one that is longer than its file."""
    return {name: shape for name, (shape, _) in _headers(path).items()}


def load_arrays(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Those arrays of a file. Raises UserError where they are too large to hold, or cannot be read."""
    headers, names = _headers(path), list(names)
    total = sum(headers[name][1] for name in names)
    size = path.stat().st_size
    if total > MOST_BYTES or (total > BOMB_BYTES and total > BOMB_RATIO * size):
        raise UserError(
            f"{path}: {bytes_text(total)} of arrays in {bytes_text(size)}; an episode has at most "
            f"{MOST_BYTES >> 30} GiB, and is not {BOMB_RATIO} times as large as its file"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except DAMAGES as error:
        raise _damaged(path, error) from None


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], int]]:
    """Array name -> (shape, bytes)."""
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as member:
                    version = np.lib.format.read_magic(member)
                    read = _READERS.get(version, np.lib.format.read_array_header_2_0)
                    shape, _, dtype = read(member)
                    num_bytes = math.prod(shape) * dtype.itemsize
                    if not dtype.hasobject and member.tell() + num_bytes != info.file_size:
                        raise ValueError(f"{info.filename}: its shape {shape} does not fit its {info.file_size} bytes")
                    found[info.filename.removesuffix(".npy")] = (shape, num_bytes)
    except DAMAGES as error:
        raise _damaged(path, error) from None
    return found


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: truncated or no npz file of plain arrays ({why(path, error)}); record or convert it anew"
    )
