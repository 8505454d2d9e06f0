"""Recorded episodes are trained on, looked at or tested on, none of them twice; and rows that say yes or no."""

import numpy as np

from toolkit.data.config import EpisodeData
from toolkit.data.episodes.episode import Episode, EpisodeSpec, as_frames, move_flags, write_episode
from toolkit.data.episodes.sets import load_recorded


def test_the_first_recorded_episodes_are_held_out_then_the_next_are_tested(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    folder = tmp_path / "episodes" / "pusht_16px_3frames"
    for number in range(8):
        write_episode(folder / f"episode_{number:06d}.npz", Episode(np.full((3, 16, 16, 3), number, np.uint8)))
    config = EpisodeData(name="pusht", size_px=16, num_frames=3, num_train=3, num_valid=2)
    found = load_recorded(config, 0, EpisodeSpec(least_frames=3))
    seen = [
        [part.read(i).image[0, 0, 0, 0] for i in range(len(part))] for part in (found.valid, found.test, found.train)
    ]
    assert seen == [[0, 1], [2, 3], [4, 5, 6]]


def test_a_flag_of_zero_says_no():
    given = np.array([0, 1, 0, 2])
    assert move_flags("file", "terminal", given, 4).tolist() == [False, True, False, True]
    assert move_flags("file", "terminal", given, 5).tolist() == [False, True, False, True, False]


def test_floats_of_frames_become_the_nearest_of_255_levels():
    for off in (-0.4, 0.4):
        levels = (np.arange(256) + off).clip(0, 255) / 255
        image = np.broadcast_to(levels.reshape(1, 16, 16, 1), (1, 16, 16, 3))
        assert as_frames("file", "image", image)[..., 0].ravel().tolist() == list(range(256))
