"""The world model as a gymnasium environment: one imagined world, or many in one batched call per step.

Observations are uint8 frames (H, W, 3); actions are in the data's own units, whole numbers where they are a choice.
``reset(seed=s)`` and the same actions give the same bytes, alone or in a batch. An episode is truncated after
``horizon`` frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from PIL import Image

from toolkit.data.episodes.episode import as_bytes
from toolkit.errors import UserError
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.sampling import Sampling
from toolkit.zoo.world.state import Pred, State

Frame = NDArray[np.uint8]
Termination = Callable[[Frame, float], bool]  # (newest frame, its reward) -> whether the episode is over
MOST_SEED = 2**31
NARROW = 1e-3  # of a constant number of an action, or of 1 where that is smaller


def spaces_of(world: WorldModel) -> tuple[spaces.Box, Any]:
    """Observation and action space, Discrete where actions are. Raises UserError for a model without actions."""
    spec = world.spec
    if not spec.action_dim:
        raise UserError("the world model is action-free: an environment needs one that takes actions")
    low, high = action_range(world)
    observation = spaces.Box(0, 255, (spec.resolution, spec.resolution, 3), np.uint8)
    choices = world.config["discrete"]
    if choices is None:
        return observation, spaces.Box(low, high, dtype=np.float32)
    times = spec.action_dim // choices
    return observation, spaces.Discrete(choices) if times == 1 else spaces.MultiDiscrete([choices] * times)


def action_range(world: WorldModel) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Lowest and highest value of every number of an action, [A]; -1 and 1 where the model does not say.

    A number that never varied gets ``NARROW`` on both sides: spaces without width break learners, and the model has
    seen nothing else.
    """
    found = []
    for name, otherwise in (("action_low", -1.0), ("action_high", 1.0)):
        value: Any = world.config[name]
        found.append(np.asarray(value if value is not None else [otherwise] * world.spec.action_dim, np.float32))
    low, high = found
    margin = np.where(low == high, NARROW * np.maximum(np.abs(low), 1), 0).astype(np.float32)
    return low - margin, high + margin


class _Worlds:
    """What both environments share: starts, horizon, and one model step for all rows."""

    def __init__(
        self, world: WorldModel, starts: Any, horizon: int | None, sampling: Sampling | str | None, on_overflow: str
    ):
        self.world, self.sampling, self.on_overflow = world, sampling, on_overflow
        self.starts = as_bytes("starts", starts)
        spec = world.spec
        expected = (spec.T0, spec.resolution, spec.resolution, 3)
        if self.starts.ndim != 5 or self.starts.shape[1:] != expected or not len(self.starts):
            raise UserError(f"starts of shape {self.starts.shape}: expected (clips, {', '.join(map(str, expected))})")
        self.horizon = horizon or spec.max_future
        if self.horizon > spec.max_future and on_overflow == "raise":
            raise UserError(
                f"horizon={self.horizon}: the model imagines {spec.max_future} frames from one context; "
                "on_overflow='recontext' goes on from the last frames"
            )

    def begin(self, contexts: NDArray[np.uint8], seeds: Sequence[int]) -> State:
        return self.world.begin(contexts, list(seeds), frames=min(self.horizon, self.world.spec.max_future))

    def step(self, state: State, actions: Any) -> tuple[State, Pred]:
        """One frame of every row under ``actions`` (B, A), or choices where they are discrete."""
        choices = self.world.config["discrete"]
        rows = np.asarray(actions, np.float64) if choices is None else _chosen(actions, choices)
        return self.world.step(state, rows, self.sampling, self.on_overflow)

    def choose(self, rng: np.random.Generator, options: dict[str, Any] | None) -> tuple[NDArray[np.uint8], int]:
        """A context (T0, H, W, 3) and its number among ``starts``, -1 for one that ``options`` brings."""
        given = (options or {}).get("context")
        if given is None:
            number = int(rng.integers(len(self.starts)))
            return self.starts[number], number
        if isinstance(given, (int, np.integer)):
            if not 0 <= given < len(self.starts):
                raise UserError(f"options['context']={given}: there are starts 0..{len(self.starts) - 1}")
            return self.starts[given], int(given)
        context = np.asarray(given)
        if context.shape != self.starts.shape[1:] or context.dtype != np.uint8:
            raise UserError(f"options['context']: uint8 frames of shape {self.starts.shape[1:]} expected")
        return context, -1


def _chosen(actions: Any, num: int) -> NDArray[np.float32]:
    """Choices 0..num-1, (B,) or (B, k), as one-hot rows (B, k * num)."""
    found = np.asarray(actions)
    if not np.issubdtype(found.dtype, np.integer) or found.min() < 0 or found.max() >= num:
        raise UserError(f"action {found.tolist()}: expected whole numbers 0..{num - 1}")
    return np.eye(num, dtype=np.float32)[found].reshape(len(found), -1)


class WorldModelEnv(gymnasium.Env):
    """One imagined world.

    Args:
        world: the model.
        starts: uint8 (M, T0, H, W, 3), contexts that ``reset`` draws from; ``options={"context": k or frames}``
            chooses.
        horizon: frames of an episode; None: as many as the positions hold.
        sampling: None: as the model says; "greedy" or a ``Sampling``.
        termination: ends an episode by the newest frame and reward.
        on_overflow: "raise" or "recontext", for horizons beyond the positions.
        render_scale: whole factor by which ``render`` enlarges frames.

    Raises UserError where these do not fit together.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012 - gymnasium's own form

    def __init__(
        self,
        world: WorldModel,
        starts: Any,
        horizon: int | None = None,
        sampling: Sampling | str | None = None,
        termination: Termination | None = None,
        on_overflow: str = "raise",
        render_mode: str | None = "rgb_array",
        render_scale: int = 1,
    ):
        _check_render_mode(render_mode)
        self.worlds = _Worlds(world, starts, horizon, sampling, on_overflow)
        self.observation_space, self.action_space = spaces_of(world)
        self.termination, self.render_mode, self.render_scale = termination, render_mode, render_scale
        self.state: State | None = None
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """A start drawn for ``seed``; the observation is its last frame."""
        super().reset(seed=None if seed is None else int(seed))
        context, number = self.worlds.choose(self.np_random, options)
        self.state = self.worlds.begin(context[None], [int(self.np_random.integers(MOST_SEED))])
        self.t = 0
        return context[-1].copy(), {"start": number, "t": 0}

    def step(self, action: Any) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Imagine the next frame."""
        if self.state is None:
            raise gymnasium.error.ResetNeeded("reset() comes before step()")
        self.state, pred = self.worlds.step(self.state, np.asarray(action)[None])
        self.t += 1
        frame = pred.frame[0].cpu().numpy()
        reward = 0.0 if pred.reward is None else float(pred.reward[0])
        terminated = bool(self.termination and self.termination(frame, reward))
        info = {
            "t": self.t,
            "has_reward": pred.reward is not None,
            "tokens": pred.tokens[0].cpu().numpy(),
            "logprob": float(pred.logprob[0]),
            "entropy": float(pred.entropy[0]),
            "recontextualised": pred.recontextualised,
        }
        return frame, reward, terminated, self.t >= self.worlds.horizon, info

    def render(self) -> Frame:  # type: ignore[override]
        """The newest frame, enlarged ``render_scale`` times."""
        if self.state is None:
            raise gymnasium.error.ResetNeeded("reset() comes before render()")
        frame = self.state.observation[0].cpu().numpy()
        edge = frame.shape[0] * self.render_scale
        return np.asarray(Image.fromarray(frame).resize((edge, edge), Image.Resampling.NEAREST))

    def save_state(self) -> tuple[State | None, int]:
        """What ``load_state`` returns to, for tree search; states are never changed in place."""
        return self.state, self.t

    def load_state(self, saved: tuple[State | None, int]) -> None:
        """Go back to where ``save_state`` was called."""
        self.state, self.t = saved


class WorldModelVectorEnv(VectorEnv):
    """``num_envs`` imagined worlds, one batched model call per step; row i equals a single environment of its seed.

    Rows may be of any ages. A row that ended is begun anew at the next step ("next_step"), at once, with its last frame
    in ``info["final_obs"]`` ("same_step"), or by ``reset(options={"reset_mask": rows})`` alone ("disabled").

    Args: as of ``WorldModelEnv``; autoreset: one of the three, or gymnasium's ``AutoresetMode``.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - gymnasium's own form
        "render_modes": ["rgb_array"],
        "render_fps": 8,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        world: WorldModel,
        starts: Any,
        num_envs: int,
        horizon: int | None = None,
        sampling: Sampling | str | None = None,
        termination: Termination | None = None,
        on_overflow: str = "raise",
        render_mode: str | None = "rgb_array",
        autoreset: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ):
        if num_envs < 1:
            raise UserError(f"num_envs={num_envs}: must be at least 1")
        _check_render_mode(render_mode)
        self.worlds, self.num_envs, self.termination = (
            _Worlds(world, starts, horizon, sampling, on_overflow),
            num_envs,
            termination,
        )
        self.autoreset = _autoreset(autoreset)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset}
        self.single_observation_space, self.single_action_space = spaces_of(world)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.render_mode = render_mode
        self.rngs = [np.random.default_rng() for _ in range(num_envs)]
        self.state: State | None = None
        self.ended = np.zeros(num_envs, bool)
        self.t = np.zeros(num_envs, np.int64)

    def reset(
        self, *, seed: int | Sequence[int | None] | NDArray[Any] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Every row anew, or those of ``options["reset_mask"]``; an int seed s stands for s, s + 1, ...

        ``info["start"]`` (num_envs,) numbers the starts, -1 for rows that were left alone or begun from given frames.
        """
        first = int(seed) if isinstance(seed, (int, np.integer)) else None
        seeds = [None if first is None else first + i for i in range(self.num_envs)]
        if first is None and seed is not None:
            seeds = [None if one is None else int(one) for one in seed]  # type: ignore[union-attr]
        if len(seeds) != self.num_envs:
            raise UserError(f"seed: {len(seeds)} seeds for {self.num_envs} environments")
        rows = self._masked(options)
        for row in rows:
            if seeds[row] is not None:
                self.rngs[row] = gymnasium.utils.seeding.np_random(seeds[row])[0]
        starts = np.full(self.num_envs, -1, np.int64)
        fresh, starts[rows] = self._begun(rows, options)
        self._put(rows, fresh)
        assert self.state is not None
        return self.state.observation.cpu().numpy().copy(), {"start": starts}

    def _masked(self, options: dict[str, Any] | None) -> list[int]:
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return list(range(self.num_envs))
        found = np.asarray(mask)
        if found.shape != (self.num_envs,) or found.dtype != np.bool_ or not found.any():
            raise UserError(f"options['reset_mask']: expected {self.num_envs} booleans, at least one of them true")
        if self.state is None and not found.all():
            raise gymnasium.error.ResetNeeded("reset() of all rows comes before that of some")
        return np.flatnonzero(found).tolist()

    def _begun(self, rows: list[int], options: dict[str, Any] | None) -> tuple[State, NDArray[np.int64]]:
        """New worlds for ``rows``, each drawn by its own generator as ``WorldModelEnv.reset`` would."""
        chosen, seeds = [], []
        for row in rows:
            chosen.append(self.worlds.choose(self.rngs[row], options))
            seeds.append(int(self.rngs[row].integers(MOST_SEED)))
        self.t[rows], self.ended[rows] = 0, False
        fresh = self.worlds.begin(np.stack([context for context, _ in chosen]), seeds)
        return fresh, np.array([number for _, number in chosen])

    def _without(self, rows: list[int]) -> list[int]:
        """The other rows."""
        return [row for row in range(self.num_envs) if row not in rows]

    def _put(self, rows: list[int], fresh: State, others: State | None = None) -> None:
        """``fresh`` becomes ``rows``; ``others`` the remaining ones, None: they stay as they are."""
        rest = self._without(rows)
        if rest:
            assert self.state is not None
            kept = self.state.select(rest) if others is None else others
            self.state = self.worlds.world.join([kept, fresh], [rest, rows])
        else:
            self.state = fresh

    def step(
        self, actions: Any
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """One frame for every row; of "next_step", a row that ended before is begun anew (its action is not used)."""
        if self.state is None:
            raise gymnasium.error.ResetNeeded("reset() comes before step()")
        again = np.flatnonzero(self.ended).tolist()
        if again and self.autoreset == AutoresetMode.DISABLED:
            raise gymnasium.error.ResetNeeded(f"rows {again} have ended: reset(options={{'reset_mask': ...}}) first")
        rest = self._without(again)
        frames, rewards = np.zeros((self.num_envs, *self.worlds.starts.shape[2:]), np.uint8), np.zeros(self.num_envs)
        info: dict[str, Any] = {"logprob": np.zeros(self.num_envs), "entropy": np.zeros(self.num_envs)}
        moved = self.state
        if rest:
            moved, pred = self.worlds.step(self.state.select(rest) if again else self.state, np.asarray(actions)[rest])
            frames[rest] = pred.frame.cpu().numpy()
            rewards[rest] = 0.0 if pred.reward is None else pred.reward.cpu().numpy()
            info["logprob"][rest], info["entropy"][rest] = pred.logprob.cpu().numpy(), pred.entropy.cpu().numpy()
            self.t[rest] += 1
        terminated = np.array([row in rest and self._over(frames[row], rewards[row]) for row in range(self.num_envs)])
        if again:
            fresh, _ = self._begun(again, None)
            frames[again] = fresh.observation.cpu().numpy()
            self._put(again, fresh, moved)
        else:
            self.state = moved
        truncated = self.t >= self.worlds.horizon
        self.ended = terminated | truncated
        if self.autoreset == AutoresetMode.SAME_STEP and self.ended.any():
            info = self._next_episodes(frames, info)
        return frames, rewards, terminated, truncated, info

    def _over(self, frame: Frame, reward: float) -> bool:
        return bool(self.termination and self.termination(frame, float(reward)))

    def _next_episodes(self, frames: NDArray[np.uint8], info: dict[str, Any]) -> dict[str, Any]:
        """Begin anew what has just ended: ``frames`` changes in place, what was seen last goes into the infos."""
        ended, last = self.ended.copy(), frames.copy()
        rows = np.flatnonzero(ended).tolist()
        fresh, _ = self._begun(rows, None)
        frames[rows] = fresh.observation.cpu().numpy()
        self._put(rows, fresh)
        return info | {"final_obs": last, "_final_obs": ended, "final_info": info, "_final_info": ended}

    def render(self) -> tuple[Frame, ...]:  # type: ignore[override]
        """The newest frames, one per row."""
        if self.state is None:
            raise gymnasium.error.ResetNeeded("reset() comes before render()")
        return tuple(self.state.observation.cpu().numpy())


def _autoreset(mode: AutoresetMode | str) -> AutoresetMode:
    """A mode or its name. Raises UserError on another word."""
    names = {one.name.lower(): one for one in AutoresetMode}
    if isinstance(mode, AutoresetMode):
        return mode
    if mode not in names:
        raise UserError(f"autoreset={mode}: choose one of {', '.join(sorted(names))}")
    return names[mode]


def _check_render_mode(mode: str | None) -> None:
    """Raises UserError on what is not drawn here."""
    if mode not in (None, "rgb_array"):
        raise UserError(f"render_mode={mode}: choose rgb_array or None; a window is what toolkit play has")
