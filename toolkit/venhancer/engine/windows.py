"""Windows in time: where they lie, how neighbours are blended, and in which order (step, window) pairs can run.

The released sampler denoises every window at every step and blends the predicted x_0 on one global latent, all
windows of a step before the next step. The result is the same when a window goes on as soon as its neighbours allow:
window j at step s + 1 needs windows j - 1, j, j + 1 at step s only. Run along these diagonals, a clip of any length
keeps no more than (steps + 1) windows in flight, and its first frames are final long before its last are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Windows:
    """Windows [starts[j], ends[j]) over ``num_frames`` output frames; key frames are every ``frame_factor``-th.

    Every window starts and ends on a key frame, and a frame lies in at most two windows.
    """

    num_frames: int
    frame_factor: int
    spans: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.spans)

    def settled(self, index: int) -> tuple[int, int]:
        """Frames that no later window touches and no earlier one settled: [own start, start of the next)."""
        start, end = self.spans[index]
        return start, end if index == len(self) - 1 else self.spans[index + 1][0]

    def overlap(self, index: int) -> tuple[int, int]:
        """Frames shared with the window before: [own start, its end); empty for the first."""
        start = self.spans[index][0]
        return (start, self.spans[index - 1][1]) if index else (start, start)

    def weight(self, index: int, frame: int) -> float:
        """Share of window ``index`` in a frame that it has in common with the window before: t / L, from 0."""
        start, end = self.overlap(index)
        return (frame - start) / (end - start)

    def in_flight(self, num_steps: int) -> int:
        """Most frames between the oldest that is not final and the newest that was begun."""
        last = len(self) - 1
        return max(
            self.spans[min(diagonal, last)][1] - self.spans[max(0, diagonal - num_steps + 1)][0]
            for diagonal in range(last + num_steps)
            if diagonal - num_steps + 1 <= last
        )


def plan_windows(num_frames: int, frame_factor: int, max_frames: int = 32, overlap: float = 0.5) -> Windows:
    """Windows of at most ``max_frames`` whose neighbours share about ``overlap`` (at most half) of their frames.

    The last one is as long as what is left: never longer than the others, never shorter than the overlap.

    Raises:
        ValueError: a window that cannot hold two key frames.
    """
    k = frame_factor
    if num_frames <= max_frames:
        return Windows(num_frames, k, ((0, num_frames),))
    if max_frames < k + 1:
        raise ValueError(f"windows.num_frames={max_frames}: must hold two key frames, {k + 1} frames or more")
    window = (max_frames - 1) // k * k + 1
    shared = max(0, int(max_frames * overlap) - 1) // k * k + 1
    while shared > 1 and 2 * shared > window:
        shared = max(1, shared - k)
    spans = [(0, window)]
    while spans[-1][1] < num_frames:
        start = spans[-1][1] - shared
        spans.append((start, min(start + window, num_frames)))
    return Windows(num_frames, k, tuple(spans))


def schedule_pairs(num_steps: int, num_windows: int) -> Iterator[tuple[int, int]]:
    """All (step, window) in an order in which each finds its neighbours' previous step done: diagonal by diagonal."""
    for diagonal in range(num_steps + num_windows - 1):
        for step in range(max(0, diagonal - num_windows + 1), min(num_steps, diagonal + 1)):
            yield step, diagonal - step
