"""``between=``: who makes the frames between key frames, all of one form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from toolkit.errors import UserError
from toolkit.venhancer.clips.classic import Frames, blended_frames, motion_frames
from toolkit.venhancer.clips.inputs import gib
from toolkit.venhancer.config import Classic

RIFE_BYTES = 1200  # of a pixel; measured from 1080 to 2160 rows
Between = Callable[[Frames, Sequence[Fraction], int], Iterator[np.ndarray]]


def make_between(name: str, settings: Classic, device: Any) -> Between:
    """``between(keys, positions, start)``: output frames from ``start`` on, at the keys' size.

    Of ``network`` it is what falls between the network's own frames, which motion compensation makes. Raises UserError
    where a package is missing.
    """
    if name == "blend":
        return blended_frames
    if name == "rife":
        from toolkit.venhancer.clips import rife

        rife.load(str(device))
        return lambda keys, positions, start: rife.rife_frames(keys, positions, start, device)
    return lambda keys, positions, start: motion_frames(keys, positions, start, settings, device)


def check_memory(name: str, size: tuple[int, int], free_bytes: int) -> None:
    """Raises UserError where ``name`` cannot make a frame of ``size`` (width, height) in ``free_bytes``."""
    need = RIFE_BYTES * size[0] * size[1]
    if name == "rife" and need > free_bytes:
        least = f"frames of {size[0]}x{size[1]} need about {gib(need)}, {gib(free_bytes)} are free"
        raise UserError(f"between=rife: {least}; take between=motion, or a smaller scale")
