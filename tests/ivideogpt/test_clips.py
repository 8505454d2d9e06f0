"""Which frames a step sees, goal-conditioned order, action statistics."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.ivideogpt import tiny
from toolkit.data.config import EpisodeData
from toolkit.data.episodes.clips import Clip, ClipSource
from toolkit.data.episodes.episode import Episode, memory_set
from toolkit.errors import UserError
from toolkit.ivideogpt.clips import action_statistics, arrange, load_clips, spaced, tokenizer_frames, window_frames


def clip(num_frames=5):
    t = torch.arange(num_frames, dtype=torch.float32)
    frames = t.view(1, -1, 1, 1, 1).expand(2, -1, 3, 2, 2)
    return Clip(frames, (10 * t).view(1, -1, 1).expand(2, -1, 1), t.expand(2, -1))


def order(frames):
    return frames[0, :, 0, 0, 0].int().tolist()


def test_the_tokenizer_sees_the_first_frames_and_a_sorted_choice_of_the_rest():
    config = tiny.config(context_length=2, num_frames=8)
    config.optim.tokenizer.num_future = 3
    seen = set()
    for step in range(60):
        context, future = tokenizer_frames(clip(8), config, 0, step)
        assert order(context) == [0, 1] and order(future) == sorted(set(order(future))) and min(order(future)) >= 2
        seen.update(order(future))
        again = tokenizer_frames(clip(8), config, 0, step)[1]
        assert torch.equal(future, again)
    assert seen == set(range(2, 8))


@pytest.mark.parametrize("num_context", [1, 2])
def test_frames_are_left_out_after_the_context_and_moves_stay_with_the_frames_they_lead_to(num_context):
    config = tiny.config(context_length=num_context, num_frames=num_context + 3, context_gap=4)
    t = torch.arange(num_context + 7, dtype=torch.float32).expand(90, -1)
    whole = Clip(t[:, :, None, None, None].expand(-1, -1, 3, 2, 2), 10 * t[..., None], t)
    cut, adjacent = spaced(whole, config, torch.Generator().manual_seed(0))
    frames = cut.frames[:, :, 0, 0, 0].int()
    gaps = frames[:, num_context] - num_context
    assert (frames[:, :num_context] == torch.arange(num_context)).all()
    assert set(gaps.tolist()) == {0, 1, 2, 3, 4} and torch.equal(adjacent, gaps == 0) and 15 < adjacent.sum() < 45
    assert (frames[:, num_context:].diff() == 1).all()
    into = cut.actions[:, num_context - 1 : -1, 0] / 10  # row t leads to frame t + 1
    assert torch.equal(into, frames[:, num_context:] - 1.0) and torch.equal(cut.rewards[:, num_context - 1 : -1], into)
    assert cut.actions.shape[1] == cut.rewards.shape[1] == config.num_frames
    same, none = spaced(whole, tiny.config(), torch.Generator())
    assert same is whole and none is None


def test_windows_of_the_training_alone_are_longer_by_the_gap():
    clips = load_clips(tiny.config(context_gap=2))
    lengths = [one.sample(1, 0, "x").frames.shape[1] for one in (clips.train, clips.valid, clips.test)]
    assert lengths == [6, 4, 4]


def test_the_baseline_sees_a_black_context_and_the_same_future():
    config = tiny.config(context_length=2, num_frames=5, blind_context=True)
    assert order(arrange(clip(), config).frames) == [0, 0, 2, 3, 4]
    context, future = tokenizer_frames(clip(), config, 0, 3)
    assert order(context) == [0, 0] and min(order(future)) >= 2


def test_for_goals_the_tokenizer_sees_any_frames_in_any_order():
    config = tiny.config(context_length=2, num_frames=8, goal_conditioned=True)
    firsts = {order(tokenizer_frames(clip(8), config, 0, step)[0])[0] for step in range(60)}
    assert firsts == set(range(8))


@pytest.mark.parametrize(
    ("goal_order", "frames"), [("release_training", [4, 0, 1, 2, 3, 4]), ("paper", [4, 0, 1, 2, 3])]
)
def test_the_goal_comes_first(goal_order, frames):
    config = tiny.config(context_length=2, num_frames=len(frames), goal_conditioned=True, goal_order=goal_order)
    assert window_frames(config) == 5
    made = arrange(clip(), config)
    assert order(made.frames) == frames
    assert made.actions[0, :, 0].tolist() == [0, *[10.0 * t for t in frames[1:]]]  # a row still leaves with its frame
    assert made.rewards[0].tolist() == [0, *frames[1:]]
    plain = tiny.config()
    assert arrange(clip(), plain) is not None and order(arrange(clip(), plain).frames) == [0, 1, 2, 3, 4]


def test_action_statistics_are_those_of_all_rows_and_a_constant_column_is_left_alone():
    rng = np.random.default_rng(0)
    rows = [np.concatenate([rng.normal(3, 2, (50, 1)), np.ones((50, 1))], 1).astype(np.float32) for _ in range(4)]
    episodes = memory_set([Episode(np.zeros((50, 2, 2, 3), np.uint8), one) for one in rows], ["x"] * 4)
    found = action_statistics(episodes, 2)
    every = np.concatenate(rows)
    assert np.allclose(found["mean"], np.tile(every.mean(0), 2)) and np.allclose(found["std"][0], every[:, 0].std())
    assert (
        found["std"][1] == 1 and (found["low"][:2] == every.min(0)).all() and (found["high"][2:] == every.max(0)).all()
    )


def test_between_two_frames_all_actions_are_kept_and_rewards_are_summed():
    rows, frames = np.arange(1.0, 8, dtype=np.float32), np.zeros((7, 2, 2, 3), np.uint8)
    episodes = memory_set([Episode(frames, rows[:, None], rows)], ["x"])
    found = ClipSource(episodes, num_frames=3, frame_step=2).sample(1, 0)
    first = found.actions[0, 0, 0].item()
    wanted = [[first + step, first + step + 1] for step in (0, 2, 4)]
    assert found.actions[0].tolist() == wanted and found.rewards[0].tolist() == [sum(pair) for pair in wanted]


def test_frames_that_are_not_square_are_refused_unless_they_are_cropped(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        rows = {"action": rng.normal(size=(6, 2)), "reward": rng.normal(size=6)}
        np.savez(tmp_path / f"{number}.npz", image=rng.integers(0, 256, (6, 16, 24, 3), dtype=np.uint8), **rows)
    data = EpisodeData(name="episodes_folder", path=str(tmp_path))
    with pytest.raises(UserError, match=r"data\.size_px: frames of .* are 16x24, .* data\.size_px=16, which crops"):
        load_clips(tiny.config(data=data))
    assert load_clips(tiny.config(data=dataclasses.replace(data, size_px=16))).resolution == 16
