"""The MBPO loop: what the agent remembers, how batches are mixed, and that it learns from imagination."""

import dataclasses

import numpy as np
import pytest

from tests.ivideogpt import tiny
from tests.toyroom.harness import record
from toolkit.data.episodes.environments import PushSpriteEnv
from toolkit.errors import UserError
from toolkit.launch import launch

pytest.importorskip("stable_baselines3", reason="the extra rl is not installed")

from toolkit.ivideogpt.control.mbpo import Agent, Settings, Taken, _Mixed, learn
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.sampling import Sampling

SMALL = Settings(num_rounds=2, episode_steps=4, imagined=3, horizon=2, updates=1, batch_size=4)


def test_real_and_imagined_transitions_are_kept_apart_and_the_loop_is_a_function_of_its_seed():
    runs = [learn(tiny.world(), PushSpriteEnv(16), SMALL) for _ in range(2)]
    agent, returns = runs[0]
    assert agent.sac.replay_buffer.size() == 8 and agent.imagined.size() == 2 * 3 * 2
    assert len(returns) == 2 and returns == runs[1][1]
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    assert (agent.act(frames, False) == runs[1][0].act(frames, False)).all() and agent.act(frames, False).shape == (
        5,
        2,
    )


def test_without_imagination_it_is_plain_sac():
    agent, _ = learn(tiny.world(), PushSpriteEnv(16), SMALL, imagine=False)
    assert agent.imagined.size() == 0 and agent.sac.replay_buffer.size() == 8


def test_half_of_a_batch_is_real():
    agent = Agent(16, 2, SMALL)
    blank = np.zeros((16, 16, 3), np.uint8)
    for reward in range(6):
        agent.remember(True, blank, blank, [0, 0], reward)
        agent.remember(False, blank, blank, [0, 0], -100)
    rewards = _Mixed(agent.sac.replay_buffer, agent.imagined, 0.5).sample(8).rewards.flatten()
    assert (rewards == -100).tolist() == [False] * 4 + [True] * 4


def test_it_is_a_planner_of_the_plan_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["experiment=ivideogpt_smoke", "optim.tokenizer.num_steps=2", "optim.transformer.num_steps=2"]
    words += ["codebook.warmup_steps=0", "plan.planners=[mbpo,sac]", "plan.objective=reward", "plan.num_rounds=2"]
    words += ["measure.names=[tokenizer]", "data.num_train=8", "data.num_valid=4", "hydra.run.dir=one"]
    assert launch("train-ivideogpt", words) == 0
    assert {"plan.progress.mbpo", "plan.progress.sac"} <= set(record("one")["metrics"])


def test_models_that_cannot_be_learned_in_are_refused():
    with pytest.raises(UserError, match="mbpo: needs a world model with actions, a reward head"):
        learn(tiny.world(has_reward=False), PushSpriteEnv(16), SMALL)


def test_imagination_is_drawn_as_the_model_says_and_choices_are_carried_out_one_hot():
    plain, own = tiny.world(), Sampling(temperature=0.01, top_k=1)
    carried = WorldModel(plain.tokenizer, plain.transformer, sampling=own)
    told = dataclasses.replace(SMALL, sampling=own)
    frames = [
        learn(world, PushSpriteEnv(16), settings)[0].imagined.next_observations[:12]
        for world, settings in ((carried, SMALL), (plain, told), (plain, SMALL))
    ]
    assert (frames[0] == frames[1]).all() and (frames[0] != frames[2]).any()
    taken = Taken(np.float32([0, 0]), np.float32([1, 1]), 2)
    assert taken(np.float32([[0.1, 0.3], [0.9, -1]])).tolist() == [[0, 1], [1, 0]]


def test_a_real_episode_ends_where_the_environment_ends():
    class Ending(PushSpriteEnv):
        def step(self, action):
            frame, reward, _, truncated, info = super().step(action)
            return frame, reward, True, truncated, info

    agent, returns = learn(tiny.world(), Ending(16), SMALL)
    assert agent.sac.replay_buffer.size() == len(returns) == 2
