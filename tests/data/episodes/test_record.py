"""Recording: a pure function of seed and number, resumable, and a crashing environment loses its own episode only."""

from typing import ClassVar

import gymnasium
import numpy as np
import pytest

from toolkit.data.episodes import environments
from toolkit.data.episodes.environments import NAMED, Recorded, chase
from toolkit.data.episodes.episode import EpisodeSpec, read_episode
from toolkit.data.episodes.record import MANIFEST, Plan, read_manifest, record
from toolkit.errors import JobError, UserError

PUSH = Plan("push_sprite", num_episodes=3, num_frames=5, size_px=16)


def files(folder):
    return sorted(path.name for path in folder.glob("*.npz"))


def test_episodes_are_whole_and_alike_whenever_they_are_recorded(tmp_path):
    assert record(PUSH, tmp_path / "a") == (3, [])
    record(Plan("push_sprite", 1, 5, 16), tmp_path / "b")
    kept = (tmp_path / "b" / "episode_000000.npz").stat().st_mtime_ns
    assert record(PUSH, tmp_path / "b") == (3, [])
    assert (tmp_path / "b" / "episode_000000.npz").stat().st_mtime_ns == kept
    for name in files(tmp_path / "a"):
        one, other = (read_episode(tmp_path / folder / name, EpisodeSpec()) for folder in "ab")
        assert one.image.shape == (5, 16, 16, 3) and one.action.shape == (5, 2) and one.reward.shape == (5,)
        assert (one.image == other.image).all() and (one.action == other.action).all()
    facts = read_manifest(tmp_path / "a")
    assert facts["env"] == "push_sprite" and facts["action_low"] == [-1, -1] and facts["num_frames"] == 5


class Crashing(environments.PushSpriteEnv):
    """Fails in the worlds whose number is in ``bad``."""

    bad: ClassVar[set[int]] = set()
    started = 0

    def reset(self, **keys):
        self.number = Crashing.started
        Crashing.started += 1
        return super().reset(**keys)

    def step(self, action):
        if self.number in self.bad:
            raise RuntimeError("the arm\nbroke")
        return super().step(action)


@pytest.fixture
def crashing(monkeypatch):
    monkeypatch.setitem(NAMED, "push_sprite", Recorded(Crashing, chase, "generated", ""))
    monkeypatch.setattr(Crashing, "started", 0)
    return lambda *numbers: monkeypatch.setattr(Crashing, "bad", set(numbers))


def test_a_crash_loses_one_episode_and_the_next_call_fills_the_gap(tmp_path, crashing):
    crashing(1)
    there, problems = record(PUSH, tmp_path)
    assert there == 2 and problems == ["episode 1: RuntimeError: the arm broke"]
    assert files(tmp_path) == ["episode_000000.npz", "episode_000002.npz"]
    crashing()
    assert record(PUSH, tmp_path) == (3, [])


def test_an_environment_that_keeps_crashing_stops_the_recording(tmp_path, crashing):
    crashing(*range(1, 50))
    with pytest.raises(JobError, match=r"3 episodes failed in a row, the last: episode 3: .*; 1 kept"):
        record(Plan("push_sprite", 10, 5, 16), tmp_path)
    assert files(tmp_path) == ["episode_000000.npz"]


def test_bad_requests_are_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean 'push_sprite'"):
        record(Plan("push_sprit"), tmp_path)
    with pytest.raises(UserError, match="num-frames=1: must be at least 2"):
        record(Plan("push_sprite", num_frames=1), tmp_path)
    record(PUSH, tmp_path / "a")
    with pytest.raises(UserError, match="holds episodes with size_px=16, not 32"):
        record(Plan("push_sprite", 3, 5, 32), tmp_path / "a")
    (tmp_path / "a" / MANIFEST).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        record(PUSH, tmp_path / "a")
    (tmp_path / "a" / MANIFEST).unlink()
    with pytest.raises(UserError, match="did not record"):
        record(PUSH, tmp_path / "a")


def test_any_gymnasium_environment_that_renders(tmp_path):
    pytest.importorskip("pygame", reason="gymnasium's pictures of CartPole need pygame")
    assert record(Plan("CartPole-v1", 2, 30, 32), tmp_path)[0] == 2
    found = read_episode(tmp_path / "episode_000000.npz", EpisodeSpec())
    assert found.image.shape[1:] == (32, 32, 3) and found.action.shape[1] == 2  # two discrete actions, as one-hot rows
    assert len(found) <= 30 and found.reward[0] == 1


def test_gym_pusht_moves_where_the_actions_point(tmp_path):
    pytest.importorskip("gym_pusht", reason="the extra robots is not installed")
    env = NAMED["pusht"].make(32)
    frame, info = env.reset(seed=0)
    assert frame.shape == (32, 32, 3) and env.action_space.shape == (2,)
    before = info["agent"]
    for _ in range(4):
        info = env.step(np.float32([-1, 0]))[-1]
    assert info["agent"][0] < before[0] - 0.1 and abs(info["agent"][1] - before[1]) < 0.05


def test_the_kuka_scene_is_a_function_of_its_seed_and_moves_where_the_actions_point():
    pytest.importorskip("pybullet", reason="the extra robots is not installed")
    env = NAMED["kuka"].make(32)
    seen = []
    for _ in range(2):
        frame, info = env.reset(seed=3)
        moved = env.step(np.float32([0, 1, 0, 0]))
        seen.append((frame.tobytes(), moved[0].tobytes()))
    env.close()
    assert seen[0] == seen[1] and seen[0][0] != seen[0][1]
    assert moved[-1]["agent"][1] > info["agent"][1] + 0.02 and moved[-1]["objects"].shape == (3, 3)


class Noting(gymnasium.Env):
    """Three actions to choose from; every picture has the grey level of what was chosen last."""

    render_mode = "rgb_array"
    action_space = gymnasium.spaces.Discrete(3)
    observation_space = gymnasium.spaces.Box(0, 1, (1,))
    picture = np.zeros((8, 8, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.picture = np.full((8, 8, 3), 100 * action, np.uint8)
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self):
        return self.picture


def test_of_a_choice_the_row_of_what_was_carried_out_is_stored_and_the_manifest_says_so(tmp_path, monkeypatch):
    made = Recorded(lambda size_px: environments.Rendered(Noting(), size_px), environments._uniform_policy, "mine", "")
    monkeypatch.setitem(NAMED, "noting", made)
    record(Plan("noting", 1, 20, 8), tmp_path)
    found = read_episode(tmp_path / "episode_000000.npz", EpisodeSpec())
    carried_out = found.image[1:, 0, 0, 0] // 100
    assert set(carried_out) == {0, 1, 2}
    assert (found.action[:-1] == np.eye(3)[carried_out]).all() and found.action[-1].sum() == 1
    assert read_manifest(tmp_path)["discrete"] == 3
    record(PUSH, tmp_path / "push")
    assert "discrete" not in read_manifest(tmp_path / "push")


def test_pictures_that_are_no_bytes_and_actions_that_are_no_numbers_are_refused():
    env = environments.Rendered(Noting(), 8)
    env.reset(seed=0)
    for picture, message in ((np.ones((8, 8, 3)), "render.*float64"), (np.full((8, 8, 3), 300), r"300\.\.300")):
        env.unwrapped.picture = picture
        with pytest.raises(UserError, match=message):
            env.reset(seed=0)
    with pytest.raises(UserError, match="expected 3 finite numbers"):
        env.step([np.nan, 0, 0])


class Own(gymnasium.Env):
    """Choices that do not begin at 0, and pictures of any shape."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}
    action_space = gymnasium.spaces.Discrete(3, start=5)
    observation_space = gymnasium.spaces.Discrete(1)
    render_mode = "rgb_array"

    def __init__(self, shape):
        self.shape, self.taken = shape, []

    def reset(self, **keys):
        super().reset(**keys)
        return 0, {}

    def step(self, action):
        self.taken.append(action)
        return 0, 0.0, False, False, {}

    def render(self):
        return np.zeros(self.shape, np.uint8)


def test_choices_that_begin_elsewhere_than_at_zero_are_carried_out():
    env = Own((8, 8, 3))
    rendered = environments.Rendered(env, 8)
    rendered.reset(seed=0)
    for row in np.eye(3, dtype=np.float32):
        rendered.step(row)
    assert env.taken == [5, 6, 7] and all(map(env.action_space.contains, env.taken))


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (3, 8, 8)])
def test_pictures_that_are_not_of_three_channels_last_are_refused(shape):
    with pytest.raises(UserError, match=r"render\(\): a picture of shape .*, expected \[H, W, 3\]"):
        environments.Rendered(Own(shape), 8).reset(seed=0)
