"""Numbered PNG files in a folder of their own, written in parts like a video and put in place whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import av

PICTURES = "[0-9]*.png"
FIRST = 1


def write_pictures(folder: Path, frames: Iterable[av.VideoFrame]) -> int:
    """Write ``frames`` (rgb24, or rgb48be for 16 bits) into ``folder``, put in place whole; returns their number.

    Raises OSError when the disk is full; there is then no ``folder``.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    remove(temporary)
    temporary.mkdir(parents=True)
    count = 0
    try:
        for frame in frames:
            _file(temporary, count).write_bytes(_encoded(frame))
            count += 1
        put_folder(temporary, folder)
    finally:
        remove(temporary)
    return count


def _encoded(frame: av.VideoFrame) -> bytes:
    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt = frame.width, frame.height, frame.format.name  # type: ignore[attr-defined]
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])  # type: ignore[attr-defined]


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number + FIRST:06d}.png"


def link_pictures(parts: Sequence[Path], folder: Path) -> None:
    """All pictures of ``parts`` in one ``folder``, numbered through; nothing is copied where it can be linked."""
    remove(folder)
    folder.mkdir()
    count = 0
    for part in parts:
        for path in sorted(part.glob(PICTURES)):
            try:
                os.link(path, _file(folder, count))
            except OSError:  # another disk, or one that knows no links
                shutil.copyfile(path, _file(folder, count))
            count += 1


def put_folder(temporary: Path, folder: Path) -> None:
    """Put ``temporary`` in the place of ``folder``, and what was there out of the way."""
    before = folder.with_name(f".{folder.name}.before")
    if folder.exists():
        remove(before)
        os.replace(folder, before)
    os.replace(temporary, folder)
    remove(before)


def remove(path: Path) -> None:
    """Remove a file or a folder; nothing where there is none."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
