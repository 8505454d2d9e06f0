"""Recording episodes of an environment into a folder of npz files; a crash costs one episode, never the others."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.episodes.environments import ImageEnv, Recorded, find, num_choices, one_hot
from toolkit.data.episodes.episode import Episode, write_episode
from toolkit.errors import JobError, UserError, with_kind
from toolkit.plain_files import read_object
from toolkit.runs.files import write_json
from toolkit.runs.machine import check_fits, check_side
from toolkit.runs.seeds import derive

log = logging.getLogger(__name__)
MANIFEST = "episodes.json"
MOST_FAILURES_IN_A_ROW = 3
PACKAGES = {"pusht": "gym-pusht", "kuka": "pybullet"}


@dataclass(frozen=True)
class Plan:
    """What to record: ``num_episodes`` of ``num_frames`` frames of ``size_px``; episode i is drawn for (seed, i)."""

    env: str
    num_episodes: int = 100
    num_frames: int = 30
    size_px: int = 64
    seed: int = 0

    def check(self) -> None:
        """Raises UserError on a number out of range, or beyond memory."""
        for name, least in (("num_episodes", 1), ("num_frames", 2), ("size_px", 8), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name.replace('_', '-')}={getattr(self, name)}: must be at least {least}")
        check_frames("num-frames", self.num_frames, "size-px", self.size_px)


def check_frames(num_key: str, num_frames: int, size_key: str, size_px: int) -> None:
    """Raises UserError where a frame, or all of an episode, is more than memory holds."""
    check_side(size_key, size_px, 3)
    check_fits(num_key, num_frames, 3 * size_px**2)


def record(plan: Plan, dest: str | Path) -> tuple[int, list[str]]:
    """Record into folder ``dest``, going on where an earlier call stopped; (episodes there, what failed).

    An environment that raises loses that episode only, and is built anew. Raises UserError when the folder holds
    something else, JobError when MOST_FAILURES_IN_A_ROW episodes fail one after the other.
    """
    plan.check()
    recorded = find(plan.env, may_import=True)
    folder = Path(dest)
    env = _start(recorded, plan)
    _claim(folder, plan, env, recorded)
    problems: list[str] = []
    in_a_row = 0
    for number in range(plan.num_episodes):
        path = folder / f"episode_{number:06d}.npz"
        if path.exists():
            continue
        try:
            write_episode(path, run_episode(env, recorded, plan, number))
            in_a_row = 0
        except UserError:
            raise
        except Exception as error:  # whatever the environment raises
            problems.append(f"episode {number}: {with_kind(error)}")
            log.warning("%s: %s; the episodes before it are kept", plan.env, problems[-1])
            in_a_row += 1
            if in_a_row == MOST_FAILURES_IN_A_ROW:
                kept = len(list(folder.glob("episode_*.npz")))
                raise JobError(
                    f"{plan.env}: {in_a_row} episodes failed in a row, the last: {problems[-1]}; {kept} kept"
                ) from None
            env = _start(recorded, plan)
    env.close()
    return len(list(folder.glob("episode_*.npz"))), problems


def run_episode(env: ImageEnv, recorded: Recorded, plan: Plan, number: int) -> Episode:
    """One episode, a pure function of (seed, number); shorter where the environment ends it.

    Action rows are what was carried out: of a choice between actions the one-hot row, not the draw behind it.
    """
    rng = np.random.default_rng(derive(plan.seed, "record", number))
    frame, info = env.reset(seed=int(rng.integers(2**31)))
    space = env.action_space
    limits = {"action_low": space.low, "action_high": space.high}
    action = np.zeros(space.shape, np.float32)
    frames: list[Any] = []
    actions: list[Any] = []
    rewards: list[Any] = []
    for _ in range(plan.num_frames):
        frames.append(frame)
        action = one_hot(recorded.policy({**info, **limits}, action, rng), num_choices(env))
        frame, reward, terminated, _, info = env.step(action)
        actions.append(action)
        rewards.append(reward)
        if terminated:
            break
    return Episode(np.stack(frames), np.stack(actions), np.array(rewards, np.float32))


def _start(recorded: Recorded, plan: Plan) -> ImageEnv:
    return recorded.make(plan.size_px)


def _claim(folder: Path, plan: Plan, env: ImageEnv, recorded: Recorded) -> None:
    """Write the manifest, or hold the one that is there against the plan."""
    facts = {
        "env": plan.env,
        "num_frames": plan.num_frames,
        "size_px": plan.size_px,
        "seed": plan.seed,
        "action_low": env.action_space.low.tolist(),
        "action_high": env.action_space.high.tolist(),
        "licence": recorded.licence,
        "version": _version(plan.env),
    }
    if num_choices(env) is not None:
        facts["discrete"] = num_choices(env)
    before = read_manifest(folder)
    if before is None and any(folder.glob("*.npz")):
        raise UserError(f"{folder}: holds episodes that this command did not record; choose an empty folder")
    if before is not None and before != facts:
        key = next(key for key in facts if before.get(key) != facts[key])
        raise UserError(
            f"{folder}: holds episodes with {key}={before.get(key)}, not {facts[key]}; choose another folder"
        )
    if before is None:
        try:
            write_json(folder / MANIFEST, facts)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from None


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """What ``record`` wrote about a folder; None where there is nothing. Raises UserError when it is damaged."""

    path = Path(folder) / MANIFEST
    if not path.exists():
        return None
    try:
        facts = read_object(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it or record into another folder") from None
    if not isinstance(facts, dict):
        raise UserError(f"{path}: not a record of episodes; remove it or record into another folder")
    return facts


def _version(env: str) -> str:
    try:
        return metadata.version(PACKAGES.get(env, "gymnasium"))
    except metadata.PackageNotFoundError:
        return "unknown"
