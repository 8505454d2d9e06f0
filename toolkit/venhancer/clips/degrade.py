"""A low-quality clip out of a good one, written as a file of its own: an input whose right answer is known."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from toolkit.data.video.reader import VideoIndex, VideoReader
from toolkit.data.video.write import Encoding, write_part
from toolkit.errors import UserError
from toolkit.runs.seeds import generator
from toolkit.venhancer.config import LEAST_SIDE_PX, Degrade


def degraded_size(index: VideoIndex, settings: Degrade) -> tuple[int, int]:
    """(width, height), even where a lossy codec needs it. Raises UserError when little is left."""
    width, height = (round(side / settings.scale) for side in (index.width, index.height))
    if settings.crf is not None:
        width, height = width // 2 * 2, height // 2 * 2
    if min(width, height) < LEAST_SIDE_PX:
        raise UserError(
            f"degrade.scale={settings.scale}: leaves {width}x{height} of {index.width}x{index.height}; "
            f"sides of {LEAST_SIDE_PX} at least"
        )
    return width, height


def write_degraded(index: VideoIndex, settings: Degrade, path: Path, seed: int) -> None:
    """Write the degraded clip to ``path``: exact RGB, or h264 with ``settings.crf``."""
    width, height = degraded_size(index, settings)
    rate = Fraction(index.rate, settings.frame_step)
    kind = {"codec": "rgb", "pix_fmt": "rgb24"} if settings.crf is None else {"crf": settings.crf}
    encoding = Encoding(width, height, rate, aspect=index.aspect, **kind)  # type: ignore[arg-type]
    write_part(path, degraded_frames(VideoReader(index).frames(), settings, width, height, seed), encoding)


def degraded_frames(
    frames: Iterator[np.ndarray], settings: Degrade, width: int, height: int, seed: int
) -> Iterator[np.ndarray]:
    """Every ``frame_step``-th frame, blurred, made smaller (antialiased bicubic), with noise; uint8 RGB."""
    for number, frame in enumerate(frames):
        if number % settings.frame_step:
            continue
        image = Image.fromarray(frame)
        if settings.blur_px:
            image = image.filter(ImageFilter.GaussianBlur(settings.blur_px))
        small = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        yield _noisy(small, settings.noise, seed, number) if settings.noise else small


def _noisy(pixels: np.ndarray, deviation: float, seed: int, number: int) -> np.ndarray:
    draw = torch.randn(pixels.shape, generator=generator(seed, "degrade", number)).numpy()
    return np.clip(np.rint(pixels + deviation * draw), 0, 255).astype(np.uint8)
