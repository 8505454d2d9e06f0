"""What is handed on where mbpo learns: an update of each network, where episodes start, what is remembered."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.ivideogpt import tiny
from toolkit.data.episodes.clips import ClipSource
from toolkit.data.episodes.environments import PushSpriteEnv
from toolkit.data.episodes.episode import memory_set
from toolkit.ivideogpt.build import with_dropout
from toolkit.ivideogpt.clips import tokenizer_frames
from toolkit.ivideogpt.config import Plan
from toolkit.ivideogpt.control import planning
from toolkit.ivideogpt.control.planning import Episode
from toolkit.ivideogpt.train.losses import TokenizerObjective
from toolkit.ivideogpt.train.perceptual import GradientDistance
from toolkit.ivideogpt.train.transformer import TransformerObjective, tokenise
from toolkit.runs.record import Run
from toolkit.zoo.world.model import WorldModel

RNG = np.random.default_rng(0)


def test_two_updates_of_each_network_are_adamw_on_clipped_gradients_of_its_whole_loss():
    """With dropout in both, decay, another rate for each, and the tokens of the tokenizer as it is by then.

    Round 4 of two updates each draws frames for updates 8 and 9: none is drawn twice.
    """
    from tests.ivideogpt.control.test_mbpo import adapting, episodes
    from toolkit.ivideogpt.control.adapt import ModelLearner

    config = adapting(2, 3)
    config.tokenizer_loss.perceptual = "gradients"
    tok, tra = config.optim.tokenizer, config.optim.transformer
    tok.lr, tok.weight_decay, tok.grad_clip, tok.batch_size = 4e-3, 0.3, 0.2, 3
    tra.lr, tra.grad_clip, tra.batch_size = 2e-3, 0.1, 4
    world = tiny.world()
    with_dropout(world.tokenizer, 0.3)
    world.transformer.llm.config.attention_dropout = 0.4
    ours = copy.deepcopy(world).requires_grad_(True)
    learner = ModelLearner(world, config)
    torch.manual_seed(5)
    learner.learn(episodes(), 4)

    torch.manual_seed(5)
    source = ClipSource(memory_set(episodes(), ["a", "b", "c"]), 4)
    books = {id(book.embedding.weight) for book in (ours.tokenizer.quantize, ours.tokenizer.dynamics_quantize)}
    learnt = [one for one in ours.tokenizer.parameters() if id(one) not in books]
    objective = TokenizerObjective(ours.tokenizer, config.tokenizer_loss, GradientDistance())
    optimizer = torch.optim.AdamW(learnt, lr=4e-3, weight_decay=0.3)
    for step in range(2):
        clip = source.sample(3, 0, "adapt", "tokenizer", 4, step)
        ours.tokenizer.train()
        loss = objective(*tokenizer_frames(clip, config, 0, 4 * 2 + step), True)[0]["loss"]
        descend(optimizer, learnt, loss, 0.2)
    ours.tokenizer.eval()
    network = ours.transformer.train()
    told = TransformerObjective(network, ours.tokenizer, config, {})
    embedding = network.llm.model.embed_tokens.weight
    decays = [one for one in network.parameters() if one.dim() > 1 and one is not embedding]
    others = [one for one in network.parameters() if one.dim() == 1 or one is embedding]
    groups = [{"params": decays, "weight_decay": tra.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=tuple(tra.betas))
    for step in range(3):
        clip = source.sample(4, 0, "adapt", "transformer", 4, step)
        loss = told(tokenise(ours.tokenizer, clip, torch.device("cpu")))["loss"]
        descend(optimizer, list(network.parameters()), loss, 0.1)
    again = ours.state_dict()
    for name, value in learner.world.state_dict().items():
        torch.testing.assert_close(value, again[name], rtol=1e-3, atol=2e-4, msg=name)


def descend(optimizer, parameters, loss, most):
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, most)
    optimizer.step()


def test_what_has_learned_is_saved_bound_to_the_tokenizer_as_it_is_by_then(tmp_path):
    from tests.ivideogpt.control.test_mbpo import adapting, episodes
    from toolkit.ivideogpt.control.adapt import ModelLearner

    world = tiny.world()
    world.transformer.bind(world.tokenizer)
    learner = ModelLearner(world, adapting(1, 0))
    learner.learn(episodes(), 0)
    learner.save(tmp_path)
    kept = WorldModel.from_pretrained(tmp_path)
    assert (
        kept.tokenizer.fingerprint() == kept.transformer.config.tokenizer_fingerprint != world.tokenizer.fingerprint()
    )


@pytest.fixture
def mbpo():
    pytest.importorskip("stable_baselines3", reason="the extra rl is not installed")
    from toolkit.ivideogpt.control import mbpo

    return mbpo


class Noted(PushSpriteEnv):
    """Seeds and rows are kept."""

    def __init__(self):
        super().__init__(16)
        self.seeds, self.rows = [], []

    def reset(self, **keys):
        self.seeds.append(keys["seed"])
        return super().reset(**keys)

    def step(self, action):
        self.rows.append(np.asarray(action))
        return super().step(action)


def test_a_real_episode_explores_from_a_start_of_its_own_and_its_own_moves_are_remembered(mbpo):
    sizes, env, asked = mbpo.Settings(episode_steps=3, seed=2), Noted(), []
    agent = mbpo.Agent(16, 2, sizes)
    agent.act = lambda frames, explore: asked.append(explore) or np.float32([[0.5, -0.25]])
    taken = mbpo.Taken(np.float32([-2, 0]), np.float32([2, 4]))
    episodes = [mbpo._act(agent, env, sizes, number, taken) for number in (0, 1, 2)]
    assert len(set(env.seeds)) == 3 and asked == [True] * 6
    memory = agent.sac.replay_buffer
    assert memory.size() == 9 and np.allclose(memory.actions[3:9, 0], [0.5, -0.25])
    assert np.allclose(env.rows[3:], [1.0, 1.5]) and np.allclose(episodes[1].action[:3], [1.0, 1.5])
    for number, episode in enumerate(episodes):
        rows = slice(3 * number, 3 * number + 3)
        before, after = (np.moveaxis(one[rows, 0], 1, -1) for one in (memory.observations, memory.next_observations))
        assert (before == episode.image[:3]).all() and (after == episode.image[1:]).all()
        assert np.allclose(memory.rewards[rows, 0], episode.reward[:3], atol=1e-6)
    assert np.abs(memory.actions[:3]).max() <= 1 and len(np.unique(memory.actions[:3])) == 6  # the first is random
    other = mbpo.Agent(16, 2, mbpo.Settings(seed=3))
    pairs = zip(agent.sac.policy.parameters(), other.sac.policy.parameters(), strict=True)
    assert any(not torch.equal(*pair) for pair in pairs)


def test_the_last_two_thousand_frames_are_imagined_from_and_returns_are_summed_rewards(mbpo, monkeypatch):
    seen, trained = [], []
    monkeypatch.setattr(mbpo.Agent, "train", lambda self, num: trained.append(num))

    def act(agent, env, settings, number, taken):
        rewards = np.arange(3, dtype=np.float32) + number
        return SimpleNamespace(image=np.arange(1500)[:, None] + 1500 * number, reward=rewards)

    monkeypatch.setattr(mbpo, "_act", act)
    monkeypatch.setattr(mbpo, "_imagine", lambda agent, world, frames, *_: seen.append(np.ravel(frames)))
    _, returns = mbpo.learn(tiny.world(), None, mbpo.Settings(num_rounds=3, updates=7))
    assert [(one[0], one[-1], len(one)) for one in seen] == [(0, 1499, 1500), (1000, 2999, 2000), (2500, 4499, 2000)]
    assert returns == [3.0, 6.0, 9.0] and trained == [7, 7, 7]


def test_imagination_explores_from_frames_and_noise_of_its_round(mbpo, monkeypatch):
    begun, asked, own = [], [], WorldModel.begin
    monkeypatch.setattr(WorldModel, "begin", lambda *args, **keys: begun.append(args[1:]) or own(*args, **keys))
    sizes, agent = mbpo.Settings(imagined=4, horizon=2), mbpo.Agent(16, 2, mbpo.Settings())
    act = agent.act
    agent.act = lambda frames, explore: asked.append(explore) or act(frames, explore)
    seen = [RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(40)]
    taken = mbpo.Taken(np.float32([-1, -1]), np.float32([1, 1]))
    for number in (0, 1):
        mbpo._imagine(agent, tiny.world(), seen, sizes, number, taken)
    assert asked == [True] * 4 and begun[0][1] != begun[1][1] and (begun[0][0] != begun[1][0]).any()


def test_batches_are_as_large_as_asked_and_real_alone_before_anything_is_imagined(mbpo, monkeypatch):
    sizes = mbpo.Settings(batch_size=6, real_share=0.5)
    agent, drawn = mbpo.Agent(16, 2, sizes), []
    frame = np.zeros((16, 16, 3), np.uint8)

    def train(gradient_steps, batch_size):
        rewards = agent.sac.replay_buffer.sample(batch_size).rewards.flatten().tolist()
        drawn.append((gradient_steps, sorted(rewards)))

    monkeypatch.setattr(agent.sac, "train", train)
    agent.remember(True, frame, frame, [0, 0], 1.0)
    agent.train(5)
    agent.remember(False, frame, frame, [0, 0], -1.0)
    agent.train(4)
    assert drawn == [(5, [1.0] * 6), (4, [-1.0] * 3 + [1.0] * 3)]


def test_planners_are_averaged_and_learners_are_told_the_configs_sizes(tmp_path, monkeypatch, mbpo):
    ends = {0: Episode(True, 0.25), 1: Episode(False, 0.5), 2: Episode(True, 0.9)}
    monkeypatch.setattr(planning, "control", lambda world, task, config, name, index, agent: ends[index])
    told = []
    monkeypatch.setattr(planning, "learn", lambda world, env, sizes, **more: told.append((sizes, more)) or (None, []))
    config = tiny.config(seed=6)
    config.plan = Plan(num_episodes=3, planners=["cem", "sac", "mbpo"], num_rounds=4, num_steps=11, horizon=5)
    run = Run(tmp_path, config)
    run.record["metrics"] = {}
    planning.plan(tiny.world(), tiny.clips(), config, run)
    for name in config.plan.planners:
        assert run.record["metrics"][f"plan.success.{name}"] == pytest.approx(2 / 3)
        assert run.record["metrics"][f"plan.progress.{name}"] == pytest.approx(0.55)
    sizes, (sac, both) = told[0][0], (more for _, more in told)
    assert (sizes.num_rounds, sizes.episode_steps, sizes.horizon, sizes.seed) == (4, 11, 5, 6)
    assert sac["imagine"] is False and both["imagine"] is True
    for updates in ({"tokenizer_updates": 1}, {"transformer_updates": 1}):  # one of the two is enough to learn
        config.plan = Plan(num_episodes=1, planners=["mbpo"], **updates)
        planning.plan(tiny.world(), tiny.clips(), config, run)
        assert told[-1][1]["adapt"] is not None
