"""``keys=lanczos``: no network; the resize to the output's size does all."""

from __future__ import annotations

import numpy as np


class Lanczos:
    """Leaves pictures as they are: what is not of the asked size yet is resized by Lanczos' filter afterwards."""

    factor, notice = 1, "Lanczos' filter, no network"

    def enlarge(self, pixels: np.ndarray) -> np.ndarray:
        """``pixels``."""
        return pixels


def load(source: str, device: str) -> Lanczos:
    """The one there is."""
    return Lanczos()
