"""Images inside of one file, under paths as if it were a folder: a zip of image files, an npy or npz stack of pixels.

``as_folder("faces.zip")`` is a path of which ``faces.zip/00000/img0.png`` lies below; what reads folders reads it.
"""

from __future__ import annotations

import io
import lzma
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PosixPath
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageFile

from toolkit.data.images.arrays import stored_array, stored_arrays
from toolkit.data.images.shards import ShardArchive, find_shards
from toolkit.data.images.suffixes import open_picture
from toolkit.errors import UserError, brief, bytes_text
from toolkit.plain_files import why

MOST_MEMBER_BYTES = 2**30  # of one image file
_DAMAGES = (  # what zipfile raises on arbitrary bytes
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError, RuntimeError),
    *(OSError, ValueError, IndexError, OverflowError),
)
_open: dict[str, Archive] = {}  # by absolute path


class Archive(Protocol):
    """What stands behind an ``ArchivePath``. Names are relative, with slashes; "" is the whole."""

    path: Path

    def entries(self, folder: str) -> dict[str, bool]:
        """The names in ``folder``, and whether each is a folder itself."""

    def size(self, name: str) -> int: ...

    def read(self, name: str) -> bytes: ...

    def image(self, name: str) -> ImageFile.ImageFile: ...


class ArchivePath(PosixPath):
    """A path into an archive that ``as_folder`` opened, for reading. It has no other state than its words."""

    def _found(self) -> tuple[Archive, str]:
        path = os.path.abspath(self)
        for whole, archive in _open.items():
            if path == whole or path.startswith(f"{whole}{os.sep}"):
                return archive, path[len(whole) + 1 :]
        raise FileNotFoundError(f"{self}: of no archive that is open")

    def entries(self) -> list[tuple[str, bool]]:
        """(name, whether it is a folder) of what lies in it."""
        archive, name = self._found()
        return list(archive.entries(name).items())

    def is_file(self, **_: Any) -> bool:
        archive, name = self._found()
        above, _slash, last = name.rpartition("/")
        return archive.entries(above).get(last) is False

    def stat(self, **_: Any) -> os.stat_result:
        """The size of the file inside, and the times of the archive."""
        archive, name = self._found()
        about = os.stat(archive.path)
        values = list(about)
        values[stat.ST_SIZE] = archive.size(name)
        return os.stat_result(values, {"st_mtime_ns": about.st_mtime_ns, "st_mtime": about.st_mtime})

    def is_checked(self) -> bool:
        """Whether reading it holds it against a checksum."""
        return isinstance(self._found()[0], ZipArchive)

    def read_bytes(self) -> bytes:
        archive, name = self._found()
        return archive.read(name)

    def image(self) -> ImageFile.ImageFile:
        """The picture, opened by Pillow, which may decode it later."""
        archive, name = self._found()
        return archive.image(name)


def as_folder(path: Path, label_column: str | None = None) -> Path:
    """``path`` itself where it is a folder, else the archive as one; of a folder of shards too.

    ``label_column``: of tables, the column of the classes. Raises UserError for one that cannot be used.
    """
    suffix = path.suffix.lower()
    if shards := find_shards(path):
        archive: Archive = ShardArchive(path, shards, label_column)
    elif label_column is not None:
        raise UserError(f"data.label_column={label_column}: is of parquet and arrow files, and {path} holds none")
    elif path.is_dir():
        return path
    else:
        archive = ZipArchive(path) if suffix == ".zip" else StackArchive(path)
    _open[os.path.abspath(path)] = archive
    return ArchivePath(path)


def behind(path: Path) -> Archive | None:
    """The archive that ``as_folder`` made a path of."""
    return _open.get(os.path.abspath(path)) if isinstance(path, ArchivePath) else None


class ZipArchive:
    """A zip of image files, stored or compressed, as the dataset tools of StyleGAN and EDM write them.

    Raises UserError for a file that is no zip, for names that lead out of it or stand twice, and for encrypted members.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except _DAMAGES as error:
            raise UserError(f"{path}: not a zip file that can be read ({why(path, error)})") from error
        self._folders: dict[str, dict[str, bool]] = {"": {}}
        for info in self._zip.infolist():
            self._add(info)

    def _add(self, info: zipfile.ZipInfo) -> None:
        name = info.filename
        words = name.rstrip("/").split("/")
        if any(word in ("", ".", "..") for word in words) or "\\" in name or "\0" in info.orig_filename:
            raise UserError(f"{self.path}: the member '{name}' leads out of the archive; such files are not read")
        if info.flag_bits & 1:
            raise UserError(f"{self.path}: the member '{name}' is encrypted; give an archive without a password")
        if info.file_size > MOST_MEMBER_BYTES:
            raise UserError(f"{self.path}: the member '{name}' says that it holds {bytes_text(info.file_size)}")
        for depth in range(1, len(words)):
            above, last = "/".join(words[: depth - 1]), words[depth - 1]
            if self._folders.setdefault(above, {}).setdefault(last, True) is False:
                raise UserError(f"{self.path}: '{above}/{last}' is a file and a folder")
            self._folders.setdefault("/".join(words[:depth]), {})
        inside = self._folders["/".join(words[:-1])]
        if words[-1] in inside and not (info.is_dir() and inside[words[-1]]):
            raise UserError(f"{self.path}: the member '{name}' is there twice; keep one of them")
        inside[words[-1]] = info.is_dir()
        if info.is_dir():
            self._folders.setdefault("/".join(words), {})

    def entries(self, folder: str) -> dict[str, bool]:
        return self._folders.get(folder, {})

    def size(self, name: str) -> int:
        return self._zip.getinfo(name).file_size

    def read(self, name: str) -> bytes:
        """The whole member, of its declared size; OSError where it is damaged, longer or shorter."""
        try:
            with self._zip.open(name) as member:
                content = member.read(self.size(name))
                if member.read(1) or len(content) != self.size(name):
                    raise OSError("the member is not of the size that the archive says")
                return content
        except _DAMAGES as error:
            raise OSError(brief(error)) from error

    def image(self, name: str) -> ImageFile.ImageFile:
        return open_picture(io.BytesIO(self.read(name)))


class StackArchive:
    """uint8 pictures in one array (n, H, W), (n, H, W, C) or (n, C, H, W), memory-mapped; files called 00000000 and on.

    An npz may hold whole numbers (n,) beside it: the classes. Raises UserError for anything else, compressed npz too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pixels, self._labels = _stack(path)  # (n, H, W, C), whole numbers (n,) or None
        self.splits = {"train": [f"{row:08d}" for row in range(len(self.pixels))]}
        self.class_names: tuple[str, ...] = ()
        self.others: list[str] = []

    def labels(self, split: str) -> list[int | str] | None:
        """The classes of all images."""
        return None if self._labels is None else self._labels.tolist()

    def entries(self, folder: str) -> dict[str, bool]:
        return {}  # what there is stands in ``splits``

    def size(self, name: str) -> int:
        return int(self.pixels[0].size)

    def read(self, name: str) -> bytes:
        return np.ascontiguousarray(self.pixels[int(name)]).tobytes()

    def image(self, name: str) -> Any:
        row = np.ascontiguousarray(self.pixels[int(name)])
        return Image.fromarray(row[..., 0] if row.shape[-1] == 1 else row)


def _stack(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    arrays = stored_arrays(path) if path.suffix.lower() == ".npz" else {"the array": stored_array(path)}
    pictures = {name: one for name, one in arrays.items() if one.dtype == np.uint8 and one.ndim in (3, 4)}
    if len(pictures) != 1:
        there = ", ".join(f"{name} {one.dtype} {one.shape}" for name, one in arrays.items())
        raise UserError(
            f"{path}: must hold one uint8 array (n, H, W), (n, H, W, C) or (n, C, H, W) of images; has {there}"
        )
    [(name, pixels)] = pictures.items()
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    elif pixels.shape[-1] not in (1, 3):
        pixels = np.moveaxis(pixels, 1, -1)
    if pixels.shape[-1] not in (1, 3):
        raise UserError(f"{path}: {name} is {pictures[name].shape}; images have 1 channel or 3")
    others = {key: one for key, one in arrays.items() if key != name}
    numbers = [one for one in others.values() if one.shape == (len(pixels),) and one.dtype.kind in "iu"]
    if len(others) > 1 or len(numbers) != len(others):
        there = ", ".join(f"{key} {one.dtype} {one.shape}" for key, one in others.items())
        raise UserError(f"{path}: beside images only classes are read, {len(pixels)} whole numbers; has {there}")
    return pixels, np.asarray(numbers[0], np.int64) if numbers else None
