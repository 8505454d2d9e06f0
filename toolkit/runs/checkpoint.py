"""Checkpoints that are whole or not there: one file, its checksum in its name, renamed into place when written.

``checkpoints/<stage>/step-000000500-<sha256, 16 digits>.pt``. The previous files stay until the new one is on disk;
a damaged file is named, skipped, and the one before it used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from toolkit.errors import JobError, UserError, brief
from toolkit.runs.files import sync

UnpicklingError = torch.serialization.pickle.UnpicklingError  # what torch.load refuses with
log = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d+)-([0-9a-f]{16})\.pt")


class _HashingFile:
    """A write-only file that hashes what goes through it, so that large states are never held twice."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.sha = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save(folder: Path, step: int, state: dict[str, Any], keep: int, keep_every: int | None = None) -> Path:
    """Write ``state`` (tensors and plain values) as the checkpoint of ``step``; keep the newest ``keep`` files.

    Those of multiples of ``keep_every`` steps are kept besides.

    Raises JobError when it cannot be written (disk full); earlier checkpoints are then untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".step-*.tmp"):  # by a process that was killed while it wrote: this one holds the lock
        left.unlink()
    temporary = folder / f".step-{step}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            hashing = _HashingFile(file)
            torch.save(state, hashing)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"step-{step:09d}-{hashing.sha.hexdigest()[:16]}.pt"
        os.replace(temporary, path)
        sync(folder)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        good = newest_good(folder)
        kept = f"the last good one is {good}" if good else "there is none before it"
        raise JobError(f"{folder}: the checkpoint of step {step} could not be written ({error}); {kept}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    earlier = [old for old in _files(folder) if _parse(old)[0] < step]
    damaged = [old for old in _files(folder) if _parse(old)[0] >= step and old != path]  # we resumed from before them
    past = [old for old in earlier[: max(0, len(earlier) + 1 - keep)] if not keep_every or _parse(old)[0] % keep_every]
    for old in [*damaged, *past]:
        old.unlink()
    return path


def load(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """``(step, state)`` of the newest undamaged checkpoint, None where there is none. Raises UserError."""
    for path in reversed(_files(folder)):
        if _is_good(path):
            return _parse(path)[0], _read(path)
        log.warning("%s is damaged (its checksum does not match); looking for the checkpoint before it", path)
    return None


def _read(path: Path) -> dict[str, Any]:
    """What :func:`save` wrote; nothing in it is run. Raises UserError for a file that it did not write."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip, OS and runtime errors alike
        refused = isinstance(error, UnpicklingError)  # torch's own words advise to load it all the same
        why = "it holds more than tensors and plain values" if refused else brief(error, 200)
        raise UserError(
            f"{path}: cannot be read as a checkpoint ({why}); remove it to go on from the one before"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a checkpoint of ours; remove it to go on from the one before")
    return content


def newest_good(folder: Path) -> Path | None:
    """The newest undamaged checkpoint file."""
    return next((path for path in reversed(_files(folder)) if _is_good(path)), None)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name) and path.is_file())


def _parse(path: Path) -> tuple[int, str]:
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match[1]), match[2]


def _is_good(path: Path) -> bool:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16] == _parse(path)[1]
