"""Windows in time (T11, T12): on key frames, covering, bounded; blends; and the order of work."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.venhancer.engine.windows import plan_windows, schedule_pairs

CASES = [(145, 3), (33, 1), (70, 1), (49, 8), (101, 5), (32, 1), (1, 3), (97, 2), (601, 6), (113, 7), (65, 4)]


@pytest.mark.parametrize(("num_frames", "frame_factor"), CASES)
@pytest.mark.parametrize("max_frames", [16, 32])
def test_windows_lie_on_key_frames_cover_everything_and_overlap_at_most_two_deep(num_frames, frame_factor, max_frames):
    windows = plan_windows(num_frames, frame_factor, max_frames)
    depth = np.zeros(num_frames, int)
    for start, end in windows.spans:
        assert (start % frame_factor == 0 and (end - 1) % frame_factor == 0) or end == num_frames
        assert end - start <= max_frames
        depth[start:end] += 1
    assert depth.min() == 1 and depth.max() <= 2
    settled = [frame for index in range(len(windows)) for frame in range(*windows.settled(index))]
    assert settled == list(range(num_frames))


def test_the_releases_windows():
    """145 frames at factor 3: 31-frame windows; ours share 13 frames (the release 16, three deep in one frame)."""
    assert plan_windows(145, 3).spans[:2] == ((0, 31), (18, 49))
    assert plan_windows(70, 1).spans[:2] == ((0, 32), (16, 48))
    assert plan_windows(97, 2).spans[:2] == ((0, 31), (16, 47))


def blend(windows, values):
    """What settling the windows' values one after the other gives."""
    out = np.zeros(windows.num_frames)
    for index, (start, end) in enumerate(windows.spans):
        shared = range(*windows.overlap(index))
        for frame in range(start, end):
            weight = windows.weight(index, frame) if frame in shared else 1.0
            out[frame] = (1 - weight) * out[frame] + weight * values[index][frame - start]
    return out


def test_blending_equal_windows_changes_nothing():
    windows, truth = plan_windows(145, 3), np.random.default_rng(0).normal(size=145)
    assert np.abs(blend(windows, [truth[start:end] for start, end in windows.spans]) - truth).max() < 1e-15


def test_a_step_between_windows_becomes_a_ramp():
    windows = plan_windows(64, 1)
    assert windows.spans == ((0, 32), (16, 48), (32, 64))
    offsets = [np.full(end - start, value) for (start, end), value in zip(windows.spans, (0, 1, -0.5), strict=True)]
    assert np.abs(np.diff(blend(windows, offsets))).max() == pytest.approx(1.5 / 16)


@pytest.mark.parametrize(("num_steps", "num_frames"), [(1, 145), (5, 145), (14, 145), (14, 700)])
def test_every_pair_finds_its_neighbours_done(num_steps, num_frames):
    windows = plan_windows(num_frames, 3)
    seen, oldest, newest = set(), 0, 0
    for step, window in schedule_pairs(num_steps, len(windows)):
        around = {(step - 1, near) for near in (window - 1, window, window + 1)} if step else set()
        assert {pair for pair in around if 0 <= pair[1] < len(windows)} <= seen
        assert (step, window - 1) in seen or window == 0
        newest = max(newest, windows.spans[window][1])
        assert newest - oldest <= windows.in_flight(num_steps)
        if step == num_steps - 1:
            oldest = windows.settled(window)[1]
        seen.add((step, window))
    assert len(seen) == num_steps * len(windows)


def test_what_is_in_flight_does_not_grow_with_the_clip():
    assert len({plan_windows(num_frames, 2).in_flight(4) for num_frames in (201, 401, 4001)}) == 1


def test_a_window_holds_two_key_frames_at_least():
    with pytest.raises(ValueError, match=r"windows\.num_frames=8: must hold two key frames, 9 frames or more"):
        plan_windows(49, 8, max_frames=8)
