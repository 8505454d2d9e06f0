"""The clips of one run: which data, how long, which frames a training step sees, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit import data
from toolkit.data.episodes.clips import Clip, ClipSource
from toolkit.data.episodes.episode import EpisodeSet, EpisodeSpec
from toolkit.data.episodes.sets import EpisodeDataset
from toolkit.errors import UserError
from toolkit.ivideogpt.config import TrainIVideoGPT
from toolkit.runs import progress
from toolkit.runs.seeds import generator

ADJACENT = 1 / 3  # of the clips of a training with gaps: those without one


@dataclass(frozen=True)
class Clips:
    """A data set and its windows: random ones of ``train``, fixed ones of ``valid`` and ``test``.

    Those of ``train`` are longer by ``context_gap``.
    """

    dataset: EpisodeDataset
    train: ClipSource
    valid: ClipSource
    test: ClipSource
    statistics: dict[str, np.ndarray]  # mean, std of action rows, low and high as stated or seen; empty without

    @property
    def resolution(self) -> int:
        """Edge of the frames in pixels."""
        return self.dataset.train.size_px[0]

    @property
    def action_dim(self) -> int:
        """Numbers of an action row."""
        return self.train.action_dim


def load_clips(config: TrainIVideoGPT) -> Clips:
    """Read or make the episodes of ``config.data``. Raises UserError naming the key or file at fault."""
    num_frames = window_frames(config)
    span = (num_frames + config.context_gap - 1) * config.data.frame_step + 1
    keys, needs = config.data, (config.action_conditioned, config.reward_head)
    spec = EpisodeSpec(keys.size_px, span, keys.image_key, *needs, keys.convention)
    dataset = data.load_episodes(config.data, config.seed, spec)
    height, width = dataset.train.size_px
    if height != width:
        raise UserError(
            f"data.size_px: frames of {config.data.path} are {height}x{width}, a model's are square; set it, as in "
            f"data.size_px={min(height, width)}, which crops to the central square"
        )
    step = config.data.frame_step
    train = ClipSource(dataset.train, num_frames + config.context_gap, step, config.data.augment)
    valid, test = (ClipSource(split, num_frames, step) for split in (dataset.valid, dataset.test))
    statistics = {}
    if config.action_conditioned:
        statistics = action_statistics(dataset.train, config.data.frame_step)
        if (statistics["low"] == statistics["high"]).all():
            progress.say(
                f"data.path={config.data.path}: every action is the same, so frames cannot be told to follow it"
            )
        statistics |= {name: np.tile(row, config.data.frame_step) for name, row in dataset.action_bounds.items()}
    return Clips(dataset, train, valid, test, statistics)


def window_frames(config: TrainIVideoGPT, num_future: int | None = None) -> int:
    """Frames of an episode that one clip takes: a goal-conditioned clip repeats or moves its last one.

    ``num_future``: frames after the context, where these are not as many as in training.
    """
    num_frames = config.num_frames if num_future is None else config.context_length + num_future
    return num_frames - (config.goal_conditioned and config.goal_order == "release_training")


def arrange(clip: Clip, config: TrainIVideoGPT) -> Clip:
    """The clip as the model sees it; goal-conditioned ones start with the goal, their last frame.

    ``release_training``: goal, o_1 .. o_T (the goal comes again at the end); ``paper``: goal, o_1 .. o_{T-1}. The
    goal's own action row is zero and unused.
    """
    if config.blind_context:
        return Clip(_blinded(clip.frames, config), clip.actions, clip.rewards)
    if not config.goal_conditioned:
        return clip
    stop = clip.frames.shape[1] - (config.goal_order == "paper")

    def first(rows: Tensor | None, start: Tensor | None) -> Tensor | None:
        return None if rows is None or start is None else torch.cat([start, rows[:, :stop]], 1)

    actions, rewards = (
        None if rows is None else torch.zeros_like(rows[:, :1]) for rows in (clip.actions, clip.rewards)
    )
    frames = torch.cat([clip.frames[:, -1:], clip.frames[:, :stop]], 1)
    return Clip(frames, first(clip.actions, actions), first(clip.rewards, rewards))


def spaced(clip: Clip, config: TrainIVideoGPT, rng: torch.Generator) -> tuple[Clip, Tensor | None]:
    """Clips of ``num_frames`` frames, some left out after the context, and whether none were, bool (B,); None: in none.

    A third of the clips has no gap; in the others it is 1 .. ``context_gap`` frames. The row of actions and rewards
    before the first frame after it is that of the move into this frame.
    """
    if not config.context_gap:
        return clip, None
    drawn = torch.randint(1, config.context_gap + 1, (len(clip),), generator=rng)
    gap = torch.where(torch.rand(len(clip), generator=rng) < ADJACENT, 0, drawn)
    num_context = config.context_length
    later = torch.arange(num_context, config.num_frames)
    rows = later + gap[:, None]
    frames = torch.cat([clip.frames[:, :num_context], _take(clip.frames, rows)], 1)
    moves = torch.cat([torch.arange(num_context - 1).expand(len(clip), -1), rows - 1, rows[:, -1:]], 1)
    return Clip(frames, *(None if one is None else _take(one, moves) for one in (clip.actions, clip.rewards))), gap == 0


def tokenizer_frames(
    clip: Clip, config: TrainIVideoGPT, seed: int, step: int, num: int | None = None, part: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """Context (B, T0, 3, H, W) and some future frames (B, k, 3, H, W) of clips, drawn for (seed, step).

    A random sorted subset of the frames after the context; for goal conditioning any frames in any order. The subsets
    are drawn for ``num`` clips, of which ``clip`` holds those of ``part``.
    """
    num_context, num_future = config.context_length, config.optim.tokenizer.num_future
    rng = generator(seed, "tokenizer", "frames", step)
    scores = torch.rand(num or len(clip), clip.frames.shape[1], generator=rng)[part]
    if config.goal_conditioned:
        order = scores.argsort(1)[:, : num_context + num_future]
        chosen = _take(clip.frames, order)
        return chosen[:, :num_context], chosen[:, num_context:]
    later = scores[:, num_context:].argsort(1)[:, :num_future].sort(1).values + num_context
    frames = _blinded(clip.frames, config) if config.blind_context else clip.frames
    return frames[:, :num_context], _take(frames, later)


def _blinded(frames: Tensor, config: TrainIVideoGPT) -> Tensor:
    """Clips whose context frames are black."""
    num_context = config.context_length
    return torch.cat([torch.zeros_like(frames[:, :num_context]), frames[:, num_context:]], 1)


def _take(frames: Tensor, index: Tensor) -> Tensor:
    return frames[torch.arange(len(frames))[:, None], index]


def action_statistics(episodes: EpisodeSet, frame_step: int) -> dict[str, np.ndarray]:
    """mean, std, low and high of the action rows of at most 2,000 episodes; a constant column has std 1."""
    chosen = np.linspace(0, len(episodes) - 1, min(len(episodes), 2000)).round().astype(int)
    read: list[Any] = [episodes.read(int(index)).action for index in chosen]
    rows = np.concatenate(read).astype(np.float64)
    std = rows.std(0)
    found = {"mean": rows.mean(0), "std": np.where(std < 1e-6, 1.0, std), "low": rows.min(0), "high": rows.max(0)}
    return {name: np.tile(value, frame_step).astype(np.float32) for name, value in found.items()}
