"""The planners find what a score asks for; control in the true simulator with the true simulator's scores succeeds."""

import numpy as np
import pytest

from tests.ivideogpt import tiny
from toolkit.data.episodes.environments import PushSpriteEnv
from toolkit.errors import UserError
from toolkit.ivideogpt.config import Plan, Rollout
from toolkit.ivideogpt.control.planning import Task, control, goal_image, search
from toolkit.ivideogpt.rollout import sampling_of
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.sampling import Sampling

LOW, HIGH = np.float32([-2, 0]), np.float32([2, 4])
TARGET = np.array([1.5, 0.5])


def task(env=None):
    return Task(env, LOW, HIGH, 1)


def score(candidates):
    assert candidates.dtype == np.float32 and (candidates >= LOW).all() and (candidates <= HIGH).all()
    return -np.square(candidates - TARGET).sum((1, 2))


def found(planner, seed=0, **keys):
    settings = Plan(horizon=3, num_candidates=64, num_elites=8, num_iterations=6, **keys)
    return search(score if planner != "random" else None, task(), settings, np.random.default_rng(seed), planner)


def test_the_cross_entropy_method_comes_nearer_than_shooting_and_that_nearer_than_chance():
    errors = {
        planner: np.mean([np.abs(found(planner, seed) - TARGET).mean() for seed in range(10)])
        for planner in ("cem", "shooting", "random")
    }
    assert errors["cem"] < 0.15 and errors["cem"] < 0.5 * errors["shooting"] and errors["shooting"] < errors["random"]


def test_shooting_spends_as_many_candidates_as_all_iterations_together():
    counts = []
    settings = Plan(horizon=3, num_candidates=8, num_elites=2, num_iterations=5)
    for planner in ("cem", "shooting"):
        calls = []
        search(
            lambda c, calls=calls: calls.append(len(c)) or score(c), task(), settings, np.random.default_rng(0), planner
        )
        counts.append((len(calls), sum(calls)))
    assert counts == [(5, 40), (1, 40)]


def push_task():
    env = PushSpriteEnv(16)
    return Task(env, env.action_space.low, env.action_space.high, 1)


@pytest.mark.slow
def test_planning_in_the_simulator_itself_reaches_goal_images_and_chance_does_not():
    config = tiny.config()
    settings = {
        "horizon": 7,
        "num_candidates": 32,
        "num_elites": 6,
        "num_iterations": 3,
        "num_steps": 9,
        "replan_every": 3,
    }
    config.plan = Plan(num_episodes=6, objective="goal_image", **settings)
    ends = {
        planner: [control(tiny.world(), push_task(), config, planner, index) for index in range(6)]
        for planner in ("oracle", "random")
    }
    assert sum(end.success for end in ends["oracle"]) >= 4 and not any(end.success for end in ends["random"])
    assert (
        np.mean([end.progress for end in ends["oracle"]])
        > 0.6
        > 0.2
        > np.mean([end.progress for end in ends["random"]])
    )


@pytest.mark.parametrize("objective", ["reward", "goal_image"])
def test_plans_are_made_in_the_model_and_are_a_function_of_the_seed(objective):
    config = tiny.config()
    config.plan = Plan(horizon=3, num_candidates=6, num_elites=2, num_iterations=2, num_steps=4, objective=objective)
    ends = [control(tiny.world(), push_task(), config, "cem", 3) for _ in range(2)]
    assert ends[0] == ends[1]


def test_goal_images_can_be_reached_from_their_start():
    task = push_task()
    settings = Plan(horizon=5)
    goal = goal_image(task, 11, settings)
    assert (goal == goal_image(task, 11, settings)).all()
    assert (goal != task.env.reset(seed=11)[0]).any()


def test_data_without_a_simulator_cannot_be_planned_for():
    import dataclasses

    dataset = dataclasses.replace(tiny.clips().dataset, env=None)
    with pytest.raises(UserError, match="came from no simulator that is here"):
        dataset.make_env()


def test_of_a_choice_between_actions_every_planner_scores_and_gives_one_hot_rows():
    choice = Task(None, np.float32([0, 0]), np.float32([1, 1]), 1, discrete=2)
    wanted = np.eye(2)[[1, 0, 1]]

    def hits(candidates):
        assert set(np.unique(candidates)) == {0, 1} and (candidates.sum(-1) == 1).all()
        return (candidates * wanted).sum((1, 2))

    settings = Plan(horizon=3, num_candidates=64, num_elites=8, num_iterations=4)
    for planner in ("cem", "shooting"):
        assert (search(hits, choice, settings, np.random.default_rng(0), planner) == wanted).all()
    assert (search(None, choice, settings, np.random.default_rng(0), "random").sum(-1) == 1).all()


def test_plans_are_made_as_the_model_is_sampled_unless_the_config_says_how():
    config, plain = tiny.config(), tiny.world()
    assert sampling_of(config) is None
    config.rollout.temperature = 0.5
    assert sampling_of(config) == Sampling(temperature=0.5)
    config.rollout.sampling = "greedy"
    assert sampling_of(config) == "greedy"
    config.rollout = Rollout(as_trained=False)
    assert sampling_of(config) == Sampling(temperature=1.0, top_k=100)  # asked for, whatever the model says
    config = tiny.config()
    config.plan = Plan(horizon=3, num_candidates=6, num_elites=2, num_iterations=2, num_steps=6)
    own = WorldModel(plain.tokenizer, plain.transformer, sampling=Sampling(temperature=0.01, top_k=1))
    ends = [control(world, push_task(), config, "cem", 3).progress for world in (own, plain)]
    config.rollout.temperature, config.rollout.top_k = 0.01, 1
    assert control(plain, push_task(), config, "cem", 3).progress == ends[0] != ends[1]


class Ending(PushSpriteEnv):
    """Over after two moves; a third is an error, as in gymnasium's checks."""

    moves = 0

    def reset(self, **keys):
        self.moves = 0
        return super().reset(**keys)

    def step(self, action):
        self.moves += 1
        assert self.moves <= 2, "a step after the end"
        frame, reward, _, truncated, info = super().step(action)
        return frame, reward, self.moves == 2, truncated, info


@pytest.mark.parametrize("objective", ["goal_image", "reward"])
@pytest.mark.parametrize("replan_every", [1, 3])
def test_control_ends_where_the_environment_ends(objective, replan_every):
    config = tiny.config()
    config.plan = Plan(objective=objective, num_steps=6, horizon=3, replan_every=replan_every)
    env = Ending(16)
    control(tiny.world(), Task(env, env.action_space.low, env.action_space.high, 1), config, "random", 0)
    assert env.moves == 2


def test_a_goal_conditioned_model_plans_with_the_goal_before_what_is_seen(monkeypatch):
    plain = tiny.world(context_length=2, positions=200)
    world = WorldModel(plain.tokenizer, plain.transformer, goal_conditioned=True)
    config = tiny.config(context_length=2, goal_conditioned=True)
    config.plan = Plan(horizon=2, num_candidates=4, num_elites=2, num_iterations=1, num_steps=2, replan_every=1)
    env, shown = PushSpriteEnv(16), []
    own = WorldModel.begin
    monkeypatch.setattr(WorldModel, "begin", lambda *args, **keys: shown.append(args[1]) or own(*args, **keys))
    task = Task(env, env.action_space.low, env.action_space.high, 2)
    control(world, task, config, "cem", 3)
    goals = [context[0, 0] for context in shown]
    assert len(goals) == 2 and (goals[0] == goals[1]).all() and (goals[0] != shown[0][0, 1]).any()
    config.plan, config.reward_head = Plan(num_episodes=1, objective="reward"), True
    with pytest.raises(UserError, match=r"plan\.objective=reward: goal_conditioned=true plans to a goal"):
        config.check()
