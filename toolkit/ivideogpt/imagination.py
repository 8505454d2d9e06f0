"""The roll-out stage: truth, reconstruction, imagination and other actions, side by side, as mp4, GIF and stills."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from toolkit.data.episodes_clips import Clip
from toolkit.ivideogpt.clips import Clips, arrange
from toolkit.ivideogpt.config import TrainIVideoGPT
from toolkit.ivideogpt.measures_setting import future_actions, imagine, sampling_of
from toolkit.ivideogpt.video import Frames, film_strip, save_gif, save_mp4, save_png, side_by_side
from toolkit.runs.record import Run
from toolkit.schema import UserError
from toolkit.zoo.world_model import WorldModel


def roll_out(world: WorldModel, clips: Clips, config: TrainIVideoGPT, run: Run) -> None:
    """Imagine held-out clips and write ``samples/rollout.mp4``, ``.gif`` and one still strip per clip.

    The actions' own future stands beside those of the opposite actions and of standing still, from the same noise.
    Raises UserError when more frames are asked for than the positions or the recorded actions hold.
    """
    clip = arrange(clips.test.fixed(config.rollout.num_clips), config)
    rows = imagined_rows(world, clip, config)
    video = side_by_side(rows, config.rollout.scale)
    save_mp4(run.path("samples", "rollout.mp4"), video, config.rollout.rate_fps)
    save_gif(run.path("samples", "rollout.gif"), video, config.rollout.rate_fps)
    for index in range(min(4, len(clip))):
        strip = film_strip(rows, index, max(1, config.rollout.scale // 2))
        save_png(run.path("samples", f"clip_{index}.png"), strip)


def imagined_rows(world: WorldModel, clip: Clip, config: TrainIVideoGPT) -> dict[str, Frames]:
    """``{label: frames [B, T, H, W, 3]}``; every row starts with the context, reconstructed where it is decoded."""
    num_context = config.context_length
    num_frames = config.rollout.num_frames or clip.frames.shape[1] - num_context
    _check(world, clip, config, num_frames)
    context = clip.frames[:, :num_context]
    seeds, how = range(len(clip)), sampling_of(config)
    rows = {"truth": clip.frames, "reconstruction": _reconstructed(world, clip.frames)}
    actions = future_actions(clip, num_context, num_frames) if config.action_conditioned else None
    shown = {"imagined": actions}
    if actions is not None:
        low, high = (torch.tensor(world.config[f"action_{name}"]) for name in ("low", "high"))
        shown["imagined, opposite actions"] = low + high - actions
        shown["imagined, at rest"] = torch.clamp(torch.zeros_like(actions), low, high)
    for label, chosen in shown.items():
        frames, _ = imagine(world, context, chosen, num_frames, list(seeds), how)
        rows[label] = torch.cat([context, frames], 1)
    return {label: to_bytes(frames) for label, frames in rows.items()}


def _check(world: WorldModel, clip: Clip, config: TrainIVideoGPT, num_frames: int) -> None:
    spec = world.spec
    if num_frames > spec.max_future:
        raise UserError(f"rollout.num_frames={num_frames}: the transformer's positions hold {spec.max_future}")
    if clip.actions is not None and config.action_conditioned:
        there = clip.actions.shape[1] - config.context_length + 1
        if num_frames > there:
            raise UserError(
                f"rollout.num_frames={num_frames}: clips have actions for {there}; raise num_frames of the clips"
            )


def _reconstructed(world: WorldModel, frames: Tensor) -> Tensor:
    tokenizer = world.tokenizer
    made = [tokenizer.detokenize(tokenizer.tokenize(part.to(tokenizer.device))).cpu() for part in frames.split(16)]
    return torch.cat(made)


def to_bytes(frames: Tensor) -> Frames:
    """[B, T, 3, H, W] in [0, 1] -> uint8 [B, T, H, W, 3]."""
    scaled = (frames.clamp(0, 1) * 255 + 0.5).to(torch.uint8)
    return np.ascontiguousarray(scaled.permute(0, 1, 3, 4, 2).numpy())
