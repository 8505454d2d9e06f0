"""What every measure is given, and the small things they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.data.episodes.clips import Clip
from toolkit.data.episodes.environments import ImageEnv
from toolkit.ivideogpt.clips import Clips, arrange
from toolkit.ivideogpt.config import TrainIVideoGPT
from toolkit.ivideogpt.rollout import imagine, sampling_of
from toolkit.metrics.plips import PLIPS
from toolkit.metrics.ssim import ssim
from toolkit.runs.record import Run
from toolkit.runs.seeds import derive
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.sampling import Sampling

PERCEPTUAL_PX = 64  # smaller frames are enlarged for PLIPS: its network halves a frame four times


@dataclass
class Setting:
    """A trained world model, its data and config; measures write tables, figures and numbers into ``run``."""

    world: WorldModel
    clips: Clips
    config: TrainIVideoGPT
    run: Run

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.world.tokenizer.device

    @property
    def num_context(self) -> int:
        """T0."""
        return self.config.context_length

    @property
    def sampling(self) -> Sampling | str | None:
        """How tokens are drawn."""
        return sampling_of(self.config)

    @cached_property
    def test(self) -> Clip:
        """Held-out clips as the model sees them."""
        return arrange(self.clips.test.fixed(self.config.measure.num_clips), self.config)

    @cached_property
    def perceptual(self) -> PLIPS | None:
        """The network of ``measure.perceptual``."""
        return PLIPS.load().to(self.device) if self.config.measure.perceptual else None

    def plips(self, **pairs: tuple[Tensor, Tensor]) -> dict[str, float]:
        """``plips.NAME`` of pairs of frames, mean over all of them; empty unless ``measure.perceptual``."""
        if self.perceptual is None:
            return {}
        size, network = self.config.measure.batch_size, self.perceptual
        return {f"plips.{name}": float(frame_plips(network, x, y, size).mean()) for name, (x, y) in pairs.items()}

    def seeds(self, num: int, name: str) -> list[int]:
        """One seed per row of imagination."""
        start = derive(self.config.seed, "imagine", name) % 2**40
        return list(range(start, start + num))

    def imagine(
        self, context: Tensor, actions: Tensor | None, num_frames: int, name: str, on_overflow: str = "raise"
    ) -> Any:
        """``imagine`` of this model, any number of clips: frames float (B, K, 3, H, W) in [0, 1], rewards or None."""
        size, seeds = self.config.measure.batch_size, self.seeds(len(context), name)
        parts = []
        for start in range(0, len(context), size):
            stop = start + size
            rows = None if actions is None else actions[start:stop]
            given = (context[start:stop], rows, num_frames, seeds[start:stop])
            parts.append(imagine(self.world, *given, self.sampling, on_overflow))
        rewards = [reward for _, reward in parts if reward is not None]
        return torch.cat([frames for frames, _ in parts]), torch.cat(rewards) if rewards else None


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Per frame in dB, (...), of frames (..., 3, H, W) in [0, 1] (clamped first); at most 50, for equal ones."""
    error = (x.clamp(0, 1) - y).square().mean((-1, -2, -3))
    return -10 * torch.log10(error.clamp_min(1e-5))


def frame_ssim(x: Tensor, y: Tensor) -> Tensor:
    """SSIM per frame, (...), of frames (..., 3, H, W) in [0, 1]."""
    flat = ssim(x.clamp(0, 1).flatten(0, -4), y.flatten(0, -4))
    return flat.view(x.shape[:-3])


def frame_plips(network: PLIPS, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """PLIPS per frame, (...), of frames (..., 3, H, W) in [0, 1] (clamped first); lower is nearer.

    Frames of less than 64 pixels are enlarged by a whole factor, each pixel repeated.
    """
    factor = -(-PERCEPTUAL_PX // min(x.shape[-2:]))
    device = next(network.parameters()).device

    def pictures(part: Tensor) -> Tensor:
        return 255 * part.to(device).clamp(0, 1).repeat_interleave(factor, -1).repeat_interleave(factor, -2)

    parts = zip(x.flatten(0, -4).split(batch_size), y.flatten(0, -4).split(batch_size), strict=True)
    return torch.cat([network(pictures(one), pictures(other)).cpu() for one, other in parts]).view(x.shape[:-3])


@dataclass(frozen=True)
class Counterfactual:
    """What the true environment does under chosen actions.

    context (B, T0, 3, H, W), actions (B, K, A), frames (B, K, 3, H, W), rewards (B, K). Several action sequences from
    one start are separate rows; ``start`` numbers the starts.
    """

    context: Tensor
    actions: Tensor
    frames: Tensor
    rewards: Tensor
    start: Tensor


def play_true(env: ImageEnv, starts: Sequence[int], sequences: np.ndarray, num_context: int) -> Counterfactual:
    """Run action sequences (S, M, K, A) in the environment: M from each of the S starts (seeds).

    With several context frames the environment first stands still for as many steps less one.
    """
    rows: dict[str, list[Any]] = {"context": [], "frames": [], "rewards": [], "start": []}
    still = np.zeros(sequences.shape[-1], np.float32)
    for index, seed in enumerate(starts):
        for actions in sequences[index]:
            frame, _ = env.reset(seed=int(seed))
            rows["context"].append(np.stack([frame] + [env.step(still)[0] for _ in range(num_context - 1)]))
            seen = [env.step(action)[:2] for action in actions]
            rows["frames"].append(np.stack([one for one, _ in seen]))
            rows["rewards"].append([float(reward) for _, reward in seen])
            rows["start"].append(index)
    env.close()
    return Counterfactual(
        images(rows["context"]),
        torch.from_numpy(sequences.reshape(-1, *sequences.shape[2:]).astype(np.float32)),
        images(rows["frames"]),
        torch.tensor(rows["rewards"]),
        torch.tensor(rows["start"]),
    )


def images(clips: list[np.ndarray]) -> Tensor:
    """uint8 clips (T, H, W, 3) -> float (B, T, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3).float() / 255
