"""Space-time augmentation (He et al. 2024, section 3.3): what a training clip loses, and what the network gets of it.

Per batch a frame factor m, per clip a scale s and a noise level; in the paper larger factors are drawn more often, in
proportion to their size (its example: 8x twice as often as 4x).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.venhancer.model.conditioning import Fill
from toolkit.venhancer.train.config import WEIGHTINGS


@dataclass(frozen=True)
class Degraded:
    """A batch of clips and what is left of them, all at the original size, float32 in [-1, 1].

    Attributes:
        clean: (B, F, 3, H, W). keys: the key frames, down-scaled and resized back (B, K, 3, H, W).
        fill: every frame made of the key frames around it (B, F, 3, H, W).
        frame_factor: m. scale, noise_level: [B]; noise level 0 leaves latents as they are.
    """

    clean: Tensor
    keys: Tensor
    fill: Tensor
    frame_factor: int
    scale: Tensor
    noise_level: Tensor


def frames_for(frame_factor: int, most: int, most_keys: int | None = None) -> int:
    """The longest clip of at most ``most`` frames, and ``most_keys`` key frames, that starts and ends on key frames."""
    intervals = (most - 1) // frame_factor
    return (intervals if most_keys is None else min(intervals, most_keys - 1)) * frame_factor + 1


def draw_frame_factor(rng: np.random.Generator, most: int, weighting: str = "proportional") -> int:
    """m in 1..most, with a probability in proportion to ``WEIGHTINGS[weighting]``."""
    weights = np.arange(1.0, most + 1) ** WEIGHTINGS[weighting]
    return int(rng.choice(np.arange(1, most + 1), p=weights / weights.sum()))


def draw_scales(rng: np.random.Generator, batch: int, most: float, weighting: str = "proportional") -> Tensor:
    """s in [1, most], real numbers, with a density in proportion to ``WEIGHTINGS[weighting]``."""
    u, power = rng.random(batch), WEIGHTINGS[weighting]
    scales = most**u if power == -1 else (1 + u * (most ** (power + 1) - 1)) ** (1 / (power + 1))
    return torch.from_numpy(scales).float()


def degrade(clips: Tensor, frame_factor: int, scale: Tensor, noise_level: Tensor, fill: Fill) -> Degraded:
    """Keep every ``frame_factor``-th frame of uint8 clips (B, F, 3, H, W), make it ``scale`` times smaller and resize
    it back."""
    clean = clips.float() / 127.5 - 1
    size = (clips.shape[-2], clips.shape[-1])
    keys = torch.stack(
        [_down_and_up(clip, float(s), size, fill.mode) for clip, s in zip(clean[:, ::frame_factor], scale, strict=True)]
    )
    filled = [
        sum(weight * keys[:, key] for key, weight in fill.parts(frame, frame_factor)) for frame in range(clean.shape[1])
    ]
    return Degraded(clean, keys, torch.stack(filled, dim=1), frame_factor, scale, noise_level)  # type: ignore[arg-type]


def _down_and_up(frames: Tensor, scale: float, size: tuple[int, int], mode: str) -> Tensor:
    """Antialiased bicubic down to 1 / scale of the size, 8-bit as a file would hold it, and back up."""
    small = (max(1, round(size[0] / scale)), max(1, round(size[1] / scale)))
    if small == size:
        return frames
    low = F.interpolate(frames, size=small, mode="bicubic", antialias=True)
    low = ((low + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
    return F.interpolate(low, size=size, mode=mode, align_corners=False)
