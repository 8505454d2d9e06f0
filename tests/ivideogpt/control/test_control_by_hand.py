"""What is handed on in control: an update of the learning model, whose luck an episode has, which frames are seen."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.ivideogpt import tiny
from tests.ivideogpt.control.test_learning_by_hand import Noted
from tests.ivideogpt.control.test_planning_by_hand import Paying, config_of, task
from toolkit.data.episodes.environments import PushSpriteEnv
from toolkit.ivideogpt.config import Plan
from toolkit.ivideogpt.control import planning
from toolkit.ivideogpt.control.env import WorldModelEnv, WorldModelVectorEnv
from toolkit.ivideogpt.control.games import MOST_SEEN, Game
from toolkit.ivideogpt.control.mbpo import Settings
from toolkit.ivideogpt.control.planning import Task, _scorer, _true_scores, control, goal_image, search
from toolkit.runs.seeds import derive
from toolkit.zoo.world.model import WorldModel

RNG = np.random.default_rng(0)


# -- the model goes on learning ----------------------------------------------------------------------------------------


# -- policies that learn -----------------------------------------------------------------------------------------------


# -- planning ----------------------------------------------------------------------------------------------------------


def test_success_on_the_way_counts_and_every_episode_has_its_own_start_and_luck():
    class Passing(Noted):
        def step(self, action):
            frame, reward, ended, truncated, info = super().step(action)
            return frame, reward, ended, truncated, info | {"is_success": len(self.rows) == 2}

    config = config_of(num_steps=4, replan_every=2, objective="reward")
    moves, starts = [], []
    for seed, index in ((0, 0), (0, 1), (9, 1)):
        config.seed, env = seed, Passing()
        box = env.action_space
        assert control(tiny.world(), Task(env, box.low, box.high, 1), config, "random", index).success
        moves.append(np.stack(env.rows))
        starts.append(env.seeds[0])
    assert not np.allclose(moves[0], moves[1]) and not np.allclose(moves[1], moves[2])
    assert starts[0] != starts[1] == starts[2]  # the starts are those of every seed


def test_a_learned_policy_acts_on_the_newest_frame_without_exploring():
    shown, env = [], Noted()
    frames = [env.reset(seed=derive(0, "plan", "start", 2) % 2**30)[0]]
    frames += [env.step(np.float32([1, 0]))[0] for _ in range(2)]
    agent = SimpleNamespace(act=lambda seen, explore: shown.append((seen[0], explore)) or np.float32([[1, 0]]))
    box = env.action_space
    config = config_of(num_steps=3, replan_every=1, objective="reward")
    control(tiny.world(), Task(env, box.low, box.high, 2), config, "mbpo", 2, agent)
    assert [explore for _, explore in shown] == [False] * 3
    assert all((seen == frame).all() for (seen, _), frame in zip(shown, frames, strict=True))


def test_a_goal_lies_as_many_steps_ahead_as_a_plan_has_in_the_direction_of_its_start():
    env = PushSpriteEnv(16)
    where = Task(env, env.action_space.low, env.action_space.high, 1)
    for start in (3, 11):
        direction = np.random.default_rng(derive(start, "goal")).uniform([-1, -1], [1, 1]).astype(np.float32)
        env.reset(seed=start)
        seen = [env.step(direction)[0] for _ in range(4)]
        assert (goal_image(where, start, Plan(horizon=4)) == seen[-1]).all() and (seen[-2] != seen[-1]).any()


def test_candidates_have_the_configs_spread_and_mostly_keep_their_direction():
    """0.8 of the noise is one draw for all steps: two steps correlate by 0.64. The elite alone is averaged."""
    rounds, box = [], np.float32([1, 1])

    def score(candidates):
        rounds.append(candidates)
        return -np.abs(candidates - 0.2).sum((1, 2))

    settings = Plan(horizon=3, num_candidates=4000, num_elites=3, num_iterations=2, action_std=0.1)
    found = search(score, Task(None, -box, box, 1), settings, np.random.default_rng(0), "cem")
    first = rounds[0].astype(np.float64)
    assert first.std() == pytest.approx(0.1, rel=0.03) and first.mean() == pytest.approx(0, abs=0.005)
    assert (first[:, 0] * first[:, 2]).mean() / 0.01 == pytest.approx(0.64, abs=0.05)
    elite = first[np.argsort(-score(first))[:3]]
    assert np.allclose(rounds[1].mean(0), elite.mean(0), atol=0.01)
    assert np.allclose(rounds[1].std(0), elite.std(0) + 0.05, atol=0.01)
    whole = np.concatenate(rounds[:2])
    assert np.allclose(found, whole[np.argmax(score(whole))])


@pytest.mark.parametrize("goal", [False, True])
def test_the_oracle_scores_from_where_the_episode_is_and_leaves_the_simulator_there(goal):
    """The n-th step pays n squared: after two steps three more pay 9 + 16 + 25."""
    env, target = Paying(16), None
    where, taken = task(), [np.float32([0.5, -1]), np.float32([1, 0.25])]
    candidates = RNG.uniform(-1, 1, (2, 3, 2)).astype(np.float32)
    if goal:
        target = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    found = _true_scores(where, 5, taken, candidates, target)
    for row in range(2):
        env.reset(seed=5)
        seen = [env.step(action)[0] for action in (*taken, *candidates[row])][2:]
        far = [-(((one.astype(float) - target) / 255) ** 2).mean() for one in seen] if goal else []
        assert found[row] == pytest.approx(sum(far) if goal else 50)
    env.reset(seed=5)
    frames = [env.step(action)[0] for action in (*taken, [0, 0])]
    assert where.env.steps == 2 and (where.env.step(np.float32([0, 0]))[0] == frames[-1]).all()


def test_a_plan_is_imagined_from_its_own_noise_and_a_goal_stands_in_the_place_of_the_oldest_frame(monkeypatch):
    begun, plain = [], tiny.world(context_length=3, positions=400)
    world = WorldModel(plain.tokenizer, plain.transformer, goal_conditioned=True)
    monkeypatch.setattr(WorldModel, "begin", lambda self, *given, **_: begun.append(given))
    seen = [RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(4)]
    config = config_of(objective="goal_image")
    for num, goal in ((0, seen[3]), (2, seen[3]), (2, None)):
        _scorer(world, task(), config, "cem", 5, [None] * num, seen[:3], goal)
    assert (begun[0][0][0] == np.stack([seen[3], *seen[1:3]])).all() and (begun[2][0][0] == np.stack(seen[:3])).all()
    assert [luck for _, luck in begun] == [derive(0, "plan", 5, num) % 2**31 for num in (0, 2, 2)]


# -- environments and driven worlds ------------------------------------------------------------------------------------


def test_an_environment_says_what_the_model_says_and_every_start_may_be_drawn():
    world, starts = tiny.world(), tiny.starts()
    env, many = WorldModelEnv(world, starts, horizon=4), WorldModelVectorEnv(world, starts, 2, horizon=4)
    assert {env.reset(seed=seed)[1]["start"] for seed in range(20)} == {0, 1, 2}
    action = np.float32([[0.5, -1], [1, 0]])
    many.reset(seed=3)
    info = many.step(action)[-1]
    for row in range(2):
        env.reset(seed=3 + row)
        pred = world.step(env.state, action[row][None])[1]
        said = env.step(action[row])[-1]
        assert said["logprob"] == pytest.approx(float(pred.logprob[0])) and said["logprob"] < 0 < said["entropy"]
        assert said["entropy"] == pytest.approx(float(pred.entropy[0]))
        assert info["logprob"][row] == pytest.approx(said["logprob"], rel=1e-4)
        assert info["entropy"][row] == pytest.approx(said["entropy"], rel=1e-4)
    saved = env.save_state()
    env.step(action[0])
    env.load_state(saved)
    assert env.t == 1
    plain = WorldModel(world.tokenizer, world.transformer)
    free = WorldModelEnv(plain, starts).action_space
    assert free.low.tolist() == [-1, -1] and free.high.tolist() == [1, 1]
    still = WorldModel(world.tokenizer, world.transformer, [0, 20], [0, 20])
    narrow = WorldModelEnv(still, starts).action_space
    assert narrow.low == pytest.approx([-1e-3, 20 - 2e-2], abs=1e-5)
    assert narrow.high == pytest.approx([1e-3, 20 + 2e-2], abs=1e-5)


def game(**keys):
    return Game(tiny.world(), "push_sprite", lambda: PushSpriteEnv(16), None, **keys)


def test_a_fork_goes_its_own_way():
    one = game()
    one.reset(3, 1)
    one.step([1, 0])
    two = one.fork()
    assert (two.start, two.t, len(two.taken), len(two.seen)) == (3, 1, 1, 2)
    said = two.step([-1, 0.5])
    assert (one.t, len(one.taken), len(one.seen), sum(map(len, one.memories))) == (1, 1, 2, 2)
    assert one.step([-1, 0.5]) == said  # the same seed and the same state of the simulator


def test_a_drive_keeps_its_first_frame_and_the_newest_ones(monkeypatch):
    from toolkit.ivideogpt.control import games

    monkeypatch.setattr(games, "MOST_SEEN", 3)
    one = game()
    one.reset(3, 1)
    first = one.seen[0]
    said = [one.step([1, -1]) for _ in range(5)]
    assert MOST_SEEN == 600 and len(one.seen) == 4 and one.seen[0] is first
    assert [seen.facts["entropy"] for seen in one.seen[1:]] == [now["entropy"] for now in said[2:]]
    one.undo()
    assert (one.t, len(one.taken), len(one.seen)) == (4, 4, 3)
    assert one.step([1, -1]) == said[4]


def test_an_episode_that_is_cut_off_is_over_too():
    class Cut(PushSpriteEnv):
        def step(self, action):
            frame, reward, _, _, info = super().step(action)
            return frame, reward, False, True, info

    one = Game(tiny.world(), None, lambda: Cut(16), None)
    one.reset(0, 0)
    assert one.step([1, 0])["ended"] and one.step([1, 0])["truth"] is None


def test_controls_are_named_and_a_third_number_too():
    plain = tiny.world(action_dim=3)
    info = Game(plain, "push_sprite", None, tiny.starts()).info()
    assert info["names"] == ["to the right", "down", "action 3"] and (info["right"], info["down"]) == (0, 1)
    assert Game(plain, None, None, tiny.starts()).info()["down"] == 1 and info["num_starts"] == 3
    with pytest.raises(Exception, match=r"start=3: there are 0\.\.2"):
        Game(plain, None, None, tiny.starts()).check(3, 0)


def test_of_several_context_frames_the_newest_is_shown_and_the_simulator_rests_before_it():
    plain = tiny.world(context_length=3, positions=400)
    one = Game(plain, "push_sprite", lambda: PushSpriteEnv(16), None)
    one.reset(4, 0)
    context = one.memories[0][0].recent[0].numpy()
    env = PushSpriteEnv(16)
    still = [env.reset(seed=4)[0], *(env.step(np.zeros(2, np.float32))[0] for _ in range(2))]
    assert (context == np.stack(still)).all() and (one.seen[0].frame == still[-1]).all()
    given = Game(plain, None, None, tiny.starts(context_length=3))
    given.reset(1, 0)
    assert (given.seen[0].frame == tiny.starts(context_length=3)[1, -1]).all()


def test_only_planners_that_learn_have_an_agent_and_the_model_learns_where_it_is_asked_to(monkeypatch, tmp_path):
    told, sizes = [], []

    def learn(world, env, settings, **more):
        told.append((world, more))
        sizes.append(settings)
        return "agent", None

    monkeypatch.setattr(planning, "learn", learn)
    learner = SimpleNamespace(world="a copy", learn="its updates", save=lambda folder: told.append(folder.name))
    monkeypatch.setattr(planning, "ModelLearner", lambda *_: learner)
    clips = SimpleNamespace(dataset=SimpleNamespace(make_env=lambda: "reality"))
    run = SimpleNamespace(path=lambda name: tmp_path / name)
    for planner, updates, wanted in (
        ("tokens", 0, []),
        ("sac", 3, [("the world", {"imagine": False})]),
        ("mbpo", 0, [("the world", {"imagine": True})]),
        ("mbpo", 3, [("a copy", {"adapt": "its updates"}), "model_mbpo"]),
    ):
        config = tiny.config()
        config.seed, config.rollout.sampling, config.plan.transformer_updates = 6, "greedy", updates
        config.plan.num_rounds, config.plan.num_steps, config.plan.horizon = 4, 11, 7
        told.clear()
        agent = planning._learner("the world", clips, config, planner, run)
        assert told == wanted and agent == (None if planner == "tokens" else "agent"), planner
    assert len(sizes) == 3 and all(
        one == Settings(num_rounds=4, episode_steps=11, horizon=7, seed=6, sampling="greedy") for one in sizes
    )
