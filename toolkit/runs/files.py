"""Writing files so that a crash, a kill or a full disk never leaves half of one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_atomic(path: str | Path, data: bytes | str) -> Path:
    """Write ``data`` beside ``path``, flush it to disk, then rename: readers see the old file or the new one.

    Raises OSError (disk full, no permission); the old file is then untouched and nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode(errors="backslashreplace") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return path


def sync(path: Path) -> None:
    """Flush a file that others wrote, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` as indented JSON, atomically."""
    return write_atomic(path, json.dumps(value, indent=1, allow_nan=True) + "\n")


def into_place(aside: Path, folder: Path, last: str) -> None:
    """Rename a folder that is complete; where another process was faster with the same, its own is left.

    ``last`` names a file that only a complete ``folder`` holds. Raises OSError where neither is there in the end.
    """
    try:
        os.replace(aside, folder)
    except OSError:
        if not (folder / last).is_file():
            raise


def missing(folder: Path) -> list[Path]:
    """``folder`` and those above it that are not there, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove ``folders`` in this order, up to the first that is not empty."""
    for path in folders:
        try:
            path.rmdir()
        except OSError:
            return
