"""Which clips are loaded and shown, under which actions, from which noise: each row of a roll-out by itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.ivideogpt import tiny
from toolkit.data.config import EpisodeData
from toolkit.data.episodes.clips import Clip
from toolkit.errors import UserError
from toolkit.ivideogpt import rollout
from toolkit.ivideogpt.clips import arrange, load_clips, spaced, tokenizer_frames
from toolkit.ivideogpt.config import Rollout
from toolkit.ivideogpt.film import save_gif, side_by_side
from toolkit.ivideogpt.rollout import imagine, imagined_rows, roll_out, sampling_of
from toolkit.runs.record import Run
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.sampling import Sampling


def frames_of(shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


# -- the clips of a run ------------------------------------------------------------------------------------------------


def test_training_alone_is_augmented_and_all_splits_skip_frames_alike():
    data = EpisodeData(size_px=16, num_train=5, num_valid=2, num_frames=7, augment=True, frame_step=2)
    clips = load_clips(tiny.config(data=data, num_frames=3))
    splits = (clips.train, clips.valid, clips.test)
    assert [one.augmented for one in splits] == [True, False, False]
    assert [one.sample(1, 0, "x").actions.shape for one in splits] == [(1, 3, 4)] * 3  # two moves of two numbers each
    assert clips.train.counts.tolist() == [3] * 5  # 7 frames have (3 - 1) x 2 + 1 = 5 at three places
    rows = np.concatenate([clips.dataset.train.read(index).action for index in range(5)])
    for name, wanted in (("mean", rows.mean(0)), ("std", rows.std(0)), ("low", [-1, -1]), ("high", [1, 1])):
        assert np.allclose(clips.statistics[name], np.tile(wanted, 2), atol=1e-5), name


@pytest.mark.parametrize(("order", "left"), [("release_training", 3), ("paper", 4)])
def test_a_goal_that_comes_again_at_the_end_needs_one_frame_less(order, left):
    config = tiny.config(context_length=2, goal_conditioned=True, goal_order=order)
    assert rollout.window_frames(config) == left and rollout.window_frames(config, 5) == left + 3
    assert rollout.window_frames(tiny.config()) == 4


def test_a_third_of_the_clips_has_no_gap_and_the_other_gaps_are_equally_likely():
    """Of 6,000 the standard error is 0.6 %; the last row leaves with the last frame."""
    config = tiny.config(context_length=2, num_frames=4, context_gap=3)
    t = torch.arange(7.0).expand(6000, -1)
    cut, adjacent = spaced(
        Clip(t[:, :, None, None, None], 10 * t[..., None], t), config, torch.Generator().manual_seed(0)
    )
    frames = cut.frames[:, :, 0, 0, 0]
    shares = torch.bincount((frames[:, 2] - 2).long(), minlength=4) / 6000
    assert (
        shares.tolist() == pytest.approx([1 / 3, 2 / 9, 2 / 9, 2 / 9], abs=0.025)
        and adjacent.float().mean() == shares[0]
    )
    assert torch.equal(cut.rewards[:, -1], frames[:, -1]) and torch.equal(cut.actions[:, -1, 0], 10 * frames[:, -1])


def test_a_blind_clip_keeps_its_actions_and_rewards():
    config, clip = (
        tiny.config(blind_context=True),
        Clip(torch.rand(2, 4, 3, 2, 2), torch.rand(2, 4, 2), torch.rand(2, 4)),
    )
    made = arrange(clip, config)
    assert torch.equal(made.actions, clip.actions) and torch.equal(made.rewards, clip.rewards)
    assert not made.frames[:, 0].any() and torch.equal(made.frames[:, 1:], clip.frames[:, 1:])


def test_each_process_takes_its_rows_of_one_draw():
    config, clip = tiny.config(num_frames=8), Clip(frames_of((6, 8, 3, 2, 2)), None, None)
    whole = tokenizer_frames(clip, config, 0, 3)[1]
    own = slice(2, 5)
    assert torch.equal(tokenizer_frames(clip.rows(own), config, 0, 3, 6, own)[1], whole[own])
    assert not torch.equal(tokenizer_frames(clip, config, 1, 3)[1], whole)


def test_a_roll_out_is_as_long_as_a_training_clip_unless_it_is_told_otherwise_and_fills_the_positions():
    """79 tokens hold a context of 64, its slot and three frames."""
    config = tiny.config()
    assert rollout.imagined_frames(config) == 3
    rollout.check_horizon(config, tiny.tokenizer(), 79)
    config.rollout.num_frames = 4
    assert rollout.imagined_frames(config) == 4
    with pytest.raises(UserError, match=r"rollout\.num_frames=4: the transformer's positions hold 3"):
        rollout.check_horizon(config, tiny.tokenizer(), 79)
    config.rollout.on_overflow = "recontext"
    rollout.check_horizon(config, tiny.tokenizer(), 79)


# -- the rows of a roll-out --------------------------------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch):
    """What ``roll_out`` has imagined rows of; pictures are left out."""
    clips = []
    monkeypatch.setattr(rollout, "check_horizon", lambda *_: None)
    monkeypatch.setattr(rollout, "imagined_rows", lambda _, clip, __: clips.append(clip) or {})
    for name in ("side_by_side", "film_strip", "save_mp4", "save_gif", "save_png"):
        monkeypatch.setattr(rollout, name, lambda *_: None)
    return clips


def world_of(most, kept):
    heart = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=1))
    spec = SimpleNamespace(max_future=most)
    return SimpleNamespace(spec=spec, config={"kept_frames": kept}, tokenizer=None, transformer=heart)


def test_held_out_clips_of_the_asked_length_are_shown(tmp_path, shown):
    config, clips = tiny.config(rollout=Rollout(num_clips=2, num_frames=5)), tiny.clips()
    roll_out(world_of(5, 0), clips, config, Run(tmp_path, config))
    wanted = [clips.dataset.test.read(index).image for index in (0, 3)]
    assert (rollout.to_bytes(shown[0].frames) == np.stack(wanted)).all()


@pytest.mark.parametrize(("most", "kept"), [(5, 0), (5, 2), (7, 3)])
def test_renewals_are_counted_as_they_happen(tmp_path, monkeypatch, shown, most, kept):
    """A context holds ``most`` frames; every renewed one begins with the ``kept`` last of them."""
    clip = Clip(frames_of((1, 2, 3, 2, 2)), None, None)
    monkeypatch.setattr(rollout, "ClipSource", lambda *_: SimpleNamespace(fixed=lambda _: clip))
    for num_frames in range(1, 24):
        renewed, filled = 0, 0
        for _ in range(num_frames):
            if filled == most:
                renewed, filled = renewed + 1, kept
            filled += 1
        config = tiny.config(rollout=Rollout(num_clips=1, num_frames=num_frames))
        run = Run(tmp_path, config)
        roll_out(world_of(most, kept), tiny.clips(), config, run)
        assert run.record["rollout"] == {"frames": num_frames, "context_renewed": renewed}


def test_every_row_begins_with_the_context_and_has_its_own_actions_seed_and_way_of_drawing(monkeypatch):
    plain, asked = tiny.world(context_length=2, positions=300), []
    world = WorldModel(plain.tokenizer, plain.transformer, [0.5, -1.0], [2.0, 1.0])
    config = tiny.config(context_length=2, num_frames=5)
    config.rollout.on_overflow, config.rollout.temperature, config.rollout.top_k = "recontext", 0.5, 3
    clip = Clip(frames_of((3, 5, 3, 16, 16)), frames_of((3, 5, 2)), None)

    def made(world, context, actions, num, seeds, how, on_overflow):
        asked.append((actions, num, list(seeds), how, on_overflow))
        return torch.zeros(3, num, 3, 16, 16), None

    monkeypatch.setattr(rollout, "imagine", made)
    rows = imagined_rows(world, clip, config)
    own = clip.actions[:, 1:4]
    rest = torch.tensor([0.5, 0.0]).expand(3, 3, 2)  # nought is below the first number's range
    wanted = {"imagined": own, "imagined, opposite actions": torch.tensor([2.5, 0]) - own, "imagined, at rest": rest}
    assert list(rows) == ["truth", "reconstruction", *wanted]
    for (actions, *others), expected in zip(asked, wanted.values(), strict=True):
        torch.testing.assert_close(actions, expected)
        assert others == [3, [0, 1, 2], Sampling(0.5, 3), "recontext"]
    for name in wanted:
        assert (rows[name][:, :2] == rollout.to_bytes(clip.frames[:, :2])).all() and not rows[name][:, 2:].any()
    coder = world.tokenizer
    for index in range(3):  # each clip by its own context
        part = clip.frames[index : index + 1]
        encoded = coder.encode_context(part[:, :2])
        decoded = coder.decode_context(encoded.codes)
        future = coder.decode_frames(coder.encode_frames(part[:, 2:], encoded), decoded)
        again = rollout.to_bytes(torch.cat([decoded.frames, future], 1))
        assert np.abs(rows["reconstruction"][index : index + 1].astype(int) - again).max() <= 1


def test_of_choices_the_next_one_is_taken_instead():
    """Of three choices the second becomes the third and the third the first; of a skipped frame's two, each its own."""
    asked, plain = [], tiny.world(action_dim=6)
    world = WorldModel(plain.tokenizer, plain.transformer, discrete=3)
    picked = torch.eye(3)[torch.tensor([[1, 2], [0, 1], [2, 0], [1, 1]])].flatten(1).expand(1, -1, -1)
    clip = Clip(frames_of((1, 4, 3, 16, 16)), picked, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            rollout,
            "imagine",
            lambda _, context, actions, num, *__: asked.append(actions) or (torch.zeros(1, num, 3, 16, 16), None),
        )
        imagined_rows(world, clip, tiny.config())
    wanted = torch.eye(3)[torch.tensor([[2, 0], [1, 2], [0, 1]])].flatten(1)
    assert torch.equal(asked[0][0], picked[0, :3]) and torch.equal(asked[1][0], wanted)


def test_imagination_is_the_models_roll_out_from_these_seeds_channels_first():
    world, context, actions = tiny.world(), frames_of((2, 1, 3, 16, 16)), frames_of((2, 3, 2))
    frames, rewards = imagine(world, context, actions, 3, [7, 30], None)
    preds = world.rollout(world.begin(context, [7, 30]), actions)
    assert torch.equal((frames * 255).round().byte(), preds.frames.movedim(-1, 2)) and frames.max() <= 1
    assert torch.equal(rewards, preds.rewards) and not torch.equal(preds.frames, preds.frames.transpose(2, 3))
    assert not torch.equal(imagine(world, context, actions, 3, [8, 31], None)[0], frames)


def test_a_changed_setting_alone_is_asked_for():
    for keys, wanted in (
        ({}, None),
        ({"top_k": 7}, Sampling(1.0, 7)),
        ({"temperature": 0.3}, Sampling(0.3, 100)),
        ({"as_trained": False}, Sampling(1.0, 100)),
        ({"sampling": "greedy", "top_k": 7}, "greedy"),
    ):
        assert sampling_of(tiny.config(rollout=Rollout(**keys))) == wanted


def test_a_sheet_is_as_wide_and_high_as_its_pictures_and_a_gif_has_no_end(tmp_path):
    """Two clips of 6 x 10 pixels, three times as large: 2 x 30 + 2 wide, 12 + 18 + 2 high; the label stays free."""
    clip = np.full((2, 3, 6, 10, 3), 90, np.uint8)
    clip[:, 2] = 30
    video = side_by_side({"a": clip, "b": clip[:, :2]}, 3)
    assert video.shape == (3, 2 * 32, 62, 3)
    assert [video[t, 12:30, :30].mean() for t in range(3)] == [90, 90, 30]
    assert [video[t, 44:62, 32:].mean() for t in range(3)] == [90, 90, 90]  # what is shorter holds its last frame
    assert (
        (video[:, 30:32] == 255).all() and (video[:, 12:30, 30:32] == 255).all() and (video[0, :12, 40:] == 255).all()
    )
    save_gif(tmp_path / "a.gif", video, 6)
    assert b"NETSCAPE2.0\x03\x01\x00\x00" in (tmp_path / "a.gif").read_bytes()  # no number of times
