"""Numbers of control that nothing else pins: when a goal is reached, how narrow a range is, whose luck is kept."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.ivideogpt import tiny
from tests.ivideogpt.control.test_planning_by_hand import config_of, task
from toolkit.data.episodes.episode import Episode
from toolkit.ivideogpt.control import planning
from toolkit.ivideogpt.control.adapt import ModelLearner
from toolkit.ivideogpt.control.env import WorldModelEnv, WorldModelVectorEnv, action_range
from toolkit.ivideogpt.control.planning import control
from toolkit.runs.seeds import derive
from toolkit.zoo.world.model import WorldModel


def with_range(low, high):
    plain = tiny.world()
    return WorldModel(plain.tokenizer, plain.transformer, action_low=low, action_high=high)


@pytest.mark.parametrize(("left", "reached"), [(0.5, True), (0.52, False)])
def test_a_goal_is_reached_where_three_quarters_of_its_distance_are_covered(monkeypatch, left, reached):
    """Two from the goal at first, ``left`` at the end."""
    told = iter((left, 2.0))  # of the last frame, then of the first
    monkeypatch.setattr(planning, "_distance", lambda frame, goal: next(told))
    end = control(tiny.world(), task(), config_of(num_steps=2, objective="goal_image"), "random", 0)
    assert end.progress == pytest.approx(1 - left / 2) and end.success is reached


def test_what_never_varied_has_a_thousandth_of_its_size_or_of_one_on_both_sides():
    low, high = action_range(with_range([0.5, -30.0], [0.5, -30.0]))
    assert low.tolist() == pytest.approx([0.499, -30.03], rel=1e-6)
    assert high.tolist() == pytest.approx([0.501, -29.97], rel=1e-6)


def test_every_row_says_its_own_log_probability_and_entropy():
    world = tiny.world().double()
    many = WorldModelVectorEnv(world, tiny.starts(), 2, horizon=4)
    many.reset(seed=7)
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 2)).astype(np.float32)
    told = many.step(actions)[-1]
    for row in range(2):
        one = WorldModelEnv(world, tiny.starts(), horizon=4)
        one.reset(seed=7 + row)
        info = one.step(actions[row])[-1]
        for name in ("logprob", "entropy"):
            assert told[name][row] == pytest.approx(info[name], rel=1e-4), name
    assert (told["entropy"] > 0).all() and (told["logprob"] < 0).all()


def test_an_update_of_every_round_has_a_clip_length_of_its_own(monkeypatch):
    config = tiny.config(seed=5)
    config.plan.tokenizer_updates, config.plan.transformer_updates = 9, 7
    learner, lengths = ModelLearner(tiny.world(), config), {}
    for name in ("tokenizer", "transformer"):

        def update(source, number, step, name=name):
            lengths[name, number, step] = source.num_frames

        monkeypatch.setattr(learner, f"_{name}_update", update)
    rng = np.random.default_rng(0)
    episodes = [
        Episode(rng.integers(0, 256, (num, 16, 16, 3), dtype=np.uint8), np.zeros((num, 2), "f"), np.zeros(num, "f"))
        for num in (1, 2, 3, 9)
    ]
    for number in (0, 1):
        learner.learn(episodes, number)
    for (name, number, step), length in lengths.items():  # an episode of one frame has none after the context
        assert length == (2, 3, 4)[derive(5, "adapt", "length", name, number, step) % 3]
    assert len(lengths) == 2 * 16 and len(set(lengths.values())) == 3


def test_the_agent_discounts_by_nineteen_twentieths_and_learns_at_three_ten_thousandths():
    pytest.importorskip("stable_baselines3", reason="the extra rl is not installed")
    from toolkit.ivideogpt.control.mbpo import Agent, Settings

    agent = Agent(16, 2, Settings(batch_size=6, seed=3)).sac
    assert (agent.gamma, agent.batch_size, agent.seed) == (0.95, 6, 3)
    assert [group["lr"] for group in agent.actor.optimizer.param_groups] == [3e-4]
    assert [group["lr"] for group in agent.critic.optimizer.param_groups] == [3e-4]
    assert Settings() == Settings(20, 20, 32, 5, 40, 64, 0.5, 0, None)


def test_imagined_frames_are_drawn_as_the_settings_say(monkeypatch):
    pytest.importorskip("stable_baselines3", reason="the extra rl is not installed")
    from toolkit.ivideogpt.control import mbpo

    asked, own = [], WorldModel.imagine
    monkeypatch.setattr(WorldModel, "imagine", lambda *given: asked.append(given[3:]) or own(*given))
    sizes = mbpo.Settings(imagined=2, horizon=3, sampling="greedy")
    taken = mbpo.Taken(np.float32([-1, -1]), np.float32([1, 1]))
    mbpo._imagine(mbpo.Agent(16, 2, sizes), tiny.world(), [tiny.starts()[0, 0]], sizes, 0, taken)
    assert asked == [(3, "greedy")]


def test_seeds_are_used_once_and_features_are_rectified_between_convolutions():
    pytest.importorskip("stable_baselines3", reason="the extra rl is not installed")
    from toolkit.ivideogpt.control.sb3 import SmallFrameFeatures, WorldModelVecEnv

    many = WorldModelVecEnv(tiny.world(), tiny.starts(), 3, horizon=2)
    plain = WorldModelVectorEnv(tiny.world(), tiny.starts(), 3, horizon=2)
    many.seed(7)
    for seed in (7, None, None):
        many.reset()
        told = plain.reset(seed=seed)[1]["start"]
        assert [info["start"] for info in many.reset_infos] == told.tolist()
        assert [one.bit_generator.state for one in many.worlds.rngs] == [one.bit_generator.state for one in plain.rngs]
    torch.manual_seed(0)
    space = plain.single_observation_space
    features = SmallFrameFeatures(type(space)(0, 255, (3, 20, 16), np.uint8), features_dim=5)
    x = torch.rand(2, 3, 20, 16)
    convolutions = [part for part in features.modules() if isinstance(part, nn.Conv2d)]
    assert [part.out_channels for part in convolutions] == [16, 32, 32]
    made = x
    for part in convolutions:
        made = nn.functional.conv2d(made, part.weight, part.bias, stride=2, padding=1).clamp(min=0)
    linear = next(part for part in features.modules() if isinstance(part, nn.Linear))
    torch.testing.assert_close(features(x), (made.flatten(1) @ linear.weight.T + linear.bias).clamp(min=0))


def test_an_update_of_the_model_takes_its_own_gradient_alone_cut_to_the_norm_asked_for():
    """A gradient of 3 and 4 has the norm 5: as it is, then cut to 1; the second is not added to the first."""
    network = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    learner = SimpleNamespace(optimizers={"tokenizer": torch.optim.SGD(network.parameters(), lr=1.0)})
    for most, wanted in ((9.0, [-3.0, -4.0]), (1.0, [-3.6, -4.8])):
        network.train().requires_grad_(True)
        loss = network(torch.tensor([3.0, 4.0])).sum()
        ModelLearner._step(learner, "tokenizer", network, loss, most)
        assert network.weight[0].tolist() == pytest.approx(wanted, rel=1e-5)
        assert not network.training and not network.weight.requires_grad and network.weight.grad is None
