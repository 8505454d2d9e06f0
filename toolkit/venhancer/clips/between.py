"""``between=``: who makes the frames between key frames, all of one form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from toolkit.venhancer.clips.classic import Frames, blended_frames, motion_frames
from toolkit.venhancer.config import Classic

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
