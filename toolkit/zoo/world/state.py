"""What a roll-out carries from frame to frame, and what it hands back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.zoo.world.dynamics import Past
from toolkit.zoo.world.tokenizer import DecodedContext


@dataclass(frozen=True)
class Kept:
    """What outlives the renewal of the positions where the context stays.

    codes int64 (B, T0, N) of the context. frame (B, 3, H, W): its last one as it truly is, in [0, 1]. tokens int64
    (B, k, n) of the last k imagined frames. actions (B, k, A): that led to them, or None. Zeros where there were fewer.
    """

    codes: Tensor
    frame: Tensor
    tokens: Tensor
    actions: Tensor | None

    def with_frame(self, tokens: Tensor, action: Tensor | None) -> Kept:
        """After a frame more, tokens (B, n) and action (B, A)."""
        actions = None if action is None else torch.cat([self.actions[:, 1:], action[:, None]], dim=1)  # type: ignore[index]
        return replace(self, tokens=torch.cat([self.tokens[:, 1:], tokens[:, None]], dim=1), actions=actions)

    def select(self, rows: Tensor) -> Kept:
        """The rows ``rows`` in that order."""
        return Kept(*(None if one is None else one[rows] for one in vars(self).values()))  # type: ignore[arg-type]

    @classmethod
    def joined(cls, parts: Sequence[Kept], order: Tensor) -> Kept:
        """The rows ``order`` of all parts', counted one part after the other."""
        columns = zip(*(vars(one).values() for one in parts), strict=True)
        return cls(*(None if one[0] is None else torch.cat(one)[order] for one in columns))  # type: ignore[arg-type]


@dataclass(frozen=True)
class State:
    """A batch of imagined worlds; never changed, ``WorldModel.step`` makes a new one that shares its memory.

    past: what the transformer has read. context: what decoding looks at. recent u8 (B, T0, H, W, 3): the frames that a
    new context would hold. seeds int64 (B,). frame: number of the next future frame since ``begin``. used: future
    frames that the transformer has read since it last began. Both are int64 (B,) where rows of different ages were
    joined, ``used`` on the CPU. kept: see there; None where a new context is made of ``recent``.
    """

    past: Past
    context: DecodedContext
    recent: Tensor
    seeds: Tensor
    frame: int | Tensor = 0
    used: int | Tensor = 0
    kept: Kept | None = None

    def __len__(self) -> int:
        """B."""
        return len(self.seeds)

    @property
    def observation(self) -> Tensor:
        """The newest frame, u8 (B, H, W, 3)."""
        return self.recent[:, -1]

    def select(self, index: Tensor | Sequence[int]) -> State:
        """The rows ``index`` in that order (repetition allowed), in memory of their own."""
        rows = torch.as_tensor(index, device=self.seeds.device)
        rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows.long()
        return replace(
            self,
            past=self.past.select(rows),
            context=DecodedContext(self.context.frames[rows], [one.select(rows) for one in self.context.memory]),
            recent=self.recent[rows],
            seeds=self.seeds[rows],
            frame=self.frame[rows] if isinstance(self.frame, Tensor) else self.frame,
            used=self.used[rows.cpu()] if isinstance(self.used, Tensor) else self.used,
            kept=None if self.kept is None else self.kept.select(rows),
        )

    def fork(self, num: int, seeds: Tensor | Sequence[int] | None = None) -> State:
        """``num`` copies of every row, side by side (row 0's first).

        seeds: of the B*num rows. None: copies keep their row's, so that actions are compared under the same noise.
        """
        forked = self.select(torch.arange(len(self)).repeat_interleave(num))
        return forked if seeds is None else forked.reseeded(seeds)

    def reseeded(self, seeds: Tensor | Sequence[int]) -> State:
        """The same worlds with other random numbers from here on."""
        seeds = torch.as_tensor(seeds, dtype=torch.int64, device=self.seeds.device)
        if seeds.shape != self.seeds.shape:
            raise ValueError(f"seeds of shape {tuple(seeds.shape)}: expected {tuple(self.seeds.shape)}")
        return replace(self, seeds=seeds)

    def clone(self) -> State:
        """The same worlds in memory of their own."""
        return self.select(torch.arange(len(self)))

    @property
    def nbytes(self) -> int:
        """Memory of cache and context."""
        kept = [self.recent, self.context.frames, *(part for one in self.context.memory for part in one)]
        return self.past.cache.nbytes + sum(part.numel() * part.element_size() for part in kept)


@dataclass(frozen=True)
class Pred:
    """One imagined frame.

    frame u8 (B, H, W, 3); reward float32 (B,) or None without a reward head; tokens int64 (B, n), ids of the
    vocabulary; logprob float32 (B,): of the frame's tokens together; entropy float32 (B,): nats per token, their mean;
    both of the untempered distribution over what could be drawn. recontextualised: the positions were used up before
    this frame, and the transformer began anew: after the last frames as a new context, or after the context and the
    frames that are kept.
    """

    frame: Tensor
    reward: Tensor | None
    tokens: Tensor
    logprob: Tensor
    entropy: Tensor
    recontextualised: bool = False


@dataclass(frozen=True)
class Preds:
    """K imagined frames: ``Pred``'s fields with K as second dimension, and the state after the last.

    frames u8 (B, K, H, W, 3), rewards (B, K) or None, tokens (B, K, n), logprobs (B, K), entropies (B, K),
    recontextualised: the frames (0..K-1) before which the transformer began anew. actions (B, K, A) or None: those
    taken.
    """

    frames: Tensor
    rewards: Tensor | None
    tokens: Tensor
    logprobs: Tensor
    entropies: Tensor
    recontextualised: tuple[int, ...]
    actions: Tensor | None
    state: State

    @classmethod
    def stack(cls, preds: Sequence[Pred], actions: Sequence[Tensor | None], state: State) -> Preds:
        """One after the other; at least one."""
        has_reward, has_actions = preds[0].reward is not None, actions[0] is not None
        return cls(
            torch.stack([one.frame for one in preds], dim=1),
            torch.stack([one.reward for one in preds], dim=1) if has_reward else None,  # type: ignore[misc]
            torch.stack([one.tokens for one in preds], dim=1),
            torch.stack([one.logprob for one in preds], dim=1),
            torch.stack([one.entropy for one in preds], dim=1),
            tuple(k for k, one in enumerate(preds) if one.recontextualised),
            torch.stack(list(actions), dim=1) if has_actions else None,  # type: ignore[arg-type]
            state,
        )


@dataclass(frozen=True)
class Scores:
    """Teacher-forced: logprobs (B, F) of each true future frame's tokens, rewards (B, F) predicted for it or None."""

    logprobs: Tensor
    rewards: Tensor | None


@dataclass(frozen=True)
class WorldSpec:
    """What a world model takes and gives.

    resolution H = W in pixels; T0, N, n as in ``TokenLayout``; action_dim 0 for action-free; max_future: frames from
    one context; goal_conditioned: the first context frame is the goal.
    """

    resolution: int
    T0: int
    N: int
    n: int
    action_dim: int
    max_future: int
    has_reward: bool
    goal_conditioned: bool
    dtype: torch.dtype


def as_images(images: Any, num_frames: int | None, size: int, name: str) -> Tensor:
    """Clips (B, T, H, W, 3) or (B, T, 3, H, W), uint8 or floating point in [0, 1] -> floating point (B, T, 3, H, W).

    Raises UserError naming what does not fit: ``num_frames`` T (None: any), H = W = ``size``, dtype, range.
    """
    images = torch.as_tensor(images)
    shape = tuple(images.shape)
    if len(shape) != 5 or (shape[2:] != (size, size, 3) and shape[2:] != (3, size, size)):
        raise UserError(f"{name} of shape {shape}: expected (rows, frames, {size}, {size}, 3)")
    if num_frames not in (None, shape[1]):
        raise UserError(f"{name}: {shape[1]} frames, expected {num_frames}")
    if shape[2:] != (3, size, size):
        images = images.permute(0, 1, 4, 2, 3)
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise UserError(f"{name} of dtype {images.dtype}: expected uint8, or floating point in [0, 1]")
    if not (images >= 0).all() or not (images <= 1).all():
        raise UserError(f"{name}: floating-point values outside [0, 1], or not finite; bytes must be uint8")
    return images


def as_bytes(images: Tensor) -> Tensor:
    """Floating point (..., 3, H, W), clamped to [0, 1] -> uint8 (..., H, W, 3)."""
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1)
