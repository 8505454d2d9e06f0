"""Numbers that no memory holds are refused in one line with the key, before anything is drawn, read or simulated."""

import pytest
from PIL import Image

from toolkit import data
from toolkit.data.config import Data, EpisodeData
from toolkit.data.episodes.episode import EpisodeSpec
from toolkit.data.episodes.record import Plan, record
from toolkit.errors import UserError


@pytest.fixture(autouse=True)
def gibibyte(monkeypatch):
    monkeypatch.setattr("toolkit.runs.machine.memory_bytes", lambda: 2**30)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (Data("ring", num_train=8 * 10**7), r"^data\.num_train=80000000: 1\.2 GiB .*; give at most 67108864,"),
        (Data("digits", size_px=800), r"^data\.size_px=800: 1\.1 GiB of numbers in 1797 pictures, .* at most 772,"),
    ],
)
def test_images(config, said):
    with pytest.raises(UserError, match=said):
        data.load(config)


def test_a_folder_of_images(tmp_path):
    for number in range(3):
        Image.new("RGB", (9, 7), (number, 0, 0)).save(tmp_path / f"{number}.png")
    with pytest.raises(UserError, match=r"^data\.size_px=20000: 1\.1 GiB of numbers in one picture, "):
        data.load(Data("folder", path=str(tmp_path), size_px=20_000))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "push_sprite",
            {"size_px": 20_000},
            r"^data\.size_px=20000: 1\.1 GiB .* in one picture, .* at most 18918,",
        ),
        ("push_sprite", {"num_frames": 10**6}, r"^data\.num_frames=1000000: 2\.9 GiB .*; give at most 349525,"),
        ("push_sprite", {"num_train": 10**6}, r"^data\.num_train=1000000: 68\.7 GiB .*; give at most 14563,"),
        ("pusht", {"size_px": 20_000}, r"^data\.size_px=20000: .* in one picture, "),
    ],
)
def test_episodes(name, changes, said):
    with pytest.raises(UserError, match=said):
        data.load_episodes(EpisodeData(name=name, **changes), 0, EpisodeSpec())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size_px": 100_000}, r"^size-px=100000: 27\.9 GiB of numbers in one picture, .* 1\.0 GiB .*at most 18918,"),
        ({"size_px": 1000, "num_frames": 1000}, r"^num-frames=1000: 2\.8 GiB of numbers at once, .*at most 357,"),
    ],
)
def test_recordings(changes, said, tmp_path):
    with pytest.raises(UserError, match=said):
        record(Plan("a simulator that is not there", **changes), tmp_path / "episodes")
    assert not (tmp_path / "episodes").exists()
