"""Episodes line by line, with small numbers: what is cut, drawn, recorded and held in memory."""

import io
import struct
import zipfile
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

from toolkit import data
from toolkit.data.config import EpisodeData
from toolkit.data.episodes import environments, folder, kuka, push_sprite, record
from toolkit.data.episodes.clips import ClipSource
from toolkit.data.episodes.episode import Episode, EpisodeSet, EpisodeSpec, memory_set, resize, write_episode
from toolkit.data.episodes.layouts import oxe as oxe_layout
from toolkit.data.episodes.npz import array_shapes, load_arrays
from toolkit.data.episodes.oxe import MIXTURE, load_oxe
from toolkit.data.episodes.push_sprite import PushSprite
from toolkit.data.episodes.tfrecord import read_examples
from toolkit.errors import UserError


def an_episode(length=5, size=4, numbers=2, value=0):
    image = np.full((length, size, size, 3), value, np.uint8)
    return Episode(image, np.ones((length, numbers), np.float32), np.zeros(length, np.float32))


# -- clips -----------------------------------------------------------------------------------------------------------


def test_a_skipping_clip_has_the_numbers_of_all_actions_between_two_frames():
    held = memory_set([an_episode(length=7, numbers=2)], ["one"])
    assert held.action_dim == 2 and ClipSource(held, 3, frame_step=3).action_dim == 6


def test_what_augments_a_clip_is_its_own_whoever_reads_it_and_another_one_for_other_names():
    ramp = np.broadcast_to(np.arange(0, 240, 20, dtype=np.uint8)[None, None, :, None], (3, 12, 12, 3)).copy()
    source = ClipSource(memory_set([Episode(ramp)], ["one"]), 3, augmented=True)  # of one window alone
    whole = source.sample(5, 0, "x", 1).frames
    assert torch.equal(source.sample(5, 0, "x", 1, part=slice(3, 5)).frames, whole[3:5])
    assert not torch.equal(whole[3:5], whole[:2]) and not torch.equal(source.sample(5, 0, "x", 2).frames, whole)


# -- episodes --------------------------------------------------------------------------------------------------------


def test_pictures_are_made_smaller_by_means_of_blocks_or_by_a_filter_that_keeps_a_ramp():
    blocks = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1).repeat(3, 3) * 4
    assert resize(blocks, 2)[0, :, :, 1].tolist() == [[10, 18], [42, 50]]  # 4 times 2.5, 4.5, 10.5, 12.5
    ramp = np.broadcast_to(np.arange(0, 240, 40, dtype=np.uint8)[None, None, :, None], (1, 6, 6, 3)).copy()
    inner = resize(ramp, 4)[0, 2, 1:3, 0]  # at 1.75 and 3.25 pixels of the ramp
    assert np.abs(inner.astype(int) - [70, 130]).max() <= 4


def test_a_set_is_known_by_its_names_inside_of_the_folder_and_by_its_lengths():
    def made(root, lengths):
        return EpisodeSet(lengths, lambda index: None, [f"{root}/a", f"{root}/b"], (4, 4)).identity(root)

    assert made("/here", [3, 5]) == made("/there", [3, 5]) != made("/here", [3, 6])
    assert EpisodeSpec().least_frames == 1


# -- folders and files -----------------------------------------------------------------------------------------------


def test_what_exceeds_the_memory_is_read_again_and_a_folder_of_usual_size_is_read_wholly(tmp_path, monkeypatch):
    paths = [write_episode(tmp_path / f"{i}.npz", an_episode(value=10 * i)) for i in range(3)]
    frames_bytes = 5 * 4 * 4 * 3
    monkeypatch.setattr(folder, "IN_MEMORY_BYTES", 2 * frames_bytes)  # of three episodes
    episodes, _ = folder.read_folder(paths, EpisodeSpec())
    assert [episodes.read(i) is episodes.read(i) for i in range(3)] == [True, True, False]
    assert [int(episodes.read(i).image[0, 0, 0, 0]) for i in range(3)] == [0, 10, 20]
    bad = an_episode()
    bad.action[2, 1] = np.nan  # which headers do not tell
    paths.append(write_episode(tmp_path / "bad.npz", bad))
    with pytest.raises(UserError, match=r"bad\.npz: action is nan at \[2, 1\]"):
        folder.read_folder(paths, EpisodeSpec())


def test_an_array_is_as_long_as_its_header_says(tmp_path):
    np.save(buffer := io.BytesIO(), np.arange(4, dtype=np.float32))
    for name, content in {"more": buffer.getvalue() + b"\0\0", "less": buffer.getvalue()[:-2]}.items():
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w") as archive:
            archive.writestr("action.npy", content)
        with pytest.raises(UserError, match="truncated or no npz file"):
            array_shapes(tmp_path / f"{name}.npz")


def test_a_black_film_is_no_bomb(tmp_path):
    path = tmp_path / "black.npz"
    np.savez_compressed(path, image=np.zeros((2000, 24, 24, 3), np.uint8))  # 3.5 MB, some 900 times its file
    assert path.stat().st_size * 500 < 2000 * 24 * 24 * 3
    assert load_arrays(path, ["image"])["image"].shape == (2000, 24, 24, 3)


def test_numbers_of_a_training_split_and_of_the_held_out_ones_are_limits(tmp_path):
    for split, count in {"train": 5, "val": 4, "test": 3}.items():
        for i in range(count):
            write_episode(tmp_path / split / f"{i}.npz", an_episode())
    config = EpisodeData(name="episodes_folder", path=str(tmp_path), num_train=3, num_valid=2)
    found = data.load_episodes(config, 0, EpisodeSpec())
    assert [len(found.train), len(found.valid), len(found.test)] == [3, 2, 2]


def test_an_episode_of_the_mixture_has_frames_for_a_clip_at_its_own_step_and_its_own_length(tmp_path):
    step = MIXTURE["bridge"][1]
    assert step == 2
    for i in range(24):
        write_episode(tmp_path / "bridge" / f"{i:03d}.npz", Episode(an_episode(length=7 + i % 3).image))
    config = EpisodeData(name="oxe", path=str(tmp_path))
    found = load_oxe(config, 0, EpisodeSpec(least_frames=4)).train
    assert set(found.lengths) == {7, 8, 9}
    assert all(len(found.read(i)) == found.lengths[i] for i in range(0, len(found), 4))
    with pytest.raises(UserError, match="7 frames, a clip needs 9"):  # (5 - 1) x 2 + 1
        load_oxe(config, 0, EpisodeSpec(least_frames=5))


def test_fields_of_four_and_of_eight_bytes_are_stepped_over(tmp_path):
    """An Example {features {"x": int64 list 7}} whose entry has a fixed32 and a fixed64 field before its value."""

    def field(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    feature = field(3, field(1, b"\x07"))
    more = bytes([3 << 3 | 5]) + b"\x08\x08\x08\x08" + bytes([4 << 3 | 1]) + b"\x10" * 8
    example = field(1, field(1, field(1, b"x") + more + field(2, feature)))
    path = tmp_path / "one.tfrecord"
    path.write_bytes(struct.pack("<Q", len(example)) + b"\0" * 4 + example + b"\0" * 4)
    (found,) = read_examples(path)
    assert found["x"].tolist() == [7]


# -- push-sprite -----------------------------------------------------------------------------------------------------


def test_every_recorded_world_wanders_in_its_own_way_alone_or_beside_others():
    sim = PushSprite(16)
    both, alone = push_sprite.record(sim, [3, 8], 6), push_sprite.record(sim, [8], 6)
    assert np.array_equal(both.actions[1], alone.actions[0]) and np.array_equal(both.frames[1], alone.frames[0])
    first = [push_sprite.record(sim, [seed], 1).actions[0, 0] for seed in range(12)]
    drawn = [np.random.default_rng([seed, 1]) for seed in range(12)]
    wanders = [rng.random() >= 0.5 for rng in drawn]
    noise = [rng.uniform(-0.9, 0.9, 2) for rng in drawn]
    assert 2 <= sum(wanders) <= 10
    for wandered, action, expected in zip(wanders, first, noise, strict=True):
        assert np.allclose(action, expected, atol=1e-6) == wandered  # with no action before it noise alone


def test_bytes_of_a_picture_are_rounded_and_grey_shapes_are_dark_or_light():
    sim = PushSprite(8, num_distractors=0)
    sim.reset([0])
    sim.world.still[:] = 100.6 / 255
    corner = sim.place(np.array([[0.5, 0.5]]), np.array([[0.5, 0.5]]))[0, 0, 0]
    assert corner.tolist() == [101, 101, 101]
    clean, strewn = PushSprite(32, num_distractors=0), PushSprite(32, num_distractors=1)
    greys = set()
    for seed in range(12):
        clean.reset([seed])
        strewn.reset([seed])
        changed = (clean.world.still != strewn.world.still).any(-1)[0] & (np.ptp(strewn.world.still[0], axis=-1) == 0)
        greys |= {round(float(one), 2) for one in strewn.world.still[0][changed][:, 0]} & {0.15, 0.85}
    assert greys == {0.15, 0.85}
    assert push_sprite.SUCCESS_DISTANCE == 0.1


def test_the_environment_of_a_set_is_that_of_its_options_and_its_policy_chases_the_block():
    config = EpisodeData(name="push_sprite", size_px=16, num_train=1, num_valid=1, num_frames=3, num_distractors=4)
    found = data.load_episodes(config, 0, EpisodeSpec())
    assert found.make_env().sim.num_distractors == 4 and found.make_env().sim.size_px == 16
    info = {"agent": np.array([0.2, 0.5]), "block": np.array([0.8, 0.5])}  # to the right
    taken = [environments.chase(info, np.zeros(2, np.float32), np.random.default_rng(i)) for i in range(200)]
    assert np.mean([action[0] for action in taken]) > 0.3


# -- recording -------------------------------------------------------------------------------------------------------


class Ends(gymnasium.Env):
    """Ends after its third step; pictures are black. ``fails``: numbers of resets that raise."""

    render_mode, num_actions = "rgb_array", None
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, fails=()):
        self.fails, self.resets, self.steps = fails, 0, 0

    def reset(self, *, seed=None, options=None):
        self.resets, self.steps = self.resets + 1, 0
        return np.full((8, 8, 3), seed % 256, np.uint8), {}

    def step(self, action):
        self.steps += 1
        return np.zeros((8, 8, 3), np.uint8), 0.0, self.steps == 3, False, {}


def noise(info, previous, rng):
    return rng.uniform(-1, 1, 2).astype(np.float32)


def test_a_recording_ends_with_the_episode_and_every_number_is_another_one():
    recorded = environments.Recorded(lambda size_px: Ends(), noise, "none", "")
    plan = record.Plan("here", num_episodes=2, num_frames=9, size_px=8)
    one, two, again = (record.run_episode(Ends(), recorded, plan, number) for number in (0, 1, 0))
    assert len(one) == 3 and one.action.shape == (3, 2)
    assert np.array_equal(one.action, again.action) and not np.array_equal(one.action, two.action)
    assert not np.array_equal(one.image[0], two.image[0])


def test_only_failures_in_a_row_end_a_recording(tmp_path, monkeypatch):
    """Two of three fail, six in all, never three in a row."""
    calls, asked = [], []

    def find(name, may_import):  # the user has typed the name: its package may be imported
        asked.append((name, may_import))
        return environments.Recorded(lambda size_px: Ends(), noise, "none", "")

    def run_episode(env, recorded, plan, number):
        calls.append(number)
        if number % 3:
            raise RuntimeError("no")
        return an_episode(size=8)

    monkeypatch.setattr(record, "find", find)
    monkeypatch.setattr(record, "run_episode", run_episode)
    made, problems = record.record(record.Plan("here", num_episodes=9, num_frames=5, size_px=8), tmp_path)
    assert calls == list(range(9)) and made == 3 and len(problems) == 6 and asked == [("here", True)]


def test_what_is_recorded_for_a_run_is_as_long_as_its_clips_need(tmp_path, monkeypatch):
    seen = []

    def record_it(plan, dest):
        seen.append(plan)
        for number in range(plan.num_episodes):
            write_episode(dest / f"episode_{number:06d}.npz", an_episode(length=plan.num_frames, size=8))
        return plan.num_episodes, []

    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    monkeypatch.setattr("toolkit.data.episodes.sets.record", record_it)
    config = EpisodeData(name="pusht", size_px=8, num_train=2, num_valid=1, num_frames=3)
    found = data.load_episodes(config, 0, EpisodeSpec(least_frames=6))
    assert seen[0].num_frames == 6 and [len(found.train), len(found.valid), len(found.test)] == [2, 1, 1]


# -- environments ----------------------------------------------------------------------------------------------------


def test_a_wander_keeps_seven_tenths_and_the_kuka_arm_sinks():
    previous = np.array([0.5, -0.5, 0.2, 0.1], np.float32)
    drawn = np.random.default_rng(4).uniform(-1, 1, 4)
    expected = np.clip(0.7 * previous + 0.8 * drawn, -1, 1)
    np.testing.assert_allclose(environments.wander({}, previous, np.random.default_rng(4)), expected, atol=1e-6)
    low = environments.NAMED["kuka"].policy({}, previous, np.random.default_rng(4))
    expected[2] = np.clip(expected[2] - 0.4, -1, 1)
    np.testing.assert_allclose(low, expected, atol=1e-6)


def test_push_t_goes_a_hundred_units_for_an_action_of_one_and_tells_places_as_shares_of_its_width():
    went = []

    def step(target):
        went.append(target)
        return np.zeros((8, 8, 3)), 0.5, False, False, {"pos_agent": target, "block_pose": [256.0, 128.0, 3.0]}

    env = object.__new__(environments.PushT)
    env.__dict__.update(env=SimpleNamespace(step=step), agent=np.array([100.0, 20.0]))
    *_, info = env.step(np.array([3.0, -0.5]))  # three is clipped to one, and -30 to the edge
    np.testing.assert_allclose(went[0], [200, 0])
    np.testing.assert_allclose(info["agent"], [200 / 512, 0])
    np.testing.assert_allclose(info["block"], [0.5, 0.25])


class Bullet:
    """What KukaPush asks of the physics, noted."""

    ER_TINY_RENDERER = 0

    def __init__(self):
        self.steps, self.places = 0, [np.zeros((2, 3)), np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]])]

    def getCameraImage(self, width, height, *_, **__):
        return [width, height, np.tile(np.array([10, 20, 30, 255], np.uint8), width * height)]


def test_an_action_moves_the_grippers_target_for_a_tenth_of_a_second(monkeypatch):
    env, bullet, drives = object.__new__(kuka.KukaPush), Bullet(), []
    env.size_px, env.bullet, env.view, env.projection = 4, bullet, None, None
    env.target, env.angle = np.array([0.6, 0.0, 0.19]), 0.2
    monkeypatch.setattr(kuka.KukaPush, "_drive", lambda self, num: drives.append(num))
    monkeypatch.setattr(kuka.KukaPush, "_object_places", lambda self: bullet.places.pop(0))
    monkeypatch.setattr(kuka.KukaPush, "_info", lambda self: {})
    frame, moved, *_ = env.step(np.array([1.0, -1.0, 0.5, 0.4]))
    np.testing.assert_allclose(env.target, [0.67, -0.07, 0.21])
    assert env.angle == pytest.approx(0.2 + 0.5 * 0.4)
    assert drives == [24]  # at 240 Hz
    assert moved == pytest.approx(5 + 1)  # of both objects together
    assert frame[0, 0].tolist() == [10, 20, 30]  # without the alpha


def test_that_actions_are_of_several_parts_is_said_once_and_only_where_they_are(caplog):
    said = set()
    parts = {"steps/action/grip": 0, "steps/action/arm": 0, "steps/reward": 0}
    found = [oxe_layout._in_parts("a.tfrecord", one, said) for one in (parts, {"steps/action": 0}, parts)]
    assert found == [True, False, True]
    assert [record.getMessage() for record in caplog.records] == [
        "a.tfrecord: actions are of several parts (arm, grip): none is taken, the episodes have no actions"
    ]
