"""Where a clip cuts to another scene: between frames that motion does not explain and whose colours differ.

The release has no such check and morphs across cuts. Every frame is reduced to 64x36 pixels; the score of a frame is
how much of it no block of the frame before explains, relative to the motion around it.
"""

from __future__ import annotations

import av
import numpy as np

from toolkit.data.video.pixels import thumbnail

WIDTH, HEIGHT = 64, 36
BLOCK = 4
REACH = 4  # blocks may have moved by so many thumbnail pixels
FULL_SCALE = 64.0  # grey levels of unexplained change that count as 1
LEAST_SHOT_FRAMES = 3  # a flash is not two cuts


class CutFinder:
    """Feed it every frame, then ask for the cuts."""

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.scores: list[float] = []
        self._before: np.ndarray | None = None

    def __call__(self, frame: av.VideoFrame) -> None:
        """Take the next frame."""
        small = thumbnail(frame, WIDTH, HEIGHT).astype(np.float32)
        self.scores.append(0.0 if self._before is None else change(self._before, small))
        self._before = small

    def cuts(self) -> list[int]:
        """First frames of new scenes, rising."""
        found: list[int] = []
        for number, score in enumerate(self.scores):
            around = self.scores[max(1, number - 3) : number] + self.scores[number + 1 : number + 4]
            usual = float(np.median(around)) if around else 0.0
            near = found and number - found[-1] < LEAST_SHOT_FRAMES
            if number and score - usual > self.threshold and not near:
                found.append(number)
        return found


def change(before: np.ndarray, after: np.ndarray) -> float:
    """What of ``after`` (float RGB (36, 64, 3), 0..255) is not found near its place in ``before``: 0 none, 1 all."""
    padded = np.pad(before, ((REACH, REACH), (REACH, REACH), (0, 0)), mode="edge")
    best = np.full((HEIGHT // BLOCK, WIDTH // BLOCK), np.inf, np.float32)
    for dy in range(2 * REACH + 1):
        for dx in range(2 * REACH + 1):
            error = np.abs(after - padded[dy : dy + HEIGHT, dx : dx + WIDTH]).mean(-1)
            blocks = error.reshape(HEIGHT // BLOCK, BLOCK, WIDTH // BLOCK, BLOCK).mean((1, 3))
            np.minimum(best, blocks, out=best)
    return float(np.minimum(best / FULL_SCALE, 1).mean())
