"""``between=``: who makes the frames between key frames, all of one form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from toolkit.errors import UserError, bytes_text
from toolkit.venhancer.clips.classic import Frames, blended_frames, motion_frames
from toolkit.venhancer.config import Classic, Windows

RIFE_BYTES = 1200  # of a pixel that RIFE computes at once; measured from 1080 to 2160 rows
RIFE_TILE = (1280, 2048)  # rows and columns that it computes at once, unless windows.* say otherwise
Between = Callable[[Frames, Sequence[Fraction], int], Iterator[np.ndarray]]


def make_between(name: str, settings: Classic, windows: Windows, device: Any) -> Between:
    """``between(keys, positions, start)``: output frames from ``start`` on, at the keys' size.

    Of ``network`` it is what falls between the network's own frames, which motion compensation makes. Raises UserError
    where a package is missing.
    """
    if name == "blend":
        return blended_frames
    if name == "rife":
        from toolkit.venhancer.clips import rife

        rife.load(str(device))
        tile = _rife_tile(windows)
        return lambda keys, positions, start: rife.rife_frames(keys, positions, start, device, tile)
    return lambda keys, positions, start: motion_frames(keys, positions, start, settings, device)


def _rife_tile(windows: Windows) -> tuple[int, int]:
    """Rows and columns that RIFE computes at once; it pads to 128, so that less saves nothing."""
    return max(128, windows.tile_height_px or RIFE_TILE[0]), max(128, windows.tile_width_px or RIFE_TILE[1])


def check_memory(name: str, size: tuple[int, int], windows: Windows, free_bytes: int) -> None:
    """Raises UserError where ``name`` cannot make a frame of ``size`` (width, height) in ``free_bytes``."""
    rows, columns = (min(pair) for pair in zip(_rife_tile(windows), (size[1], size[0]), strict=True))
    need = RIFE_BYTES * rows * columns
    if name == "rife" and need > free_bytes:
        least = f"{columns}x{rows} pixels at a time need about {bytes_text(need)}, {bytes_text(free_bytes)} are free"
        smaller = "make windows.tile_height_px and windows.tile_width_px smaller"
        raise UserError(f"between=rife: {least}; {smaller}, or take between=motion")
