"""Model-based policy optimisation (Janner et al. 2019, algorithm 1 of the paper) with Stable-Baselines3's SAC.

Each round acts in the true environment with the current policy, lets the world model learn from what was seen where it
may, imagines short roll-outs in it from frames that were seen, and trains the agent on batches that are half real, half
imagined. Needs the extra ``rl`` and a world model with a reward head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.data.episodes.environments import ImageEnv, one_hot
from toolkit.data.episodes.episode import Episode, move_rows
from toolkit.errors import UserError
from toolkit.installation import install_hint
from toolkit.ivideogpt.control.env import action_range
from toolkit.runs.seeds import derive
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.sampling import Sampling


@dataclass(frozen=True)
class Settings:
    """Sizes of the loop; ``imagined`` roll-outs of ``horizon`` frames after every ``episode_steps`` real steps.

    sampling: of imagined frames; None: as the model says.
    """

    num_rounds: int = 20
    episode_steps: int = 20
    imagined: int = 32
    horizon: int = 5
    updates: int = 40
    batch_size: int = 64
    real_share: float = 0.5
    seed: int = 0
    sampling: Sampling | str | None = None


@dataclass(frozen=True)
class Taken:
    """The action rows that are carried out for an agent's, (..., A) in [-1, 1]: scaled to [low, high], or one-hot."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    discrete: int | None = None

    def __call__(self, actions: NDArray[Any]) -> NDArray[Any]:
        return one_hot((self.low + self.high) / 2 + (self.high - self.low) / 2 * actions, self.discrete)


class Agent:
    """SAC on frames (S, S, 3) with actions in [-1, 1], kept apart from any environment of its own."""

    def __init__(self, resolution: int, action_dim: int, settings: Settings, device: str = "cpu"):
        try:
            from stable_baselines3 import SAC
            from stable_baselines3.common.buffers import ReplayBuffer
            from stable_baselines3.common.logger import Logger

            from toolkit.ivideogpt.control.sb3 import SmallFrameFeatures
        except ImportError:
            raise UserError(f"mbpo: needs Stable-Baselines3; {install_hint('rl')}") from None
        policy = {"features_extractor_class": SmallFrameFeatures, "net_arch": [64, 64]}
        self.sac = SAC(
            "CnnPolicy", _Spaces(resolution, action_dim), learning_rate=3e-4, buffer_size=20_000, gamma=0.95,
            batch_size=settings.batch_size, policy_kwargs=policy, seed=settings.seed, device=device,
        )  # fmt: skip
        self.sac.set_logger(Logger(None, []))
        self.imagined = ReplayBuffer(
            20_000, self.sac.observation_space, self.sac.action_space, device=device, optimize_memory_usage=False
        )
        self.settings = settings

    def act(self, frames: NDArray[np.uint8], explore: bool) -> NDArray[np.float32]:
        """Actions (B, A) in [-1, 1] for frames uint8 (B, S, S, 3)."""
        actions, _ = self.sac.predict(np.moveaxis(frames, -1, 1), deterministic=not explore)
        return np.asarray(actions, np.float32)

    def remember(
        self, real: bool, frame: Any, next_frame: Any, action: Any, reward: float, ended: bool = False
    ) -> None:
        """One transition into the real or the imagined memory; nothing follows where it ``ended`` the task."""
        memory: Any = self.sac.replay_buffer if real else self.imagined
        pictures = [np.moveaxis(np.asarray(one), -1, 0)[None] for one in (frame, next_frame)]
        memory.add(*pictures, np.asarray(action)[None], np.array([reward]), np.array([ended]), [{}])

    def train(self, num_updates: int) -> None:
        """SAC updates on mixed batches."""
        settings, real = self.settings, self.sac.replay_buffer
        mixed = _Mixed(real, self.imagined, settings.real_share if self.imagined.size() else 1.0)
        self.sac.replay_buffer = mixed  # type: ignore[assignment]
        try:
            self.sac.train(gradient_steps=num_updates, batch_size=settings.batch_size)
        finally:
            self.sac.replay_buffer = real


class _Mixed:
    """Batches of which a share is real."""

    def __init__(self, real: Any, imagined: Any, real_share: float):
        self.real, self.imagined, self.real_share = real, imagined, real_share

    def sample(self, batch_size: int, env: Any = None) -> Any:
        num_real = round(self.real_share * batch_size)
        if num_real == batch_size:
            return self.real.sample(batch_size, env=env)
        parts = [self.real.sample(num_real, env=env), self.imagined.sample(batch_size - num_real, env=env)]
        joined = [None if one is None else torch.cat([one, other]) for one, other in zip(*parts, strict=True)]
        return type(parts[0])(*joined)


class _Spaces(gymnasium.Env):
    """What SAC needs to know of an environment; it is never stepped."""

    def __init__(self, resolution: int, action_dim: int):
        self.observation_space = gymnasium.spaces.Box(0, 255, (3, resolution, resolution), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1, 1, (action_dim,), np.float32)


def learn(
    world: WorldModel,
    env: ImageEnv,
    settings: Settings,
    imagine: bool = True,
    adapt: Callable[[list[Episode], int], None] | None = None,
) -> tuple[Agent, list[float]]:
    """Run the loop; the agent and the return of each real episode (``imagine=False``: SAC on real frames alone).

    adapt: called with the real episodes so far and the round before it imagines, to train ``world``; None: it stays
    as it is. Raises UserError for a world model without reward head or with more than one context frame.
    """
    spec = world.spec
    if not spec.has_reward or not spec.action_dim or spec.T0 != 1:
        raise UserError("mbpo: needs a world model with actions, a reward head and one context frame")
    agent = Agent(spec.resolution, spec.action_dim, settings, str(world.tokenizer.device))
    taken = Taken(*action_range(world), world.config["discrete"])
    episodes: list[Episode] = []
    for number in range(settings.num_rounds):
        episodes.append(_act(agent, env, settings, number, taken))
        if adapt is not None:
            adapt(episodes, number)
        if imagine:
            seen = [frame for episode in episodes for frame in episode.image][-2000:]
            _imagine(agent, world, seen, settings, number, taken)
        agent.train(settings.updates)
    return agent, [float(episode.reward.astype(np.float64).sum()) for episode in episodes if episode.reward is not None]


def _act(agent: Agent, env: ImageEnv, settings: Settings, number: int, taken: Taken) -> Episode:
    """One real episode into the memory; the first is random."""
    rng = np.random.default_rng(derive(settings.seed, "mbpo", "real", number))
    frame, _ = env.reset(seed=int(rng.integers(2**31)))
    frames, rows, rewards = [frame], [], []
    for _ in range(settings.episode_steps):
        action = (
            agent.act(frame[None], explore=True)[0] if number else rng.uniform(-1, 1, len(taken.low)).astype(np.float32)
        )
        rows.append(taken(action))
        following, reward, ended, _, _ = env.step(rows[-1])
        agent.remember(True, frame, following, action, float(reward), ended)
        frame = following
        frames.append(frame)
        rewards.append(float(reward))
        if ended:
            break
    num = len(frames)
    return Episode(
        np.stack(frames),
        move_rows("mbpo", "action", np.stack(rows), num),
        move_rows("mbpo", "reward", np.array(rewards), num),
    )


def _imagine(agent: Agent, world: WorldModel, seen: list[Any], settings: Settings, number: int, taken: Taken) -> None:
    """Short roll-outs under the policy from frames that were seen, into the imagined memory."""
    rng = np.random.default_rng(derive(settings.seed, "mbpo", "imagine", number))
    context = np.stack([seen[index] for index in rng.integers(0, len(seen), settings.imagined)])
    state = world.begin(context[:, None], int(rng.integers(2**31)), frames=settings.horizon)
    chosen: list[Any] = []

    def policy(frames: Tensor, _: int) -> Tensor:
        chosen.append(agent.act(frames.cpu().numpy(), explore=True))
        return torch.from_numpy(taken(chosen[-1])).float()

    preds = world.imagine(state, policy, settings.horizon, settings.sampling)
    assert preds.rewards is not None
    frames, rewards = preds.frames.cpu().numpy(), preds.rewards.cpu().numpy()
    for row in range(settings.imagined):
        before = context[row]
        for step in range(settings.horizon):
            agent.remember(False, before, frames[row, step], chosen[step][row], float(rewards[row, step]))
            before = frames[row, step]
