"""World models for Stable-Baselines3 (the extra ``rl``): a vectorised environment, and features of small frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.installation import install_hint
from toolkit.ivideogpt.control.env import WorldModelVectorEnv
from toolkit.zoo.world.model import WorldModel

try:
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.vec_env import VecEnv
except ImportError:
    raise UserError(f"needs Stable-Baselines3; {install_hint('rl')}") from None


class WorldModelVecEnv(VecEnv):
    """``num_envs`` imagined worlds as Stable-Baselines3 wants them: one model call a step, rows begin anew at once.

    Args:
        world, starts, num_envs, and the rest by name: as of ``WorldModelVectorEnv``.

    The last frame of an episode is in ``infos[i]["terminal_observation"]``; a horizon that is reached is
    ``infos[i]["TimeLimit.truncated"]``.
    """

    def __init__(self, world: WorldModel, starts: Any, num_envs: int, **more: Any):
        self.worlds = WorldModelVectorEnv(world, starts, num_envs, autoreset=AutoresetMode.SAME_STEP, **more)
        self.render_mode = self.worlds.render_mode
        super().__init__(num_envs, self.worlds.single_observation_space, self.worlds.single_action_space)
        self.actions: Any = None

    def reset(self) -> NDArray[np.uint8]:
        """Every row anew, by the seeds that ``seed`` gave, once."""
        seeds = None if all(one is None for one in self._seeds) else self._seeds
        frames, info = self.worlds.reset(seed=seeds)
        self.reset_infos = [{"start": int(start)} for start in info["start"]]
        self._reset_seeds()
        self._reset_options()
        return frames

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions (num_envs, ...) for ``step_wait``."""
        self.actions = actions

    def step_wait(self) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """One frame for every row."""
        frames, rewards, terminated, truncated, info = self.worlds.step(self.actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        done = terminated | truncated
        for row in np.flatnonzero(done):
            infos[row]["terminal_observation"] = info["final_obs"][row]
            infos[row]["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
        return frames, rewards.astype(np.float32), done, infos

    def close(self) -> None:
        """Nothing is held open."""

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """The newest frames."""
        return list(self.worlds.render())

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute that all rows share."""
        return [getattr(self.worlds, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Rows share their attributes: of all or of none. Raises UserError on some."""
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise UserError(f"set_attr({attr_name!r}): rows are one batch; set it for all of them")
        setattr(self.worlds, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Rows are one batch and have no methods of their own. Raises UserError."""
        raise UserError(f"env_method({method_name!r}): rows are one batch; call it on .worlds")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """None is."""
        return [False for _ in self._get_indices(indices)]


class SmallFrameFeatures(BaseFeaturesExtractor):
    """Three strided convolutions and a linear layer, for frames of any size from 16 pixels on.

    Stable-Baselines3's own ``CnnPolicy`` needs 36 pixels: give it
    ``policy_kwargs={"features_extractor_class": SmallFrameFeatures}``.
    """

    def __init__(self, observation_space: Any, features_dim: int = 64):
        super().__init__(observation_space, features_dim)
        channels = observation_space.shape[0]
        layers: list[nn.Module] = []
        for width in (16, 32, 32):
            layers += [nn.Conv2d(channels, width, 3, 2, 1), nn.ReLU()]
            channels = width
        self.maps = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            size = self.maps(torch.zeros(1, *observation_space.shape)).shape[1]
        self.head = nn.Sequential(nn.Linear(size, features_dim), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Frames (B, C, H, W) -> (B, features_dim)."""
        return self.head(self.maps(x))
