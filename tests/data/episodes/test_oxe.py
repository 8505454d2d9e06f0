"""The Open X-Embodiment mixture: data sets are drawn by weight, each with its own frame step."""

import numpy as np
import pytest

from toolkit import data
from toolkit.data.config import EpisodeData
from toolkit.data.episodes.clips import ClipSource
from toolkit.data.episodes.episode import Episode, EpisodeSpec, write_episode
from toolkit.data.episodes.oxe import MIXTURE
from toolkit.errors import UserError


def fill(folder, value, num=6, length=30):
    for number in range(num):
        image = np.stack([np.full((8, 8, 3), value + t, np.uint8) for t in range(length)])
        write_episode(folder / f"train_eps_{number:08d}.npz", Episode(image, np.zeros((length, 7), np.float32)))


def load(path, **spec):
    return data.load_episodes(EpisodeData(name="oxe", path=str(path)), 0, EpisodeSpec(least_frames=4, **spec))


def test_the_mixture_is_table_4():
    assert len(MIXTURE) == 35
    assert sum(weight for weight, _ in MIXTURE.values()) == pytest.approx(
        85, abs=1.5
    )  # the rest is Something-Something


def test_data_sets_are_drawn_by_weight_with_their_own_frame_steps(tmp_path, caplog):
    fill(tmp_path / "bridge", 0, num=20)  # 12.8 per cent, every second frame
    fill(tmp_path / "viola", 100, num=6)  # 0.5 per cent, every seventh
    found = load(tmp_path)
    assert "33 of 35 data sets are not there" in caplog.text
    assert len(found.train) == 22 and len(found.test) == 2 and found.action_dim == 0
    clip = ClipSource(found.train, 4).sample(600, 0, "x")
    values = (clip.frames[:, :, 0, 0, 0] * 255).round()
    steps = values.diff(dim=1)
    first = values[:, 0] < 100
    assert (steps[first] == 2).all() and (steps[~first] == 7).all() and clip.actions is None
    assert 0.93 < first.float().mean() < 0.99  # 12.8 / 13.3


def test_what_cannot_be_mixed_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no folder of the mixture"):
        load(tmp_path)
    fill(tmp_path / "viola", 0)
    with pytest.raises(UserError, match="use action_conditioned=false"):
        load(tmp_path, needs_action=True)
