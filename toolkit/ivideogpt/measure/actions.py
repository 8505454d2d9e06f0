"""Does what is imagined obey the actions? Measured where the true environment tells what they would have done."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.data.episodes.environments import one_hot
from toolkit.ivideogpt.control.env import action_range
from toolkit.ivideogpt.film import film_strip, save_png
from toolkit.ivideogpt.measure.setting import Counterfactual, Setting, play_true, psnr
from toolkit.ivideogpt.measure.tracking import TRACKED, displacement, pearson, spearman
from toolkit.runs.seeds import derive
from toolkit.show.table import Table

NUM_REWARD_SEQUENCES = 256
REWARD_STARTS = 16
LEAST_MOVE = 0.02  # of the frame's edge: smaller true moves have no sign worth comparing


def measure_actions(setting: Setting) -> dict[str, Any]:
    """Every direction from the same starts: imagined against true displacement of the thing that actions move.

    ``r.x`` and ``r.y``: correlation of displacement after the last frame over starts and directions; ``sign``: share of
    moves whose direction is right; ``error_px``: distance between imagined and true place. Only for environments whose
    simulator is here and whose moving thing has a known colour.
    """
    env = setting.clips.dataset.env
    if not setting.config.action_conditioned or env not in TRACKED:
        return {}
    names, sequences = _directions(setting)
    truth = play_true(
        setting.clips.dataset.make_env(), _starts(setting, len(sequences)), sequences, setting.num_context
    )
    made, _ = setting.imagine(truth.context, truth.actions, truth.actions.shape[1], "actions")
    found: dict[str, Any] = {"psnr.imagined": float(psnr(made, truth.frames).mean())}
    found["psnr.copy_last"] = float(psnr(truth.context[:, -1:].expand_as(made), truth.frames).mean())
    for thing, color in TRACKED[env].items():
        moved, really = (displacement(frames, truth.context[:, -1], color) for frames in (made, truth.frames))
        found |= _agreement(thing, moved, really, setting.clips.resolution)
        if thing == "agent":
            _table(setting, names, moved, really)
    _picture(setting, names, made, truth)
    return found


def _directions(setting: Setting) -> tuple[list[str], np.ndarray]:
    """Names and sequences (S, M, K, A): each action dimension held at its ends (and at rest) for the whole horizon.

    Where actions are a choice, every choice is held.
    """
    num_frames = setting.config.num_frames - setting.num_context
    low, high = action_range(setting.world)
    middle = np.clip(0, low, high)
    names, rows = ["rest"], [middle]
    choices = setting.world.config["discrete"]
    if choices is not None:
        each = np.eye(choices, dtype=np.float32)
        names, rows = [f"choice {k}" for k in range(choices)], list(np.tile(each, len(low) // choices))
    for axis in range(len(low) if choices is None else 0):
        for end, bound in (("low", low), ("high", high)):
            row = middle.copy()
            row[axis] = bound[axis]
            names.append(f"action {axis + 1} {end}")
            rows.append(row)
    sequences = np.repeat(np.stack(rows)[:, None], num_frames, 1)
    return names, np.repeat(sequences[None], setting.config.measure.num_counterfactual, 0)


def _starts(setting: Setting, num: int) -> list[int]:
    """Seeds of worlds that no recorded episode came from."""
    start = derive(0, "counterfactual", "starts") % 2**30
    return list(range(start, start + num))


def _agreement(thing: str, made: Tensor, true: Tensor, size_px: int) -> dict[str, float]:
    """Of displacements (rows, K, 2)."""
    found = {f"r.{name}.{thing}": pearson(made[:, -1, axis], true[:, -1, axis]) for axis, name in enumerate("xy")}
    found[f"r.least.{thing}"] = min(found.values())
    found |= {f"r_first.{name}.{thing}": pearson(made[:, 0, axis], true[:, 0, axis]) for axis, name in enumerate("xy")}
    real = true[:, -1].abs() > LEAST_MOVE
    right = (made[:, -1].sign() == true[:, -1].sign())[real]
    found[f"sign.{thing}"] = float(right.float().mean()) if len(right) else 0.0
    found[f"error_px.{thing}"] = float((made - true)[:, -1].norm(dim=-1).mean()) * size_px
    return found


def _table(setting: Setting, names: list[str], made: Tensor, true: Tensor) -> None:
    size_px, num = setting.clips.resolution, len(names)
    rows = []
    for index, name in enumerate(names):
        mine, real = (one[index::num, -1].mean(0) * size_px for one in (made, true))
        rows.append([name, *(round(float(value), 2) for value in (*mine, *real))])
    columns = ["action held", "imagined x, px", "imagined y, px", "true x, px", "true y, px"]
    note = "mean displacement of the moving object after the last frame"
    Table("what each action does", columns, rows, note).save(setting.run.path("tables", "actions.json"))


def _picture(setting: Setting, names: list[str], made: Tensor, truth: Counterfactual) -> None:
    """The first start under every action, true above imagined."""
    rows = {}
    for index, name in enumerate(names[:9]):
        for label, frames in (("true", truth.frames), ("imagined", made)):
            clip = torch.cat([truth.context[index : index + 1, -1:], frames[index : index + 1]], 1)
            rows[f"{name}, {label}"] = (clip.permute(0, 1, 3, 4, 2).numpy() * 255).astype(np.uint8)
    save_png(setting.run.path("samples", "actions.png"), film_strip(rows, 0, max(1, 128 // setting.clips.resolution)))


def measure_reward(setting: Setting) -> dict[str, Any]:
    """The reward head: R² on held-out clips (teacher forced), and whether imagined returns rank action sequences.

    ``rank``: mean over starts of Spearman's correlation between imagined and true return of random action sequences.
    """
    if not setting.world.spec.has_reward:
        return {}
    clip, num_context = setting.test, setting.num_context
    assert clip.rewards is not None
    stop = clip.frames.shape[1] - 1
    true = clip.rewards[:, num_context - 1 : stop]
    actions = None if clip.actions is None else clip.actions[:, num_context - 1 : stop]
    size = setting.config.measure.batch_size
    read = []
    for start in range(0, len(clip), size):
        rows = slice(start, start + size)
        given = actions[rows] if actions is not None and setting.config.action_conditioned else None
        scores = setting.world.score(clip.frames[rows, :num_context], clip.frames[rows, num_context:], given)
        assert scores.rewards is not None
        read.append(scores.rewards.cpu())
    error = (torch.cat(read) - true).square().mean()
    found: dict[str, Any] = {"r2": float(1 - error / true.var(correction=0).clamp_min(1e-12))}
    if setting.clips.dataset.env and setting.config.action_conditioned:
        found["rank"] = _rank(setting)
    return found


def _rank(setting: Setting) -> float:
    """Returns of ``NUM_REWARD_SEQUENCES`` smooth random sequences over ``REWARD_STARTS`` starts."""
    per_start = NUM_REWARD_SEQUENCES // REWARD_STARTS
    num_frames = setting.config.num_frames - setting.num_context
    low, high = (bound.astype(np.float64) for bound in action_range(setting.world))
    rng = np.random.default_rng(0)
    held = rng.uniform(low, high, (REWARD_STARTS, per_start, 1, len(low)))  # long pushes differ more than jitter does
    sequences = np.clip(
        held + rng.normal(0, 0.2, (REWARD_STARTS, per_start, num_frames, len(low))) * (high - low), low, high
    )
    starts = _starts(setting, 2 * REWARD_STARTS)[REWARD_STARTS:]
    sequences = one_hot(sequences, setting.world.config["discrete"])
    truth = play_true(setting.clips.dataset.make_env(), starts, sequences.astype(np.float32), setting.num_context)
    _, rewards = setting.imagine(truth.context, truth.actions, num_frames, "reward")
    assert rewards is not None
    made, true = rewards.sum(1), truth.rewards.sum(1)
    ranks = [spearman(made[truth.start == k], true[truth.start == k]) for k in range(REWARD_STARTS)]
    moved = [rank for k, rank in enumerate(ranks) if float(true[truth.start == k].std()) > 1e-6]
    return float(np.mean(moved)) if moved else 0.0
