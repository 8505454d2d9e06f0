"""The roll-out stage: truth, reconstruction, imagination and other actions, side by side, as mp4, GIF and stills."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from toolkit.data.episodes.clips import Clip, ClipSource
from toolkit.errors import UserError
from toolkit.ivideogpt.clips import Clips, arrange, window_frames
from toolkit.ivideogpt.config import TrainIVideoGPT
from toolkit.ivideogpt.control.env import action_range
from toolkit.ivideogpt.film import Frames, film_strip, save_gif, save_mp4, save_png, side_by_side
from toolkit.runs.record import Run
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.sampling import SAMPLED, Sampling
from toolkit.zoo.world.tokenizer import CompressiveVQModel


def roll_out(world: WorldModel, clips: Clips, config: TrainIVideoGPT, run: Run) -> None:
    """Imagine held-out clips and write ``samples/rollout.mp4``, ``.gif`` and one still strip per clip.

    The actions' own future stands beside those of the opposite actions and of standing still, from the same noise.
    Raises UserError when more frames are asked for than the positions hold, unless ``rollout.on_overflow=recontext``
    goes on from imagined frames (recorded), or than any episode has.
    """
    num_frames = imagined_frames(config)
    check_horizon(config, world.tokenizer, world.transformer.config.max_position_embeddings)
    clip = arrange(rollout_source(clips, config).fixed(config.rollout.num_clips), config)
    most, kept = world.spec.max_future, world.config["kept_frames"]
    renewed = max(0, (num_frames - 1 - kept) // (most - kept))
    run.record["rollout"] = {"frames": num_frames, "context_renewed": renewed}
    rows = imagined_rows(world, clip, config)
    video = side_by_side(rows, config.rollout.scale)
    save_mp4(run.path("samples", "rollout.mp4"), video, config.rollout.rate_fps)
    save_gif(run.path("samples", "rollout.gif"), video, config.rollout.rate_fps)
    for index in range(min(4, len(clip))):
        strip = film_strip(rows, index, max(1, config.rollout.scale // 2))
        save_png(run.path("samples", f"clip_{index}.png"), strip)


def imagined_frames(config: TrainIVideoGPT) -> int:
    """Frames of a roll-out after its context."""
    return config.rollout.num_frames or config.num_frames - config.context_length


def rollout_source(clips: Clips, config: TrainIVideoGPT) -> ClipSource:
    """The held-out clips of a roll-out. Raises UserError where no episode is as long."""
    num_frames = imagined_frames(config)
    try:
        return ClipSource(clips.dataset.test, window_frames(config, num_frames), config.data.frame_step)
    except UserError as error:
        raise UserError(f"rollout.num_frames={num_frames}: of the held-out episodes, {error}") from None


def num_rows(config: TrainIVideoGPT, discrete: bool) -> int:
    """Of a roll-out's picture: truth, reconstruction, imagination, and what other actions lead to."""
    return 3 + (0 if not config.action_conditioned else 1 if discrete else 2)


def check_horizon(config: TrainIVideoGPT, tokenizer: CompressiveVQModel, num_positions: int) -> None:
    """A roll-out fits the positions, or may renew its context; an imagined plan fits them. Raises UserError."""
    most = tokenizer.layout.max_future(num_positions)
    if config.rollout.on_overflow == "raise" and imagined_frames(config) > most:
        raise UserError(
            f"rollout.num_frames={config.rollout.num_frames}: the transformer's positions hold {most}; "
            "rollout.on_overflow=recontext goes on from imagined frames"
        )
    imagining = [name for name in config.plan.planners if name in ("cem", "shooting", "mbpo")]
    if "plan" in config.stages() and imagining and config.plan.horizon > most:
        raise UserError(
            f"plan.horizon={config.plan.horizon}: the transformer's positions hold {most} frames after the context, "
            f"and {imagining[0]} imagines no further; give at most {most}"
        )


def imagined_rows(world: WorldModel, clip: Clip, config: TrainIVideoGPT) -> dict[str, Frames]:
    """``{label: frames (B, T, H, W, 3)}``; every row starts with the true context frames."""
    num_context = config.context_length
    context, num_frames = clip.frames[:, :num_context], clip.frames.shape[1] - num_context
    seeds, how = list(range(len(clip))), sampling_of(config)
    rows = {"truth": clip.frames, "reconstruction": _reconstructed(world, clip.frames)}
    actions = future_actions(clip, num_context, num_frames) if config.action_conditioned else None
    shown = {"imagined": actions}
    choices = world.config["discrete"]
    if actions is not None and choices is not None:
        shown["imagined, next choice"] = actions.unflatten(-1, (-1, choices)).roll(1, -1).flatten(-2)
    elif actions is not None:
        low, high = (torch.from_numpy(bound) for bound in action_range(world))
        shown["imagined, opposite actions"] = low + high - actions
        shown["imagined, at rest"] = torch.clamp(torch.zeros_like(actions), low, high)
    for label, chosen in shown.items():
        frames, _ = imagine(world, context, chosen, num_frames, seeds, how, config.rollout.on_overflow)
        rows[label] = torch.cat([context, frames], 1)
    return {label: to_bytes(frames) for label, frames in rows.items()}


def _reconstructed(world: WorldModel, frames: Tensor) -> Tensor:
    """Every frame through the tokenizer, given the clip's own context."""
    tokenizer = world.tokenizer
    num_context = tokenizer.config.context_length
    made = []
    for part in frames.split(16):
        seen, later = (one.to(tokenizer.device) for one in (part[:, :num_context], part[:, num_context:]))
        encoded = tokenizer.encode_context(seen)
        decoded = tokenizer.decode_context(encoded.codes)
        future = tokenizer.decode_frames(tokenizer.encode_frames(later, encoded), decoded)
        made.append(torch.cat([decoded.frames, future], 1).cpu())
    return torch.cat(made)


def to_bytes(frames: Tensor) -> Frames:
    """(B, T, 3, H, W) in [0, 1] -> uint8 (B, T, H, W, 3)."""
    scaled = (frames.clamp(0, 1) * 255 + 0.5).to(torch.uint8)
    return np.ascontiguousarray(scaled.permute(0, 1, 3, 4, 2).numpy())


def sampling_of(config: TrainIVideoGPT) -> Sampling | str | None:
    """``rollout.sampling`` as the zoo's choice; None, as the model says, where the config stands at its defaults."""
    rollout = config.rollout
    if rollout.sampling == "greedy":
        return "greedy"
    chosen = Sampling(rollout.temperature, rollout.top_k)
    return None if chosen == SAMPLED and rollout.as_trained else chosen


def imagine(
    world: WorldModel,
    context: Tensor,
    actions: Tensor | None,
    num_frames: int,
    seeds: Sequence[int],
    sampling: Sampling | str | None,
    on_overflow: str = "raise",
) -> tuple[Tensor, Tensor | None]:
    """Roll out from context (B, T0, 3, H, W): frames (B, K, 3, H, W) in [0, 1] and rewards (B, K) or None, on the CPU.

    ``actions`` (B, K, A): row k leads to frame k; None for an action-free model.
    """
    state = world.begin(context, list(seeds), frames=num_frames)
    preds = world.rollout(state, actions, sampling, on_overflow, num_frames=num_frames)
    frames = preds.frames.permute(0, 1, 4, 2, 3).float().div(255)
    return frames.cpu(), None if preds.rewards is None else preds.rewards.cpu()


def future_actions(clip: Clip, num_context: int, num_frames: int) -> Tensor | None:
    """The actions that lead to the first ``num_frames`` frames after the context, (B, K, A)."""
    return None if clip.actions is None else clip.actions[:, num_context - 1 : num_context - 1 + num_frames]
