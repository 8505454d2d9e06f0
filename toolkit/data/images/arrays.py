"""Arrays of .npy and uncompressed .npz files, memory-mapped; nothing is unpickled, nothing read but headers."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from toolkit.errors import UserError
from toolkit.plain_files import why

T = TypeVar("T")
DAMAGES = (  # what zipfile and numpy's reader of headers raise on arbitrary bytes
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, OSError, EOFError, SyntaxError),
    *(ValueError, KeyError, TypeError, IndexError, OverflowError, MemoryError, RuntimeError),
)


def stored_array(path: Path, name: str | None = None) -> np.ndarray:
    """Array ``name`` of an uncompressed .npz, or that of an .npy (None), memory-mapped; no checksum is looked at.

    Raises UserError for a file that is damaged, lacks the array, is compressed or holds objects.
    """
    if name is None:
        return _or_refuse(lambda: _mapped(path, 0, path.stat().st_size, "it"), path, "an .npy file")
    return _or_refuse(lambda: _member(path, f"{name}.npy"), path, f"an .npz file with an array called {name}")


def stored_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an uncompressed .npz by name, as ``stored_array``."""

    def names() -> list[str]:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()

    return {
        name.removesuffix(".npy"): _or_refuse(lambda name=name: _member(path, name), path, "an .npz file")  # type: ignore[misc]
        for name in _or_refuse(names, path, "an .npz file")
    }


def _or_refuse(read: Callable[[], T], path: Path, what: str) -> T:
    try:
        return read()
    except UserError:
        raise
    except DAMAGES as error:
        raise UserError(f"{path}: not {what} ({why(path, error)})") from error


def _member(path: Path, member: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
        archive.open(info).close()  # holds the local header against the directory
    if info.compress_type != zipfile.ZIP_STORED:
        raise UserError(f"{path}: is compressed, so it cannot be read by rows; rewrite it with numpy.savez")
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)  # the local header's two variable lengths; 30 bytes precede the rest
        begin = sum(struct.unpack("<HH", file.read(4))) + info.header_offset + 30
    return _mapped(path, begin, info.file_size, member)


def _mapped(path: Path, begin: int, size: int, what: str) -> np.ndarray:
    """The array whose header begins at byte ``begin`` and which ends ``size`` bytes later."""
    with open(path, "rb") as file:
        file.seek(begin)
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise UserError(f"{path}: {what} holds pickled objects, which are not read")
        if file.tell() - begin + math.prod(shape) * dtype.itemsize != size or not math.prod(shape):
            raise ValueError(f"its shape {shape} does not fit its {size} bytes")
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")
