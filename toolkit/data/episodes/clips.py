"""Clips cut from episodes: random windows as a pure function of a generator, fixed ones for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.data.episodes.augment import augment
from toolkit.data.episodes.episode import EpisodeSet
from toolkit.errors import UserError
from toolkit.runs.seeds import derive, generator


@dataclass(frozen=True)
class Clip:
    """A batch of clips: ``frames`` float32 (B, T, 3, H, W) in [0, 1], ``actions`` (B, T, A) and ``rewards`` (B, T).

    Row t of actions and rewards belongs to the move from frame t to frame t + 1; either may be None.
    """

    frames: Tensor
    actions: Tensor | None
    rewards: Tensor | None

    def __len__(self) -> int:
        return len(self.frames)

    def to(self, device: torch.device | str) -> Clip:
        """The clip on another device."""
        parts = (self.frames, self.actions, self.rewards)
        return Clip(*(None if part is None else part.to(device) for part in parts))  # type: ignore[arg-type]

    def rows(self, index: slice | Tensor | Sequence[int]) -> Clip:
        """Some of the clips."""
        parts = (self.frames, self.actions, self.rewards)
        return Clip(*(None if part is None else part[index] for part in parts))  # type: ignore[arg-type]

    def split(self, size: int) -> Iterator[Clip]:
        """Batches of at most ``size`` clips."""
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))


class ClipSource:
    """Windows of ``num_frames`` frames, ``frame_step`` apart, of the episodes of one split.

    With a frame step k > 1 the k actions between two frames are concatenated (nothing is lost), rewards summed. The
    data sets of a mixture are drawn by their weights, and their own frame steps multiply. Raises UserError when no
    episode is long enough.
    """

    def __init__(self, episodes: EpisodeSet, num_frames: int, frame_step: int = 1, augmented: bool = False):
        self.episodes, self.num_frames, self.frame_step, self.augmented = episodes, num_frames, frame_step, augmented
        groups = episodes.groups or ((0, len(episodes), 1.0, 1),)
        self.steps = np.concatenate([np.full(stop - start, step) for start, stop, _, step in groups]) * frame_step
        self.counts = np.maximum(np.array(episodes.lengths) - (num_frames - 1) * self.steps, 0)
        if not self.counts.sum():
            longest = max(episodes.lengths, default=0)
            least = (num_frames - 1) * int(self.steps.min(initial=frame_step)) + 1
            raise UserError(f"no episode has {least} frames (the longest has {longest}); shorten the clips")
        self.ends = np.cumsum(self.counts)
        inside = [
            (int(self.ends[start] - self.counts[start]), int(self.ends[stop - 1])) for start, stop, _, _ in groups
        ]
        self.spans = [span for span in inside if span[0] < span[1]]
        weights = np.array([group[2] for group, span in zip(groups, inside, strict=True) if span[0] < span[1]])
        self.weights = weights / weights.sum()

    @property
    def action_dim(self) -> int:
        """Numbers of one action row of a clip; 0 where episodes have none."""
        return self.episodes.action_dim * self.frame_step

    def sample(self, num: int, seed: int, *names: str | int, part: slice = slice(None)) -> Clip:
        """``num`` clips, every window (of a data set) equally likely, drawn for (seed, *names).

        Those of ``part`` alone are read and returned.
        """
        rng = np.random.default_rng(derive(seed, "clips", *names))
        chosen = [self.spans[index] for index in rng.choice(len(self.spans), num, p=self.weights)]
        clip = self._stack([self._window(int(rng.integers(*span))) for span in chosen][part])
        if not self.augmented:
            return clip
        frames = augment(clip.frames, generator(seed, "augment", *names), num, part.indices(num)[0])
        return Clip(frames, clip.actions, clip.rewards)

    def fixed(self, num: int) -> Clip:
        """At most ``num`` clips for evaluation: first windows of the episodes, spread evenly over the split."""
        usable = np.flatnonzero(self.counts)
        chosen = usable[np.linspace(0, len(usable) - 1, min(num, len(usable))).round().astype(int)]
        return self._stack([(int(index), 0) for index in chosen])

    def _window(self, place: int) -> tuple[int, int]:
        index = int(np.searchsorted(self.ends, place, side="right"))
        return index, place - int(self.ends[index] - self.counts[index])

    def _stack(self, windows: list[tuple[int, int]]) -> Clip:
        cut = [self._cut(index, start) for index, start in windows]
        frames = torch.from_numpy(np.stack([image for image, _, _ in cut])).permute(0, 1, 4, 2, 3).float().div_(255)
        actions, rewards = (
            None if any(one[part] is None for one in cut) else torch.from_numpy(np.stack([one[part] for one in cut]))
            for part in (1, 2)
        )
        return Clip(frames.contiguous(), actions, rewards)

    def _cut(self, index: int, start: int) -> tuple[Any, Any, Any]:
        """Frames (T, H, W, 3), action rows (T, A) and rewards [T] of one window."""
        episode, step = self.episodes.read(index), int(self.steps[index])
        image = episode.image[start : start + (self.num_frames - 1) * step + 1 : step]
        stop = start + self.num_frames * step  # the last row leads out of the clip, and may be short of rows
        action, reward = (
            None if rows is None else _grouped(rows[start:stop], self.num_frames, step)
            for rows in (episode.action, episode.reward)
        )
        return (
            image,
            None if action is None else action.reshape(self.num_frames, -1),
            None if reward is None else reward.sum(1).astype(np.float32),
        )


def _grouped(rows: np.ndarray, num: int, step: int) -> np.ndarray:
    """Rows [<= num * step, ...] as (num, step, ...), missing ones zero."""
    missing = num * step - len(rows)
    padded = np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)]) if missing else rows
    return padded.reshape(num, step, *rows.shape[1:])
