"""What the agent remembers of an imagined roll-out, how its batches are mixed, and what it does, written out."""

import numpy as np
import pytest
import torch

from tests.ivideogpt import tiny
from toolkit.data.episodes.clips import ClipSource
from toolkit.data.episodes.episode import Episode, memory_set

pytest.importorskip("stable_baselines3", reason="the extra rl is not installed")

from tests.ivideogpt.control.test_mbpo import adapting, episodes
from toolkit.ivideogpt.control.adapt import ModelLearner
from toolkit.ivideogpt.control.mbpo import Agent, Settings, Taken, _imagine, _Mixed
from toolkit.zoo.world.model import WorldModel

SETTINGS = Settings(imagined=3, horizon=4, batch_size=8)
RANGE = Taken(np.float32([-2, 0]), np.float32([2, 4]))


@pytest.fixture(scope="module")
def agent():
    return Agent(16, 2, SETTINGS)


def test_actions_are_stretched_to_their_range():
    assert RANGE(np.float32([[0, 0], [1, -1], [0.5, 0.5]])).tolist() == [[0, 2], [2, 0], [1, 3]]


def test_a_policy_that_does_not_explore_does_the_same_every_time(agent):
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    calm, wild = ([agent.act(frames, explore) for _ in range(2)] for explore in (False, True))
    assert (calm[0] == calm[1]).all() and (wild[0] != wild[1]).any()


def test_so_large_a_share_of_a_batch_is_real():
    agent, frame = Agent(16, 2, SETTINGS), np.zeros((16, 16, 3), np.uint8)
    for real in (True, False):
        for _ in range(10):
            agent.remember(real, frame, frame, np.zeros(2, np.float32), 1.0 if real else -1.0)
    for share, number in ((0.25, 2), (0.75, 6), (1.0, 8)):
        rewards = _Mixed(agent.sac.replay_buffer, agent.imagined, share).sample(8).rewards
        assert (rewards > 0).sum() == number and len(rewards) == 8


def test_every_imagined_step_goes_on_from_the_one_before(agent, monkeypatch):
    kept, own = [], WorldModel.imagine
    monkeypatch.setattr(WorldModel, "imagine", lambda *args: kept.append(own(*args)) or kept[-1])
    seen = [np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8) for number in range(5)]
    _imagine(agent, tiny.world(), seen, SETTINGS, 0, RANGE)
    (preds,), memory = kept, agent.imagined
    assert memory.size() == 12 and agent.sac.replay_buffer.size() == 0
    before, after = (np.moveaxis(one[:12, 0], 1, -1).reshape(3, 4, 16, 16, 3) for one in
                     (memory.observations, memory.next_observations))  # fmt: skip
    assert (after == preds.frames.numpy()).all() and (before[:, 1:] == after[:, :-1]).all()
    assert all(any((row == frame).all() for frame in seen) for row in before[:, 0])
    assert np.allclose(memory.rewards[:12, 0].reshape(3, 4), preds.rewards.numpy())
    assert len(np.unique(memory.rewards[:12])) > 3 and np.abs(memory.actions[:12]).max() <= 1


def test_a_model_that_has_learned_imagines_without_dropout():
    """Its attention drops nearly all of the past while it learns; asked twice afterwards, it says the same twice."""
    learner = ModelLearner(tiny.world(), adapting(1, 1))
    llm = learner.world.transformer.llm
    llm.config.attention_dropout = 0.9
    learner.learn(episodes(), 0)
    batch = ClipSource(memory_set(episodes(), ["a", "b", "c"]), 4).fixed(3)
    given = batch.frames[:, :1], batch.frames[:, 1:], batch.actions[:, :3]
    torch.manual_seed(0)
    first, second = (learner.world.score(*given).logprobs for _ in range(2))
    assert torch.equal(first, second) and not learner.world.tokenizer.training
    assert not any(one.requires_grad for one in (*learner.world.tokenizer.parameters(), *llm.parameters()))


def test_each_update_of_each_round_has_clips_of_its_own(monkeypatch):
    drawn, sample = [], ClipSource.sample

    def noted(self, num, *key):
        drawn.append(key)
        return sample(self, num, *key)

    monkeypatch.setattr(ClipSource, "sample", noted)
    learner = ModelLearner(tiny.world(), adapting(2, 2))
    for number in range(2):
        learner.learn(episodes(), number)
    assert len(drawn) == len(set(drawn)) == 8


def test_an_episode_that_ended_early_does_not_cut_the_clips_of_the_others(monkeypatch):
    learner, lengths = ModelLearner(tiny.world(), adapting(20, 20)), []
    for name in ("_tokenizer_update", "_transformer_update"):
        monkeypatch.setattr(learner, name, lambda source, number, step: lengths.append(source.num_frames))
    cut = [
        Episode(one.image[:stop], one.action[:stop], one.reward[:stop])
        for one, stop in zip(episodes(), (1, 2, 99), strict=True)
    ]
    learner.learn(cut, 0)
    assert len(lengths) == 40 and set(lengths) == {2, learner.config.num_frames}
