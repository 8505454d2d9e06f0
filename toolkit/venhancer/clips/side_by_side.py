"""The result beside its input (and its reference): a clip to look at, and a sheet of still frames."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from toolkit.data.video.reader import VideoIndex, VideoReader
from toolkit.data.video.scan import index_video
from toolkit.data.video.write import Encoding, write_part
from toolkit.runs.files import write_atomic
from toolkit.venhancer.clips.classic import resize
from toolkit.venhancer.clips.timeline import Timeline

MOST_PANEL_PX = 960
GAP_PX = 4
BAND_PX = 20
SHEET_COLUMNS = 4


def write_side_by_side(
    target: Path, panels: dict[str, Iterator[np.ndarray]], size: tuple[int, int], encoding: Encoding, num_frames: int
) -> None:
    """Write the first ``num_frames`` of all ``panels`` next to each other, each under its name."""
    width, height = _panel_size(size, len(panels))
    total = len(panels) * (width + GAP_PX) - GAP_PX
    total, rows = total + total % 2, height + BAND_PX + height % 2
    heads = {name: _head(name, width) for name in panels}

    def frames() -> Iterator[np.ndarray]:
        for _ in range(num_frames):
            sheet = np.zeros((rows, total, 3), np.uint8)
            for position, (name, source) in enumerate(panels.items()):
                left = position * (width + GAP_PX)
                sheet[:BAND_PX, left : left + width] = heads[name]
                sheet[BAND_PX : BAND_PX + height, left : left + width] = resize(next(source), width, height, "bicubic")
            yield sheet

    write_part(target, frames(), replace(encoding, width=total, height=rows, codec="h264", pix_fmt="yuv420p"))


def _panel_size(size: tuple[int, int], panels: int) -> tuple[int, int]:
    factor = min(1.0, MOST_PANEL_PX * 2 / panels / size[0])
    return round(size[0] * factor), round(size[1] * factor)


def _head(name: str, width: int) -> np.ndarray:
    band = Image.new("RGB", (width, BAND_PX), "#222222")
    ImageDraw.Draw(band).text((6, 4), name, fill="white")
    return np.asarray(band)


def held_frames(index: VideoIndex, timeline: Timeline) -> Iterator[np.ndarray]:
    """The input at the output's rate: every frame stands until the next."""
    frames = VideoReader(replace(index, deep=False)).frames()
    number, current = 0, next(frames)
    for moment in range(timeline.num_frames):
        wanted, _ = index.position(moment / timeline.rate)
        while number < wanted:
            number, current = number + 1, next(frames)
        yield current


def frames_of(path: Path) -> Iterator[np.ndarray]:
    """All frames of a written video; the last one stands on."""
    last = None
    for last in VideoReader(index_video(path, key="output")).frames():
        yield last
    while last is not None:
        yield last


def write_sheet(target: Path, clip: Path, num_frames: int) -> None:
    """A PNG of a few frames of the side-by-side clip below each other."""
    wanted = sorted({round(step * (num_frames - 1) / (SHEET_COLUMNS - 1)) for step in range(SHEET_COLUMNS)})
    rows = [frame for number, frame in enumerate(_until(frames_of(clip), num_frames)) if number in wanted]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, "PNG")
    write_atomic(target, buffer.getvalue())


def _until(frames: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    for _, frame in zip(range(count), frames, strict=False):
        yield frame
