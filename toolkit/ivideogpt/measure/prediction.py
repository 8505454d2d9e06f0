"""Measures of imagination on held-out clips: how near it stays to the truth, and to what a goal asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolkit.ivideogpt.measure.setting import Setting, frame_ssim, psnr
from toolkit.ivideogpt.rollout import future_actions
from toolkit.show import figures
from toolkit.show.table import Table


def measure_prediction(setting: Setting) -> dict[str, Any]:
    """PSNR and SSIM of imagined frames, by horizon, against copying the last frame and against other clips' actions.

    And PLIPS where ``measure.perceptual`` asks for it, of the first sample.

    ``predicted`` averages the predicted frames alone; ``all_frames`` adds the reconstructed context, as the release's
    evaluation does. With several samples a clip, ``best`` takes each clip's best one, as the paper's tables do.
    """
    num_context, clip = setting.num_context, setting.test
    context, future = clip.frames[:, :num_context], clip.frames[:, num_context:]
    actions = future_actions(clip, num_context, future.shape[1]) if setting.config.action_conditioned else None
    samples = [
        setting.imagine(context, actions, future.shape[1], f"sample_{i}")[0]
        for i in range(setting.config.measure.num_samples)
    ]
    scores = torch.stack([psnr(sample, future) for sample in samples])  # (m, B, K)
    last = context[:, -1:].expand_as(future)
    copied = psnr(last, future)
    found: dict[str, Any] = {
        "psnr.predicted": float(scores.mean()),
        "psnr.copy_last": float(copied.mean()),
        "psnr.gain_over_copy": float(scores.mean() - copied.mean()),
        "ssim.predicted": float(frame_ssim(samples[0], future).mean()),
        "psnr.all_frames": float(torch.cat([_context_psnr(setting, context), scores[0]], 1).mean()),
    }
    found |= setting.plips(predicted=(samples[0], future), copy_last=(last, future))
    if len(samples) > 1:
        found[f"psnr.best_of_{len(samples)}"] = float(scores.mean(2).max(0).values.mean())
    lines = {"imagined": scores.mean((0, 1)), "last frame copied": copied.mean(0)}
    if actions is not None:
        misled = setting.imagine(context, actions.roll(1, 0), future.shape[1], "sample_0")[0]
        other = psnr(misled, future)
        found["psnr.other_actions"] = float(other.mean())
        found |= setting.plips(other_actions=(misled, future)) | _difference(scores[0] - other)
        lines["imagined with other actions"] = other.mean(0)
    found["cross_entropy"] = cross_entropy(setting, context, future, actions)
    found |= {f"psnr.step_{k + 1}": float(value) for k, value in enumerate(lines["imagined"])}
    _report(setting, lines)
    return found


def cross_entropy(setting: Setting, context: Tensor, future: Tensor, actions: Tensor | None) -> float:
    """Of true future frames, in nats per dynamics token (slots are not among them), teacher forced."""
    size, total = setting.config.measure.batch_size, 0.0
    for start in range(0, len(context), size):
        rows = slice(start, start + size)
        given = None if actions is None else actions[rows]
        total += float(setting.world.score(context[rows], future[rows], given).logprobs.cpu().double().sum())
    return -total / (len(context) * future.shape[1] * setting.world.tokenizer.layout.tokens_per_frame)


def _context_psnr(setting: Setting, context: Tensor) -> Tensor:
    tokenizer = setting.world.tokenizer
    made = [
        tokenizer.decode_context(tokenizer.encode_context(part.to(setting.device)).codes).frames.cpu()
        for part in context.split(setting.config.measure.batch_size)
    ]
    return psnr(torch.cat(made), context)


def _difference(gaps: Tensor) -> dict[str, float]:
    """True minus other actions in dB over clips, with its bootstrap interval (95 %, 2,000 draws)."""
    per_clip = gaps.mean(1)
    rng = torch.Generator().manual_seed(0)
    draws = per_clip[torch.randint(len(per_clip), (2000, len(per_clip)), generator=rng)].mean(1)
    low, high = torch.quantile(draws, torch.tensor([0.025, 0.975])).tolist()
    return {
        "psnr.true_minus_other_actions": float(per_clip.mean()),
        "psnr.true_minus_other_actions_low": low,
        "psnr.true_minus_other_actions_high": high,
    }


def _report(setting: Setting, lines: dict[str, Tensor]) -> None:
    steps = list(range(1, len(next(iter(lines.values()))) + 1))
    figures.curves(
        setting.run.path("figures", "prediction.png"),
        {name: (steps, values.tolist()) for name, values in lines.items()},
        xlabel="frames after the context",
        ylabel="PSNR, dB",
        caption="Imagined against true frames of held-out clips",
    )
    rows = [[name, float(values.mean()), float(values[0]), float(values[-1])] for name, values in lines.items()]
    table = Table("predicted frames, PSNR in dB", ["frames", "mean", "first", "last"], rows)
    table.save(setting.run.path("tables", "prediction.json"))


def measure_goal(setting: Setting) -> dict[str, Any]:
    """Goal conditioning: does imagination end at the goal that stands first in the context?

    Mean squared error of the last imagined frame to the goal, over that to another clip's goal put in its place; below
    1 the goal draws the end towards it. Needs ``goal_conditioned``.
    """
    if not setting.config.goal_conditioned:
        return {}
    clip, num_context = setting.test, setting.num_context
    context, num_frames = clip.frames[:, :num_context], clip.frames.shape[1] - num_context
    actions = future_actions(clip, num_context, num_frames) if setting.config.action_conditioned else None
    goal = context[:, 0]
    exchanged = torch.cat([context[:, :1].roll(1, 0), context[:, 1:]], 1)
    ends = [setting.imagine(one, actions, num_frames, "goal")[0][:, -1] for one in (context, exchanged)]
    errors = [float((end - goal).square().mean()) for end in ends]
    moved = (goal - context[:, -1]).square().mean()
    return {
        "mse.own_goal": errors[0],
        "mse.other_goal": errors[1],
        "mse.ratio": errors[0] / errors[1],
        "mse.start": float(moved),
    }
