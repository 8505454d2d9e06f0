"""The world model as a gymnasium environment: its contract, and that many worlds in a batch equal single ones."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tests.ivideogpt import tiny
from toolkit.errors import UserError
from toolkit.ivideogpt.control.env import WorldModelEnv, WorldModelVectorEnv
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.sampling import Sampling

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (6, 3, 2)).astype(np.float32)  # [step, row, A]


def make(**keys):
    return WorldModelEnv(tiny.world(), tiny.starts(), **keys)


@pytest.mark.filterwarnings("ignore:.*render_modes.*", "ignore:.*not within the.*")
def test_gymnasiums_own_checks_pass():
    check_env(make(horizon=4), skip_render_check=False)


def play(env, seed, actions):
    seen = [env.reset(seed=seed)[0]]
    rewards = []
    for action in actions:
        frame, reward, _, truncated, _ = env.step(action)
        seen.append(frame)
        rewards.append(reward)
        if truncated:
            break
    return np.stack(seen), rewards


def test_the_same_seed_and_actions_give_the_same_bytes_and_other_actions_another_world():
    env = make(horizon=5)
    first, rewards = play(env, 4, ACTIONS[:, 0])
    again, same = play(env, 4, ACTIONS[:, 0])
    assert (first == again).all() and rewards == same
    other, _ = play(env, 4, -ACTIONS[:, 0])
    assert (other[0] == first[0]).all() and (other != first).any()
    assert (play(env, 5, ACTIONS[:, 0])[0] != first).any()


def test_an_episode_is_truncated_at_its_horizon():
    env = make(horizon=3)
    frames, _ = play(env, 0, ACTIONS[:, 0])
    assert len(frames) == 4
    assert make().worlds.horizon == tiny.world().spec.max_future


def test_beyond_the_positions_it_raises_or_goes_on_from_a_renewed_context():
    most = tiny.world().spec.max_future
    with pytest.raises(UserError, match=f"horizon={most + 1}: the model imagines {most} frames"):
        make(horizon=most + 1)
    env = make(horizon=most + 2, on_overflow="recontext")
    env.reset(seed=0)
    renewed = [env.step(ACTIONS[0, 0])[-1]["recontextualised"] for _ in range(most + 2)]
    assert renewed == [False] * most + [True, False]


def test_starts_are_chosen_by_options_or_brought_along():
    env = make()
    contexts = tiny.starts()
    frame, info = env.reset(seed=0, options={"context": 2})
    assert info["start"] == 2 and (frame == contexts[2, -1]).all()
    frame, info = env.reset(seed=0, options={"context": contexts[1]})
    assert info["start"] == -1 and (frame == contexts[1, -1]).all()
    with pytest.raises(UserError, match=r"starts 0\.\.2"):
        env.reset(options={"context": 3})
    with pytest.raises(UserError, match="uint8 frames of shape"):
        env.reset(options={"context": contexts[1] / 255.0})


def test_states_are_saved_and_returned_to():
    env = make()
    env.reset(seed=1)
    env.step(ACTIONS[0, 0])
    saved = env.save_state()
    first = env.step(ACTIONS[1, 0])[0]
    env.step(ACTIONS[2, 0])
    env.load_state(saved)
    assert (env.step(ACTIONS[1, 0])[0] == first).all()


def test_termination_and_rendering():
    env = make(termination=lambda frame, reward: True, render_scale=3)
    env.reset(seed=0)
    frame, _, terminated, _, info = env.step(ACTIONS[0, 0])
    assert terminated and info["has_reward"] and info["tokens"].shape == (4,)
    assert env.render().shape == (48, 48, 3) and (env.render()[::3, ::3] == frame).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="action-free"):
        WorldModelEnv(tiny.world(action_dim=0), tiny.starts())
    with pytest.raises(UserError, match="starts of shape"):
        WorldModelEnv(tiny.world(), tiny.starts()[:, 0])
    env = make()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(ACTIONS[0, 0])
    env.reset(seed=0)
    with pytest.raises(UserError, match="shape"):
        env.step(np.zeros(3))
    with pytest.raises(UserError, match="not finite"):
        env.step(np.array([np.nan, 0]))


def test_every_row_of_the_vector_equals_a_single_environment():
    world = tiny.world().double()  # three rows at once may round unlike one, and pixels are whole numbers
    many = WorldModelVectorEnv(world, tiny.starts(), 3, horizon=4)
    frames = [many.reset(seed=7)[0]]
    rewards = []
    for actions in ACTIONS[:4]:
        frame, reward, terminated, truncated, info = many.step(actions)
        frames.append(frame)
        rewards.append(reward)
        assert info["entropy"].shape == (3,) and not terminated.any()
    assert truncated.all() and frame.dtype == np.uint8
    for row in range(3):
        single, its_rewards = play(WorldModelEnv(world, tiny.starts(), horizon=4), 7 + row, ACTIONS[:4, row])
        assert (single == np.stack(frames)[:, row]).all()
        assert np.allclose(its_rewards, np.stack(rewards)[:, row], atol=1e-5)


def test_a_row_that_ends_is_begun_anew_at_the_next_step_and_the_others_go_on():
    calls = []

    def end_first_row(frame, reward):
        calls.append(reward)
        return len(calls) == 1  # the first row of the first step

    many = WorldModelVectorEnv(tiny.world(), tiny.starts(), 3, horizon=6, termination=end_first_row)
    plain = WorldModelVectorEnv(tiny.world(), tiny.starts(), 3, horizon=6)
    many.reset(seed=7)
    plain.reset(seed=7)
    assert many.step(ACTIONS[0])[2].tolist() == [True, False, False]
    plain.step(ACTIONS[0])
    frames, rewards, terminated, _, _ = many.step(ACTIONS[1])
    assert many.t.tolist() == [0, 2, 2] and rewards[0] == 0 and not terminated[0]
    assert any((frames[0] == start[-1]).all() for start in tiny.starts())
    for actions in ACTIONS[1:2]:
        expected = plain.step(actions)[0]
    assert (frames[1:] == expected[1:]).all()
    assert (many.step(ACTIONS[2])[0][1:] == plain.step(ACTIONS[2])[0][1:]).all()
    assert many.t.tolist() == [1, 3, 3] and len(many.render()) == 3


def calls_of(monkeypatch):
    """The names of all steps and looks of world models from now on, a list that grows."""
    calls = []
    for name in ("step", "begin"):
        own = getattr(WorldModel, name)
        monkeypatch.setattr(
            WorldModel, name, lambda *a, _own=own, _name=name, **k: calls.append(_name) or _own(*a, **k)
        )
    return calls


def test_rows_of_any_ages_are_one_call_a_step(monkeypatch):
    luck = np.random.default_rng(3)
    many = WorldModelVectorEnv(tiny.world(), tiny.starts(), 3, horizon=6, termination=lambda *_: luck.random() < 0.4)
    many.reset(seed=7)
    calls = calls_of(monkeypatch)
    ages, anew = set(), 0
    for step in range(12):
        ended = many.ended.copy()
        calls.clear()
        many.step(ACTIONS[step % 6])
        assert calls == ["step"] * (not ended.all()) + ["begin"] * bool(ended.any())
        ages.add(len({*many.t.tolist()}))
        anew += ended.any()
    assert max(ages) == 3 and anew >= 3


def test_rows_begin_anew_at_once_or_when_they_are_asked_to():
    same = WorldModelVectorEnv(tiny.world(), tiny.starts(), 2, horizon=2, autoreset="same_step", render_mode=None)
    plain = WorldModelVectorEnv(tiny.world(), tiny.starts(), 2, horizon=2)
    for env in (same, plain):
        env.reset(seed=1)
        env.step(ACTIONS[0, :2])
    last, _, _, ended, _ = plain.step(ACTIONS[1, :2])
    frames, _, _, truncated, info = same.step(ACTIONS[1, :2])
    assert ended.all() and truncated.all() and info["_final_obs"].all() and (info["final_obs"] == last).all()
    anew = plain.step(ACTIONS[2, :2])[0]
    assert (frames == anew).all() and same.t.tolist() == [0, 0]
    asked = WorldModelVectorEnv(tiny.world(), tiny.starts(), 2, horizon=3, autoreset="disabled")
    with pytest.raises(gymnasium.error.ResetNeeded):
        asked.reset(options={"reset_mask": np.array([True, False])})
    asked.reset(seed=1)
    before = asked.step(ACTIONS[0, :2])[0]
    frames, info = asked.reset(seed=9, options={"reset_mask": np.array([False, True]), "context": 2})
    assert (frames[0] == before[0]).all() and (frames[1] == tiny.starts()[2, -1]).all()
    assert info["start"].tolist() == [-1, 2] and asked.t.tolist() == [1, 0]
    asked.step(ACTIONS[1, :2])
    assert asked.step(ACTIONS[2, :2])[3].tolist() == [True, False]
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"rows \[0\] have ended"):
        asked.step(ACTIONS[3, :2])
    for wrong in ([True], np.zeros(2, bool), [1, 0]):
        with pytest.raises(UserError, match="expected 2 booleans, at least one"):
            asked.reset(options={"reset_mask": wrong})


def test_render_modes_that_nobody_draws_are_refused():
    with pytest.raises(UserError, match="render_mode=human: choose rgb_array or None"):
        make(render_mode="human")
    with pytest.raises(UserError, match="autoreset=sometimes: choose one of disabled, next_step, same_step"):
        WorldModelVectorEnv(tiny.world(), tiny.starts(), 2, autoreset="sometimes")


def test_a_standard_wrapper_runs_on_the_vector():
    many = gymnasium.wrappers.vector.RecordEpisodeStatistics(
        WorldModelVectorEnv(tiny.world(), tiny.starts(), 2, horizon=2)
    )
    many.reset(seed=0)
    many.step(ACTIONS[0, :2])
    info = many.step(ACTIONS[1, :2])[-1]
    assert info["episode"]["l"].tolist() == [2, 2]


def test_other_libraries_find_its_spaces():
    env = make()
    assert env.action_space == gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    two = WorldModelEnv(tiny.world(context_length=2), tiny.starts(context_length=2))
    assert (two.reset(seed=0, options={"context": 0})[0] == tiny.starts(context_length=2)[0, -1]).all()


def with_settings(**keys):
    """The tiny world with other settings."""
    plain = tiny.world()
    return WorldModel(plain.tokenizer, plain.transformer, **keys)


def test_imagined_frames_are_drawn_as_the_model_says():
    own = Sampling(temperature=0.01, top_k=2)
    told, _ = play(make(sampling=own), 4, ACTIONS[:, 0])
    assert (play(WorldModelEnv(with_settings(sampling=own), tiny.starts()), 4, ACTIONS[:, 0])[0] == told).all()
    assert (play(make(), 4, ACTIONS[:, 0])[0] != told).any()


def test_a_choice_between_actions_is_a_discrete_space_whose_steps_are_one_hot_rows():
    world = with_settings(discrete=2)
    env, plain = WorldModelEnv(world, tiny.starts()), make()
    assert env.action_space == gymnasium.spaces.Discrete(2)
    chosen, rows = play(env, 3, [1, 0, np.int64(1)]), play(plain, 3, np.eye(2)[[1, 0, 1]])
    assert (chosen[0] == rows[0]).all() and chosen[1] == rows[1]
    for wrong in (2, -1, 0.5):
        with pytest.raises(UserError, match=r"expected whole numbers 0\.\.1"):
            env.step(wrong)
    many = WorldModelVectorEnv(world, tiny.starts(), 2)
    assert many.action_space == gymnasium.spaces.MultiDiscrete([2, 2])
    many.reset(seed=3)
    assert (many.step(np.array([1, 0]))[0][0] == chosen[0][1]).all()
    skipping = WorldModel(world.tokenizer, world.transformer, discrete=1)
    assert WorldModelEnv(skipping, tiny.starts()).action_space == gymnasium.spaces.MultiDiscrete([1, 1])


def test_a_number_that_never_varied_has_a_narrow_range_of_its_own():
    world = with_settings(action_low=[-1, 20], action_high=[1, 20])
    space = WorldModelEnv(world, tiny.starts()).action_space
    assert np.isfinite(space.low).all() and (space.low < space.high).all()
    assert space.low[0] == -1 and space.high[0] == 1 and np.abs(space.high[1] - 20) < 0.1 > np.abs(space.low[1] - 20)


def test_sac_learns_where_a_number_of_the_action_never_varied():
    sb3 = pytest.importorskip("stable_baselines3", reason="the extra rl is not installed")
    world = with_settings(action_low=[-1, 0], action_high=[1, 0])
    env = WorldModelEnv(world, tiny.starts(), horizon=2)
    sb3.SAC("MlpPolicy", env, learning_starts=2, buffer_size=20, batch_size=2, policy_kwargs={"net_arch": [4]}).learn(5)


def test_frames_that_are_no_bytes_are_refused_and_whole_numbers_in_range_are_not():
    starts = tiny.starts()
    for wrong, message in (
        (starts / 255.0, "starts: frames are float64"),
        (starts.astype(int) + 300, r"int64 in .* expected 0\.\.255"),
    ):
        with pytest.raises(UserError, match=message):
            WorldModelEnv(tiny.world(), wrong)
    given = WorldModelEnv(tiny.world(), starts.astype(np.int64)).reset(seed=0)[0]
    assert (given == make().reset(seed=0)[0]).all()


@pytest.mark.filterwarnings("error")
def test_an_action_beyond_float32_is_refused():
    env = make()
    env.reset(seed=0)
    with pytest.raises(UserError, match="not finite in float32"):
        env.step(np.array([1e40, 0]))


def test_seeds_may_be_numpys():
    env, many = make(), WorldModelVectorEnv(tiny.world(), tiny.starts(), 3)

    def first(one, seed, actions):
        one.reset(seed=seed)
        return one.step(actions)[0]

    for seed in (0, 3):
        assert (first(env, np.int64(seed), ACTIONS[0, 0]) == first(env, seed, ACTIONS[0, 0])).all()
        expected = first(many, seed, ACTIONS[0])
        for same in (np.int64(seed), np.arange(seed, seed + 3)):
            assert (first(many, same, ACTIONS[0]) == expected).all()
