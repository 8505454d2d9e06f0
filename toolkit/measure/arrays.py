"""uint8 samples in an ``.npz``, read piece by piece: a set of 50,000 images is never whole in memory."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from toolkit.errors import UserError, brief

# what zipfile, zlib and numpy raise: the last three for an encrypted file, an unknown packing and a lying size
DAMAGES = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    MemoryError,
)
_HEADER = 1 << 16
_SAMPLES = "arr_0"  # what numpy.savez calls its first array, and ADM its images


def has_samples(path: Path) -> bool:
    """Whether a file that also holds statistics has ``arr_0``. ``path``: an ``.npz`` that can be read."""
    with zipfile.ZipFile(path) as archive:
        return f"{_SAMPLES}.npy" in archive.namelist()


def samples_shape(path: Path, layout: str) -> tuple[int, ...]:
    """The shape of the samples, from the header alone.

    ``layout``: the axes by name, such as "n height width 3"; the last one is the number of channels.

    Raises UserError: not an ``.npz``, no array ``arr_0``, or one of another type or shape.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(_member(archive, path)) as file:
            shape, fortran, dtype = _header(file)
    except DAMAGES as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not an .npz of arrays ({brief(error)})") from None
    axes = layout.split()
    if dtype != np.uint8 or len(shape) != len(axes) or shape[-1] != int(axes[-1]) or fortran or 0 in shape:
        raise UserError(f"{path}: holds {dtype} {shape}; expected uint8 of shape ({', '.join(axes)})")
    return shape


def read_samples(path: Path, shape: tuple[int, ...], size: int) -> Iterator[np.ndarray]:
    """The array in pieces of at most ``size`` along its first axis. Raises UserError where it is cut short."""
    each = int(np.prod(shape[1:]))
    with zipfile.ZipFile(path) as archive, archive.open(_member(archive, path)) as file:
        _header(file)
        for start in range(0, shape[0], size):
            count = min(size, shape[0] - start)
            try:
                data = file.read(count * each)
            except DAMAGES as error:
                raise UserError(f"{path}: damaged after {start} of {shape[0]} ({brief(error)})") from None
            if len(data) != count * each:
                raise UserError(f"{path}: cut short after {start + len(data) // each} of {shape[0]}")
            yield np.frombuffer(data, np.uint8).reshape(count, *shape[1:]).copy()


def _member(archive: zipfile.ZipFile, path: Path) -> str:
    names = archive.namelist()
    whole = f"{_SAMPLES}.npy"
    chosen = whole if whole in names else names[0] if len(names) == 1 else None
    if chosen is None:
        raise UserError(f"{path}: holds {', '.join(names[:8])}; expected samples under {_SAMPLES}")
    return chosen


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file, max_header_size=_HEADER)
