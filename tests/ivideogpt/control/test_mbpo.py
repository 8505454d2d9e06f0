"""The MBPO loop: what the agent remembers, how batches are mixed, and that it learns from imagination."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.ivideogpt import tiny
from tests.toyroom.harness import record
from toolkit.data.episodes.clips import ClipSource
from toolkit.data.episodes.environments import PushSpriteEnv
from toolkit.data.episodes.episode import Episode, memory_set
from toolkit.errors import UserError
from toolkit.launch import launch

pytest.importorskip("stable_baselines3", reason="the extra rl is not installed")

from toolkit.ivideogpt.config import Plan
from toolkit.ivideogpt.control.adapt import ModelLearner
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


@pytest.mark.slow
def test_it_is_a_planner_of_the_plan_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["experiment=ivideogpt_smoke", "optim.tokenizer.num_steps=2", "optim.transformer.num_steps=2"]
    words += ["codebook.warmup_steps=0", "plan.planners=[mbpo,sac]", "plan.objective=reward", "plan.num_rounds=2"]
    words += ["plan.tokenizer_updates=1", "plan.transformer_updates=1"]
    words += ["measure.names=[tokenizer]", "data.num_train=8", "data.num_valid=4", "hydra.run.dir=one"]
    assert launch("train-ivideogpt", words) == 0
    assert {"plan.progress.mbpo", "plan.progress.sac"} <= set(record("one")["metrics"])
    assert (tmp_path / "one" / "model_mbpo" / "transformer").is_dir()


def adapting(tokenizer_updates, transformer_updates):
    """A config whose world model goes on learning, fast."""
    config = tiny.config()
    config.plan = Plan(tokenizer_updates=tokenizer_updates, transformer_updates=transformer_updates)
    for optim in (config.optim.tokenizer, config.optim.transformer):
        optim.lr, optim.batch_size = 3e-3, 8
    return config


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(before, network):
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def episodes(num=3, length=6):
    """Real episodes of push-sprite under random actions."""
    made = []
    for seed in range(num):
        env, rng = PushSpriteEnv(16), np.random.default_rng(seed)
        frames, rows = [env.reset(seed=seed)[0]], rng.uniform(-1, 1, (length, 2)).astype(np.float32)
        steps = [env.step(row) for row in rows]
        rewards = np.float32([0 if step is None else step[1] for step in (*steps[1:], None)])
        made.append(Episode(np.stack(frames + [step[0] for step in steps[:-1]]), rows, rewards))
    return made


def test_the_world_model_learns_from_real_episodes_and_the_given_one_stays():
    world, config = tiny.world(), adapting(3, 12)
    given = [weights(world.tokenizer), weights(world.transformer)]
    learner = ModelLearner(world, config)
    batch = ClipSource(memory_set(episodes(), ["a", "b", "c"]), 4).fixed(3)
    context, frames = batch.frames[:, :1], batch.frames[:, 1:]

    def error():
        """Reconstruction, and surprise at the true frames, of the model as it is."""
        coder = learner.world.tokenizer
        with torch.no_grad():
            found = coder(context, frames, True)
        return float((found.sample - frames).abs().mean()), -float(
            learner.world.score(context, frames, batch.actions[:, :3]).logprobs.mean()
        )

    before = error()
    for number in range(2):
        learner.learn(episodes(), number)
    after = error()
    assert after[0] < 0.95 * before[0] and after[1] < 0.9 * before[1]
    moved = changed(given[0], learner.world.tokenizer)
    assert moved and not any("quantize.embedding" in name for name in moved)  # tokens keep their meaning
    assert not changed(given[0], world.tokenizer) and not changed(given[1], world.transformer)
    assert not learner.world.training and not any(part.requires_grad for part in learner.world.parameters())


def test_only_what_is_asked_for_is_updated_and_the_same_again_is_the_same(tmp_path):
    ends = []
    for _ in range(2):
        learner = ModelLearner(tiny.world(), adapting(0, 2))
        before = weights(learner.world.tokenizer)
        learner.learn(episodes(), 0)
        assert not changed(before, learner.world.tokenizer)
        ends.append(weights(learner.world.transformer))
    assert all(torch.equal(ends[0][name], value) for name, value in ends[1].items())
    learner.learn([Episode(np.zeros((1, 16, 16, 3), np.uint8), np.zeros((1, 2), np.float32), np.zeros(1))], 1)
    assert not changed(ends[1], learner.world.transformer)  # nothing to learn from a single frame
    tuned = ModelLearner(tiny.world(), adapting(1, 0))
    tuned.learn(episodes(), 0)
    tuned.save(tmp_path)
    assert WorldModel.from_pretrained(tmp_path).spec == tuned.world.spec


def test_the_loop_adapts_before_it_imagines():
    seen = []
    learn(tiny.world(), PushSpriteEnv(16), SMALL, adapt=lambda so_far, number: seen.append((len(so_far), number)))
    assert seen == [(1, 0), (2, 1)]


def test_the_end_of_a_task_is_remembered():
    class Ending(PushSpriteEnv):
        def step(self, action):
            frame, reward, _, truncated, info = super().step(action)
            return frame, reward, True, truncated, info

    memory = learn(tiny.world(), Ending(16), SMALL)[0].sac.replay_buffer
    assert memory.dones[:2].all()


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
