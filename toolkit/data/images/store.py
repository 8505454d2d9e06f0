"""Decoded pictures of a folder, kept at the size asked for: every later pass reads pixels and decodes nothing."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from toolkit.data.fetching import cache_folder, cache_root
from toolkit.data.images.archives import StackArchive
from toolkit.data.images.decoding import Reading, decode
from toolkit.errors import UserError, bytes_text, refuse_files
from toolkit.runs import progress

VERSION = 1  # of decoding; raise it with every change there that makes other pixels of the same files
AT_ONCE = 1024  # files
_log = logging.getLogger(__name__)


class PixelStore:
    """uint8 (n, C, H, W) of ``files`` under ``root``: a memory map in the cache, or an array where not ``is_kept``.

    The map belongs to the files' names, sizes and times, the size and the filter. A newer one of the same folder, size
    and filter takes its place.
    """

    def __init__(self, root: Path, files: list[Path], reading: Reading, is_kept: bool) -> None:
        self.root, self.files, self.reading, self.is_kept = root, files, reading, is_kept
        self.shape = (len(files), *reading.shape)
        self._array: np.ndarray | None = None

    @functools.cached_property
    def path(self) -> Path:
        """The file of the memory map, whether or not it is there."""
        digest = hashlib.sha256(self._what())
        for file in self.files:
            about = file.stat()
            line = f"{file.relative_to(self.root).as_posix()}\0{about.st_size}\0{about.st_mtime_ns}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return cache_root() / "pixels" / f"{digest.hexdigest()[:32]}.npy"

    def _what(self) -> bytes:
        return f"{VERSION} {self.reading.shape} {self.reading.resize}\n".encode()

    def is_made(self) -> bool:
        """Whether ``pixels`` has nothing left to do."""
        return self._array is not None or (self.is_kept and self.path.is_file())

    def pixels(self) -> np.ndarray:
        """All pictures, decoded now if they were not. UserError names the files that turn out bad, and a full disk."""
        if self._array is None:
            self._array = self._kept() if self.is_kept else np.stack(list(self._decoded()))
        return self._array

    def _kept(self) -> np.ndarray:
        cache_folder("pixels")
        with open(self.path.with_suffix(".lock"), "wb") as lock:  # other processes of the job wait for the first
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.path.is_file():
                self._make()
        try:
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except ValueError:  # cut short
            array = np.empty(0)
        if array.shape != self.shape or array.dtype != np.uint8:
            raise UserError(f"{self.path}: damaged; delete it, and the images are decoded again")
        return array

    def _make(self) -> None:
        num_bytes, free = int(np.prod(self.shape)), shutil.disk_usage(self.path.parent).free
        if num_bytes > free:
            raise UserError(
                f"{self.path.parent}: {bytes_text(num_bytes)} are needed for {len(self.files)} decoded images and "
                f"{bytes_text(free)} are free; set data.cache=false to decode them at every pass, or TOOLKIT_CACHE"
            )
        size = "x".join(map(str, self.reading.shape))
        _log.info("decoding %d images to %s once: %s, %s", len(self.files), size, self.path, bytes_text(num_bytes))
        temporary = self.path.with_name(f".{self.path.stem}.{os.getpid()}")
        header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        try:
            with open(temporary, "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for picture in self._decoded():
                    file.write(np.ascontiguousarray(picture).data)
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        self._forget_older()

    def _decoded(self) -> Iterator[np.ndarray]:
        """The pictures in order. After the last file, one UserError for all that are bad."""
        bad: list[str] = []

        def attempt(file: Path) -> np.ndarray | UserError:
            try:
                return decode(file, self.reading)
            except UserError as error:
                return error

        with ThreadPoolExecutor() as pool, progress.bar("decoding", 0, len(self.files), "image") as bar:
            for start in range(0, len(self.files), AT_ONCE):
                for found in pool.map(attempt, self.files[start : start + AT_ONCE]):
                    if isinstance(found, UserError):
                        bad.append(str(found))
                    elif not bad:
                        yield found
                bar.advance(min(start + AT_ONCE, len(self.files)))
        refuse_files(bad, len(self.files))

    def _forget_older(self) -> None:
        """Remove the map that this folder had at this size, and note the new one."""
        place = hashlib.sha256(self._what() + os.fsencode(self.root.absolute())).hexdigest()[:32]
        note = self.path.with_name(f"{place}.of_folder")
        older = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
        if older and older != self.path.name:
            (self.path.parent / Path(older).name).unlink(missing_ok=True)
        note.write_text(self.path.name, encoding="utf-8")


class StackStore:
    """The pixels of a stack that has the size and the channels asked for: they need neither decoding nor a copy."""

    def __init__(self, stack: StackArchive) -> None:
        self._pixels = np.moveaxis(stack.pixels, -1, 1)

    def is_made(self) -> bool:
        return True

    def pixels(self) -> np.ndarray:
        """uint8 (n, C, H, W), memory-mapped."""
        return self._pixels
