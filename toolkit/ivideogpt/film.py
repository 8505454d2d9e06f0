"""Imagined clips as pictures that move: labelled rows of frames, written as mp4 and GIF, and as one still sheet."""

from __future__ import annotations

import io
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from toolkit.data.video.write import Encoding, write_part
from toolkit.runs.files import write_atomic

Frames = NDArray[np.uint8]  # (B, T, H, W, 3)
GAP_PX = 2
LABEL_PX = 12  # height of a line of text
BACKGROUND, INK = (255, 255, 255), (30, 30, 30)


def side_by_side(rows: Mapping[str, Frames], scale: int) -> Frames:
    """Labelled rows of clips (B, T, H, W, 3), one column per clip, as one video (T, height, width, 3).

    A row with fewer frames holds its last one. Height and width are even, as video codecs want them.
    """
    num_frames = max(frames.shape[1] for frames in rows.values())
    frames = [
        _sheet({name: clip[:, min(t, clip.shape[1] - 1)] for name, clip in rows.items()}, scale)
        for t in range(num_frames)
    ]
    return np.stack(frames)


def film_strip(rows: Mapping[str, Frames], clip: int, scale: int) -> Frames:
    """Labelled rows, one column per time step, of one clip: a still picture (height, width, 3)."""
    longest = max(frames.shape[1] for frames in rows.values())
    padded = {}
    for name, frames in rows.items():
        missing = longest - frames.shape[1]
        blank = np.full((missing, *frames.shape[2:]), 255, np.uint8)
        padded[name] = np.concatenate([blank, frames[clip]])  # imagination starts after the context
    return _sheet(padded, scale)


def sheet_px(num_rows: int, num_columns: int, cell_px: tuple[int, int]) -> tuple[int, int]:
    """Height and width of labelled rows of pictures of that height and width; even."""
    height, width = num_rows * (LABEL_PX + cell_px[0] + GAP_PX), num_columns * (cell_px[1] + GAP_PX) - GAP_PX
    return height + height % 2, width + width % 2


def _sheet(rows: Mapping[str, NDArray[np.uint8]], scale: int) -> NDArray[np.uint8]:
    """Rows of pictures (N, H, W, 3) with a label above each."""
    first = next(iter(rows.values()))
    num, height, width = first.shape[:3]
    cell_h, cell_w = height * scale, width * scale
    total_h, total_w = sheet_px(len(rows), num, (cell_h, cell_w))
    sheet = Image.new("RGB", (total_w, total_h), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=LABEL_PX - 2)
    for row, (label, pictures) in enumerate(rows.items()):
        top = row * (LABEL_PX + cell_h + GAP_PX)
        draw.text((1, top - 1), label, fill=INK, font=font)
        for column, picture in enumerate(pictures):
            enlarged = Image.fromarray(picture).resize((cell_w, cell_h), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (column * (cell_w + GAP_PX), top + LABEL_PX))
    return np.asarray(sheet)


def save_mp4(path: Path, frames: Frames, rate_fps: float) -> None:
    """Write (T, H, W, 3) as H.264 in mp4 (yuv420p: every player), whole or not at all."""
    write_part(path, frames, Encoding(frames.shape[2], frames.shape[1], Fraction(rate_fps).limit_denominator(1000)))


def save_gif(path: str | Path, frames: Frames, rate_fps: float) -> Path:
    """Write (T, H, W, 3) as an endless GIF, whole or not at all."""
    pictures = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    duration_ms = round(1000 / rate_fps)
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=duration_ms, loop=0)
    return write_atomic(path, buffer.getvalue())


def save_png(path: str | Path, picture: NDArray[np.uint8]) -> Path:
    """Write one picture (H, W, 3), whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return write_atomic(path, buffer.getvalue())
