"""Windows of episodes: every one equally likely, a pure function of the seed; frame steps; augmentation."""

import dataclasses

import numpy as np
import pytest
import torch

from toolkit.data.episodes.augment import augment
from toolkit.data.episodes.clips import ClipSource
from toolkit.data.episodes.episode import Episode, memory_set
from toolkit.errors import UserError


def numbered(lengths, action_dim=1):
    """Episodes whose pixel values, actions and rewards tell episode and frame."""
    episodes = []
    for number, length in enumerate(lengths):
        t = np.arange(length)
        image = np.broadcast_to((10 * number + t)[:, None, None, None], (length, 4, 4, 3)).astype(np.uint8)
        action = np.repeat((100.0 * number + t)[:, None], action_dim, 1).astype(np.float32)
        episodes.append(Episode(image, action, t.astype(np.float32)))
    return memory_set(episodes, [f"{i}" for i in range(len(lengths))])


def values(frames):
    return (frames[:, :, 0, 0, 0] * 255).round().int()


def test_a_window_keeps_frames_actions_and_rewards_together():
    clip = ClipSource(numbered([5, 9]), 4).sample(64, 0, "train", 3)
    first = values(clip.frames)
    assert (first.diff(dim=1) == 1).all()
    assert (clip.actions[..., 0] == 100 * (first // 10) + first % 10).all() and (clip.rewards == first % 10).all()


def test_every_window_is_drawn_and_draws_are_a_function_of_seed_and_names():
    source = ClipSource(numbered([5, 9, 3]), 4)
    starts = values(source.sample(500, 0, "x").frames)[:, 0]
    assert sorted(set(starts.tolist())) == [0, 1, 10, 11, 12, 13, 14, 15]
    assert torch.equal(source.sample(8, 0, "x", 1).frames, source.sample(8, 0, "x", 1).frames)
    assert not torch.equal(source.sample(8, 0, "x", 1).frames, source.sample(8, 0, "x", 2).frames)


def test_skipped_frames_leave_their_actions_and_rewards_behind():
    clip = ClipSource(numbered([9], action_dim=2), 3, frame_step=3).fixed(1)
    assert values(clip.frames).tolist() == [[0, 3, 6]]
    assert clip.actions[0].tolist() == [[0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5], [6, 6, 7, 7, 8, 8]]
    assert clip.rewards.tolist() == [[3, 12, 21]]
    last = ClipSource(numbered([7], action_dim=1), 3, frame_step=3).fixed(1)
    assert last.actions[0, -1].tolist() == [6, 0, 0]  # rows that the recording does not have


def test_fixed_windows_start_at_the_first_frame_and_spread_over_the_split():
    clip = ClipSource(numbered([4] * 9), 4).fixed(3)
    assert values(clip.frames)[:, 0].tolist() == [0, 40, 80]


def test_episodes_that_are_all_too_short_are_refused():
    with pytest.raises(UserError, match="no episode has 7 frames"):
        ClipSource(numbered([5, 6]), 4, frame_step=2)


def test_augmentation_is_one_change_per_clip_and_stays_in_range():
    frames = torch.rand(3, 1, 3, 16, 16).expand(3, 4, 3, 16, 16)
    made = augment(frames, torch.Generator().manual_seed(0))
    assert made.shape == frames.shape and made.min() >= 0 and made.max() <= 1
    assert torch.allclose(made[:, 0], made[:, 3]) and not torch.allclose(made[0], frames[0], atol=0.05)
    assert torch.equal(made, augment(frames, torch.Generator().manual_seed(0)))


def test_augmentation_keeps_grey_nearly_grey_and_plain_colour_plain():
    made = augment(torch.full((5, 2, 3, 8, 8), 0.5), torch.Generator().manual_seed(1))
    assert (
        made.std(dim=(-1, -2)).max() < 1e-4
        and (made.mean((1, 3, 4)) - made.mean((1, 2, 3, 4))[:, None]).abs().max() < 0.01
    )


def test_a_mixture_is_drawn_by_its_weights_with_steps_of_its_own():
    """One window of the first set; three of each episode of the second, which is three times as likely."""
    frames = [numbered([4, 9, 9]).read(index).image for index in range(3)]
    plain = memory_set([Episode(image, None, None) for image in frames], ["0", "1", "2"])
    mixed = dataclasses.replace(plain, groups=((0, 1, 1.0, 1), (1, 3, 3.0, 2)))
    first = values(ClipSource(mixed, 4).sample(800, 0, "x").frames)
    second = first[first[:, 0] >= 10]
    assert (first[first[:, 0] < 10] == torch.arange(4)).all() and (second.diff(dim=1) == 2).all()
    assert abs(len(second) - 600) < 60
    starts, counts = second[:, 0].unique(return_counts=True)
    assert starts.tolist() == [10, 11, 12, 20, 21, 22] and (counts - len(second) / 6).abs().max() < 45
    without = dataclasses.replace(mixed, groups=((0, 1, 1.0, 2), (1, 3, 3.0, 2)))  # the first is too short by then
    assert values(ClipSource(without, 4).sample(50, 0, "x").frames).min() >= 10
