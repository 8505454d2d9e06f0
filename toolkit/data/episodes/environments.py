"""Environments that episodes are recorded from: ours, gym-pusht, the Kuka scene, and any gymnasium id that renders.

All look alike to the recorder: frames uint8 (S, S, 3), actions float32 [A] in [low, high], a scripted policy.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from toolkit.data.episodes.episode import as_bytes, resize
from toolkit.data.episodes.push_sprite import SUCCESS_DISTANCE, PushSprite, next_actions
from toolkit.errors import UserError, brief, did_you_mean
from toolkit.installation import install_hint

Array = NDArray[np.float32]
Policy = Callable[[dict[str, Any], Array, np.random.Generator], Array]  # (info, previous action, rng) -> action
WANDER = 0.8  # of the random part of a smooth random walk of actions


class ImageEnv(Protocol):
    """What the recorder and the planner need; a subset of gymnasium.Env."""

    action_space: Any

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]: ...

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Recorded:
    """An environment by name: ``make(size_px, **options)`` builds it, ``policy`` acts while it is recorded."""

    make: Callable[..., ImageEnv]
    policy: Policy
    licence: str
    note: str


class PushSpriteEnv(gymnasium.Env):
    """One push-sprite world as a gymnasium environment; ``info`` has the positions, and success within the goal."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012 - gymnasium's own form
    render_mode = "rgb_array"

    def __init__(self, size_px: int = 32, **options: Any):
        self.sim = PushSprite(size_px, **options)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Box(0, 255, (size_px, size_px, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict]:
        """The world of ``seed``, or of a random one."""
        super().reset(seed=seed)
        world = seed if seed is not None else int(self.np_random.integers(2**31))
        return self.sim.reset([world])[0], self._info()

    def step(self, action: Array) -> tuple[NDArray[np.uint8], float, bool, bool, dict]:
        """Move the disc; the reward is minus the distance between block and goal."""
        frames, rewards = self.sim.step(np.asarray(action, np.float32)[None])
        return frames[0], float(rewards[0]), False, False, self._info()

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """The frame."""
        return self.sim.render()[0]

    def _info(self) -> dict[str, Any]:
        agent, block = self.sim.positions()[0]
        return {"agent": agent, "block": block, "is_success": bool(self.sim.distance()[0] < SUCCESS_DISTANCE)}


class PushT(gymnasium.Wrapper):
    """gym-pusht in pixels with actions in [-1, 1]: where to go relative to the agent, 1 being ``REACH`` of its 512."""

    REACH = 100.0

    def __init__(self, size_px: int):
        try:
            import gym_pusht  # noqa: F401 - registers the environment
        except ImportError:
            raise UserError(f"pusht: needs gym-pusht; {install_hint('robots')}") from None
        made = gymnasium.make(
            "gym_pusht/PushT-v0", obs_type="pixels", observation_width=size_px, observation_height=size_px
        )
        super().__init__(made.unwrapped)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.agent = np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict]:
        """A random start."""
        frame, info = self.env.reset(seed=seed, options=options)
        return frame, self._noted(info)

    def step(self, action: Array) -> tuple[NDArray[np.uint8], float, bool, bool, dict]:
        """Go towards the agent's place plus ``REACH`` times the action for a tenth of a second."""
        target = np.clip(self.agent + self.REACH * np.clip(action, -1, 1), 0, 512)
        frame, reward, terminated, truncated, info = self.env.step(target)
        return frame, float(reward), terminated, truncated, self._noted(info)

    def _noted(self, info: dict[str, Any]) -> dict[str, Any]:
        self.agent = np.asarray(info["pos_agent"], float)
        return info | {"agent": self.agent / 512, "block": np.asarray(info["block_pose"][:2], float) / 512}


class Rendered(gymnasium.Wrapper):
    """Any gymnasium environment whose ``render()`` gives pictures; discrete actions become one-hot rows."""

    def __init__(self, env: gymnasium.Env, size_px: int):
        super().__init__(env)
        self.size_px = size_px
        space = env.action_space
        if isinstance(space, gymnasium.spaces.Discrete):
            self.num_actions: int | None = int(space.n)
            self.action_space = gymnasium.spaces.Box(0, 1, (int(space.n),), np.float32)
        elif isinstance(space, gymnasium.spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all():
            self.num_actions = None
            low, high = space.low.ravel().astype(np.float32), space.high.ravel().astype(np.float32)
            self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        else:
            raise UserError(f"{env.spec.id if env.spec else env}: actions {space}: must be Discrete or a bounded Box")
        self.num_numbers = self.action_space.low.size

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict]:
        """The first picture."""
        _, info = self.env.reset(seed=seed, options=options)
        return self._picture(), info

    def step(self, action: Array) -> tuple[NDArray[np.uint8], float, bool, bool, dict]:
        """Act; for discrete actions the largest entry is taken."""
        row = np.asarray(action, np.float32)
        if not np.isfinite(row).all() or row.size != self.num_numbers:
            raise UserError(f"action {row.tolist()}: expected {self.num_numbers} finite numbers")
        space: Any = self.env.action_space
        taken: Any = int(space.start + row.argmax()) if self.num_actions else row.reshape(space.shape)
        _, reward, terminated, truncated, info = self.env.step(taken)
        return self._picture(), float(reward), terminated, truncated, info

    def _picture(self) -> NDArray[np.uint8]:
        picture = as_bytes("render()", self.env.render())
        if picture.ndim != 3 or picture.shape[-1] != 3:
            raise UserError(f"render(): a picture of shape {list(picture.shape)}, expected [H, W, 3]")
        return resize(picture[None], self.size_px)[0]


def num_choices(env: ImageEnv) -> int | None:
    """Between how many actions ``env`` lets choose, one-hot; None where actions are vectors of numbers."""
    return env.num_actions if isinstance(env, Rendered) else None


def one_hot(rows: NDArray[Any], num: int | None) -> NDArray[Any]:
    """What is carried out of action rows (..., A): 1 at the largest of every ``num`` entries, 0 elsewhere.

    ``num`` None: the rows as they are.
    """
    if num is None:
        return rows
    blocks = rows.reshape(*rows.shape[:-1], -1, num)
    return np.eye(num, dtype=np.float32)[blocks.argmax(-1)].reshape(rows.shape)


def chase(info: dict[str, Any], previous: Array, rng: np.random.Generator) -> Array:
    """Half of the time towards the block, else a smooth wander."""
    agent, block = (np.asarray(info[name], np.float32)[None] for name in ("agent", "block"))
    return next_actions(agent, block, previous[None], [rng])[0]


def wander(_info: dict[str, Any], previous: Array, rng: np.random.Generator) -> Array:
    """A smooth random walk in [-1, 1], as robots push without supervision."""
    return np.clip(0.7 * previous + WANDER * rng.uniform(-1, 1, previous.shape), -1, 1).astype(np.float32)


def _sweep_low(_info: dict[str, Any], previous: Array, rng: np.random.Generator) -> Array:
    """The arm wanders over the table, mostly low enough to push."""
    action = wander(_info, previous, rng)
    action[2] = np.clip(action[2] - 0.4, -1, 1)
    return action


def _kuka(size_px: int) -> ImageEnv:
    return importlib.import_module("toolkit.data.episodes.kuka").KukaPush(size_px)


NAMED: dict[str, Recorded] = {
    "push_sprite": Recorded(PushSpriteEnv, chase, "generated", "a disc pushes a block, 2 actions"),
    "pusht": Recorded(PushT, chase, "Apache-2.0", "gym-pusht: a disc pushes a T, 2 actions"),
    "kuka": Recorded(_kuka, _sweep_low, "zlib", "a Kuka arm pushes objects on a table (pybullet), 4 actions"),
}


def is_known(name: Any) -> bool:
    """Whether ``name`` is an environment of ours or a gymnasium id that is registered already; imports nothing."""
    return isinstance(name, str) and (name in NAMED or name in gymnasium.registry)


def find(name: str, may_import: bool = False) -> Recorded:
    """The environment called ``name``, or the gymnasium id ``name``. Raises UserError when there is neither.

    may_import: import the package of ``package/Name-v0``. Only for names that the user typed: what a folder says must
    not choose what code is run.
    """
    if name in NAMED:
        return NAMED[name]
    if may_import:
        _register(name)
    if name not in gymnasium.registry:
        known = [*NAMED, *gymnasium.registry]
        raise UserError(f"{name}: {did_you_mean(name, known)}one of {', '.join(NAMED)}, or a registered gymnasium id")

    def make(size_px: int) -> ImageEnv:
        try:
            return Rendered(gymnasium.make(name, render_mode="rgb_array"), size_px)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise UserError(f"{name}: cannot be made with pictures ({brief(error)})") from None

    return Recorded(make, _uniform_policy, "the environment's own", "gymnasium")


def _register(name: str) -> None:
    """Ids of other packages are known once ``package/Name-v0``'s package is imported."""
    package = name.partition("/")[0]
    if package != name and package.isidentifier():
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(f"{name}: {error}; install the package that brings it") from None


def _uniform_policy(info: dict[str, Any], previous: Array, rng: np.random.Generator) -> Array:
    """Uniform in the action space, which the recorder puts into ``info``."""
    low, high = info["action_low"], info["action_high"]
    return rng.uniform(low, high).astype(np.float32)
