"""World models in Stable-Baselines3: its contract of vectorised environments, and that its algorithms learn in it."""

import numpy as np
import pytest

from tests.ivideogpt import tiny
from toolkit.errors import UserError
from toolkit.ivideogpt.control.env import WorldModelVectorEnv
from toolkit.zoo.world.model import WorldModel

pytest.importorskip("stable_baselines3", reason="the extra rl is not installed")

import stable_baselines3 as sb3

from toolkit.ivideogpt.control.sb3 import SmallFrameFeatures, WorldModelVecEnv

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (6, 3, 2)).astype(np.float32)


def test_rows_equal_the_vector_environment_and_begin_anew_at_once():
    env = WorldModelVecEnv(tiny.world(), tiny.starts(), 3, horizon=2)
    plain = WorldModelVectorEnv(tiny.world(), tiny.starts(), 3, horizon=2)
    env.seed(7)
    assert (env.reset() == plain.reset(seed=7)[0]).all() and env.observation_space.shape == (16, 16, 3)
    frames, rewards, dones, infos = env.step(ACTIONS[0])
    expected = plain.step(ACTIONS[0])
    assert (frames == expected[0]).all() and np.allclose(rewards, expected[1]) and rewards.dtype == np.float32
    assert not dones.any() and infos == [{}, {}, {}]
    frames, _, dones, infos = env.step(ACTIONS[1])
    last = plain.step(ACTIONS[1])[0]
    assert dones.all() and all((infos[row]["terminal_observation"] == last[row]).all() for row in range(3))
    assert all(info["TimeLimit.truncated"] for info in infos)
    assert (frames == plain.step(ACTIONS[2])[0]).all()
    ended = WorldModelVecEnv(tiny.world(), tiny.starts(), 2, termination=lambda frame, reward: True)
    ended.reset()
    assert ended.step(ACTIONS[0, :2])[3][0]["TimeLimit.truncated"] is False


def test_it_is_what_sb3_expects_of_a_vectorised_environment():
    env = WorldModelVecEnv(tiny.world(), tiny.starts(), 2, horizon=2)
    monitored = sb3.common.vec_env.VecMonitor(env)
    monitored.reset()
    monitored.step(ACTIONS[0, :2])
    assert monitored.step(ACTIONS[1, :2])[3][0]["episode"]["l"] == 2
    assert len(env.get_images()) == 2 and env.env_is_wrapped(object) == [False, False]
    assert env.get_attr("num_envs") == [2, 2] and env.get_attr("render_mode", 0) == ["rgb_array"]
    for call in (lambda: env.env_method("reset"), lambda: env.set_attr("t", 0, indices=0)):
        with pytest.raises(UserError, match="rows are one batch"):
            call()


@pytest.mark.parametrize("discrete", [None, 2])
def test_ppo_learns_in_it_from_small_frames(discrete):
    plain = tiny.world()
    world = WorldModel(plain.tokenizer, plain.transformer, discrete=discrete)
    env = WorldModelVecEnv(world, tiny.starts(), 2, horizon=2)
    kwargs = {"features_extractor_class": SmallFrameFeatures, "net_arch": [8]}
    agent = sb3.PPO("CnnPolicy", env, n_steps=2, batch_size=4, n_epochs=1, policy_kwargs=kwargs, seed=0)
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    agent.learn(8)
    assert any((value != before[name]).any() for name, value in agent.policy.state_dict().items())
    assert agent.predict(env.reset())[0].shape[0] == 2
