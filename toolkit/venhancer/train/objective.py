"""What training minimises: the error of v, given degraded clips (He et al. 2024, sections 3.3 and 4.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from toolkit.venhancer.model import residuals
from toolkit.venhancer.model.codec import Codec
from toolkit.venhancer.model.conditioning import key_frame_index
from toolkit.venhancer.pipeline import VideoEnhancePipeline
from toolkit.venhancer.train.augment import Degraded
from toolkit.venhancer.train.config import WEIGHTINGS


class Denoising(nn.Module):
    """The training loss of a network over degraded clips.

    Args:
        controlled: with key frames, or the base alone. step_weighting: a key of ``WEIGHTINGS``: how often a diffusion
            step is drawn.
    """

    def __init__(self, pipeline: VideoEnhancePipeline, controlled: bool, step_weighting: str = "uniform") -> None:
        super().__init__()
        self.denoiser = pipeline.denoiser
        self.pipeline, self.controlled = [pipeline], controlled  # in a list: no parameters of this module
        self.power = 1 / (WEIGHTINGS[step_weighting] + 1)

    def draw(self, batch: Degraded, num: int) -> dict[str, Tensor]:
        """What is random in the loss of ``num`` clips like those of ``batch``, one row each: of the diffusion step, the
        noise of the clip, and that of its key frames."""
        codec, device = self.pipeline[0].codec, batch.clean.device
        size = [side // codec.factor for side in batch.clean.shape[-2:]]
        drawn = {"step": torch.rand(num, device=device)}
        for name, frames in {"noise": batch.clean, "key_noise": batch.keys}.items():
            if name == "noise" or self.controlled:
                drawn[name] = torch.randn(num, codec.channels, frames.shape[1], *size, device=device)
        return drawn

    def forward(self, batch: Degraded, text: Tensor, drawn: dict[str, Tensor] | None = None) -> Tensor:
        """Mean squared error of v at one step for each clip. drawn: as ``draw`` gives it."""
        pipeline = self.pipeline[0]
        drawn = self.draw(batch, len(text)) if drawn is None else drawn
        x0, hint = latents_of(pipeline, batch)
        count = len(pipeline.scheduler)
        step = (drawn["step"] ** self.power * count).long().clamp(max=count - 1)
        noise = drawn["noise"].to(x0)
        x, target = pipeline.scheduler.add_noise(x0, noise, step), pipeline.scheduler.velocity(x0, noise, step)
        given = conditions(pipeline, batch, hint, drawn["key_noise"].to(hint)) if self.controlled else {}
        error = (pipeline.velocity(x, step, text, **given) - target).square()
        return (pipeline.loss_weight(step, x) * error).mean()


@torch.no_grad()
def latents_of(pipeline: VideoEnhancePipeline, batch: Degraded) -> tuple[Tensor, Tensor]:
    """x_0 (B, C, F, h, w) of what the pipeline diffuses, and the key frames (B, C, K, h, w), not noised yet."""
    clean, keys = _encode(pipeline.codec, batch.clean), _encode(pipeline.codec, batch.keys)
    if not pipeline.diffuses_residuals:
        return clean, keys
    fill = _encode(pipeline.codec, batch.fill)
    wide = [residuals.with_margin(key) for key in keys.unbind(dim=2)]
    blends = [pipeline.fill.parts(frame, batch.frame_factor) for frame in range(clean.shape[2])]
    units = [residuals.expected([(wide[key], weight) for key, weight in parts], batch.scale) for parts in blends]
    return (clean - fill) / torch.stack(units, dim=2), torch.stack([residuals.standardised(key) for key in wide], dim=2)


def conditions(pipeline: VideoEnhancePipeline, batch: Degraded, hint: Tensor, noise: Tensor) -> dict[str, Any]:
    """The control network's arguments: the hint noised with ``noise`` to each clip's level, the level and the scale."""
    level = batch.noise_level.to(hint.device)
    step = (level - 1).clamp(min=0)
    noised = pipeline.scheduler.add_noise(hint, noise, step)
    hint = torch.where((level > 0)[:, None, None, None, None], noised, hint)
    frames = batch.clean.shape[1]
    index = key_frame_index(0, frames, batch.frame_factor).expand(len(hint), -1).to(hint.device)
    return {"hint": hint, "t_hint": step, "up_scale": batch.scale.to(hint.device), "key_frame_index": index}


def _encode(codec: Codec, frames: Tensor) -> Tensor:
    """(B, F, 3, H, W) -> (B, C, F, h, w)."""
    latents = codec.encode(frames.flatten(0, 1))
    return latents.unflatten(0, frames.shape[:2]).transpose(1, 2)
