"""What a candidate scores in the model, and what an episode's progress is, each written out."""

import numpy as np
import pytest

from tests.ivideogpt import tiny
from toolkit.data.episodes.environments import PushSpriteEnv
from toolkit.ivideogpt.config import Plan
from toolkit.ivideogpt.control.planning import Task, _scorer, control
from toolkit.runs.seeds import derive
from toolkit.zoo.world.model import WorldModel


class Paying(PushSpriteEnv):
    """The n-th step pays n squared; steps are counted."""

    def reset(self, **keys):
        self.steps = 0
        return super().reset(**keys)

    def step(self, action):
        self.steps += 1
        frame, _, ended, truncated, info = super().step(action)
        return frame, float(self.steps**2), ended, truncated, info


def task():
    env = Paying(16)
    return Task(env, env.action_space.low, env.action_space.high, 1)


def config_of(**keys):
    config = tiny.config()
    config.rollout.sampling = "greedy"
    config.plan = Plan(horizon=3, num_candidates=4, num_elites=2, num_iterations=1, **keys)
    return config


@pytest.mark.parametrize("objective", ["reward", "goal_image"])
def test_candidates_are_scored_by_summed_rewards_or_by_the_distance_to_the_goal(objective):
    config, world, where = config_of(objective=objective), tiny.world(), task()
    frame, _ = where.env.reset(seed=5)
    goal = np.random.default_rng(1).integers(0, 256, frame.shape, dtype=np.uint8) if objective != "reward" else None
    candidates = np.random.default_rng(0).uniform(-1, 1, (4, 3, 2)).astype(np.float32)
    found = _scorer(world, where, config, "cem", 5, [], [frame], goal)(candidates)

    state = world.begin(frame[None, None], derive(config.seed, "plan", 5, 0) % 2**31, frames=3)
    made = world.rollout(state.fork(4), candidates, "greedy")
    if goal is None:
        wanted = [sum(float(made.rewards[row, step]) for step in range(3)) for row in range(4)]
    else:
        gaps = made.frames.numpy().astype(float) - goal
        wanted = [-float((gaps[row] ** 2).mean()) / 255**2 for row in range(4)]
    assert found == pytest.approx(wanted, rel=1e-5) and len({round(one, 9) for one in wanted}) == 4


def test_progress_is_the_last_reward_less_the_first_over_as_many_steps_as_allowed():
    where = task()
    end = control(tiny.world(), where, config_of(num_steps=5, replan_every=2, objective="reward"), "random", 0)
    assert end.progress == 25 - 1 and where.env.steps == 5


def test_with_a_goal_progress_is_the_share_of_the_distance_that_was_covered(monkeypatch):
    """Standing still covers nothing, whatever the goal."""
    from toolkit.ivideogpt.control import planning

    monkeypatch.setattr(planning, "search", lambda *_: np.zeros((3, 2), np.float32))
    end = control(tiny.world(), task(), config_of(num_steps=3, objective="goal_image"), "random", 0)
    assert end.progress == pytest.approx(0, abs=0.05) and not end.success


def test_the_next_round_of_candidates_is_drawn_around_the_elite(monkeypatch):
    """One draw is far better than the rest: with one elite the second round lies around it, 0.05 apart."""
    from toolkit.ivideogpt.control.planning import search

    rounds = []

    def score(candidates):
        rounds.append(candidates)
        return -np.abs(candidates - 0.5).sum((1, 2))

    settings = Plan(horizon=2, num_candidates=64, num_elites=1, num_iterations=2, action_std=0.5)
    box = np.float32([1, 1])
    search(score, Task(None, -box, box, 1), settings, np.random.default_rng(0), "cem")
    best = rounds[0][np.argmax(score(rounds[0]))]
    assert np.abs(rounds[1].mean(0) - best).max() < 0.05 and 0.02 < rounds[1].std(0).mean() < 0.08


def test_every_plan_begins_at_what_is_seen_by_then(monkeypatch):
    class Noted(PushSpriteEnv):
        def reset(self, **keys):
            frame, info = super().reset(**keys)
            self.frames = [frame]
            return frame, info

        def step(self, action):
            found = super().step(action)
            self.frames.append(found[0])
            return found

    shown, own = [], WorldModel.begin
    monkeypatch.setattr(WorldModel, "begin", lambda *args, **keys: shown.append(args[1]) or own(*args, **keys))
    env, settings = Noted(16), {"num_steps": 4, "replan_every": 2, "objective": "reward"}
    control(tiny.world(), Task(env, env.action_space.low, env.action_space.high, 1), config_of(**settings), "cem", 0)
    assert len(shown) == 2 and (env.frames[0] != env.frames[2]).any()
    assert (shown[0][0, 0] == env.frames[0]).all() and (shown[1][0, 0] == env.frames[2]).all()
