"""Crops of videos, cut by one thread or by several: those of the frames that are in the file, at the drawn places."""

import os
import threading

import numpy as np
import pytest
import torch

from tests.data.videos import moving, write
from toolkit.data.stills.crops import still_crops
from toolkit.data.video import crops, reader
from toolkit.data.video.clips import videos_in
from toolkit.data.video.reader import VideoReader
from toolkit.data.video.scan import declared_frames, index_video
from toolkit.errors import UserError


@pytest.fixture
def films(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    sizes = {"long.mp4": (40, 48, 32), "short.mp4": (20, 32, 48)}
    return [write(tmp_path / name, moving(*size), rate=24) for name, size in sizes.items()]


def by_hand(film, number, num_crops, num_frames, stride, size_px, seed):
    """The crops of one video, from all of its frames: starts first, then for each in turn its top and left."""
    frames = np.stack(list(VideoReader(index_video(film)).frames()))
    span = (num_frames - 1) * stride + 1
    rng = np.random.default_rng([seed, number])
    for start in sorted(rng.integers(0, len(frames) - span + 1, num_crops)):
        top = rng.integers(0, frames.shape[1] - size_px + 1)
        left = rng.integers(0, frames.shape[2] - size_px + 1)
        yield frames[start : start + span : stride, top : top + size_px, left : left + size_px]


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize(("rate_fps", "stride"), [(None, 1), (12, 2)])
def test_crops_are_those_at_the_drawn_places_whatever_the_threads(films, rate_fps, stride, num_threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    found = crops.clip_crops(films, 30, 3, 16, rate_fps, seed=5)
    shares = {0: 20, 1: 10}  # by their frames
    expected = [
        crop for number, share in shares.items() for crop in by_hand(films[number], number, share, 3, stride, 16, 5)
    ]
    assert np.array_equal(found.read(range(len(found)), 3).permute(0, 1, 3, 4, 2), np.stack(expected))


def test_only_frames_that_a_crop_needs_are_made_rgb(films, monkeypatch):
    made, real = [], reader.ToRgb.__call__
    monkeypatch.setattr(reader.ToRgb, "__call__", lambda self, frame: made.append(frame.pts) or real(self, frame))
    crops.clip_crops(films[:1], 4, 3, 16, None, seed=0)
    assert len(made) == len(set(made)) <= 12


def test_a_film_replaced_by_another_of_its_size_is_cut_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    film, other = tmp_path / "film.mp4", moving(8, 48, 32)[:, ::-1]
    write(film, moving(8, 48, 32))
    write(tmp_path / "other.mp4", other)
    most = max(path.stat().st_size for path in (film, tmp_path / "other.mp4"))
    for path in (film, tmp_path / "other.mp4"):  # players pass over what follows the last box
        path.write_bytes(path.read_bytes().ljust(most, b"\0"))
    before = crops.clip_crops([film], 4, 3, 16, None, seed=0).read(range(4), 3)
    frames = still_crops([], [film], [], 2, 16).read(range(2))
    os.replace(tmp_path / "other.mp4", film)
    assert not torch.equal(crops.clip_crops([film], 4, 3, 16, None, seed=0).read(range(4), 3), before)
    assert not torch.equal(still_crops([], [film], [], 2, 16).read(range(2)), frames)


def test_captions_are_texts_of_any_mark_or_refused_before_a_film_is_looked_through(films, monkeypatch):
    beside = films[0].with_suffix(".txt")
    beside.write_bytes("ein Café\r\n".encode("utf-16"))
    assert set(crops.clip_crops(films[:1], 4, 3, 16, None, seed=0).captions) == {"ein Café"}
    beside.write_bytes("ein Café".encode("latin-1"))
    monkeypatch.setattr(crops, "_make", lambda *rest: pytest.fail("crops were cut"))
    with pytest.raises(UserError, match=r"long\.txt: cannot be read as UTF-8 text .*; save it as UTF-8"):
        crops.clip_crops(films[:1], 5, 3, 16, None, seed=0)


def test_a_caption_may_be_called_in_capitals(tmp_path, monkeypatch):
    film = tmp_path / "a.mp4"
    film.touch()
    (tmp_path / "a.TXT").write_text("a bridge")
    (tmp_path / "b.caption").write_text("a ship")
    said = []
    monkeypatch.setattr("toolkit.runs.progress.say", said.append)
    assert videos_in(tmp_path, "data.path") == [film] and crops._caption(film) == "a bridge"
    assert said == [f"data.path={tmp_path}: passed over, no videos by their suffix: b.caption"]


def test_tasks_make_the_frames_that_are_named_in_any_thread(films):
    video = VideoReader(index_video(films[0]))
    frames, made = list(video.frames()), {}
    tasks = dict(zip((3, 4, 17), video.tasks({17, 3, 4}), strict=True))
    threads = [threading.Thread(target=lambda n=n, task=task: made.update({n: task()})) for n, task in tasks.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(made[number], frames[number]) for number in (3, 4, 17))


def test_both_passes_over_a_film_are_shown_to_their_ends(films, monkeypatch):
    shown = {}
    real = crops.progress.Bar.advance
    monkeypatch.setattr(
        crops.progress.Bar, "advance", lambda bar, step: shown.update({bar.stage: (step, bar.total)}) or real(bar, step)
    )
    crops.clip_crops(films[:1], 12, 3, 16, None, seed=0)
    assert shown["looking through long.mp4"] == (40, 40)
    last, total = shown["crops of long.mp4"]
    assert 30 <= last <= total == 40


def test_how_many_frames_a_file_says_it_has(films, tmp_path):
    assert declared_frames(films[0]) == 40
    matroska = write(tmp_path / "film.mkv", moving(24, 32, 32), rate=12)  # has a length alone
    assert declared_frames(matroska) == 24
    with pytest.raises(UserError, match=r"data=.*nothing\.mp4: no such file"):
        declared_frames(tmp_path / "nothing.mp4", "data")
