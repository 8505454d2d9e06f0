"""``keys=``: what enlarges the key frames, one at a time. One file for each kind, behind :class:`Upscaler`.

What others packaged is imported when it is asked for; the job says its licence then.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, Protocol

import numpy as np

from toolkit.zoo.upscalers import KINDS, check_keys


class Upscaler(Protocol):
    """Enlarges pictures ``factor`` times. ``notice``: what it is; of what others made, whose and its licence."""

    factor: int
    notice: str

    def enlarge(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 RGB (h, w, 3) -> (factor h, factor w, 3)."""
        ...


@functools.cache
def load_upscaler(keys: str, device: str) -> Any:
    """The upscaler that ``keys`` names. Raises UserError where it is not there."""
    check_keys(keys)
    name, _, rest = keys.partition(":")
    module, function = KINDS[name].loader.split(":")
    return getattr(importlib.import_module(module), function)(rest, device)
