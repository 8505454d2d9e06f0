"""What is seen of a drive: errors by hand, and clips whose frames are the drive's."""

import io

import av
import numpy as np
import pytest
from PIL import Image

from toolkit.errors import UserError
from toolkit.ivideogpt.control.beside import BRIGHTEST, EQUAL_DB, Seen, answer, clip, difference, psnr


def grey(value, side=16):
    return np.full((side, side, 3), value, np.uint8)


def test_psnr_by_hand():
    # every value 51 apart: a fifth of 255, so 20 log10 5
    assert psnr(grey(0), grey(51)) == psnr(grey(51), grey(0)) == pytest.approx(20 * np.log10(5))
    one = grey(0)
    one[0, 0, 0] = 255  # one of 768 numbers
    assert psnr(one, grey(0)) == pytest.approx(10 * np.log10(768))
    assert psnr(grey(7), grey(7)) == EQUAL_DB


def test_the_difference_is_black_where_there_is_none_and_brighter_the_larger_it_is():
    truth, frame = grey(100), grey(100)
    frame[0, 0], frame[0, 1], frame[0, 2, 0] = 110, 160, 100 + 33
    frame[0, 3] = 100 + BRIGHTEST
    shown = difference(frame, truth).sum(-1, dtype=int)
    assert (shown[1:] == shown.min()).all() and shown.min() < 10
    assert shown[1, 0] < shown[0, 0] < shown[0, 1] < shown[0, 3]
    assert shown[0, 0] - shown[0, 2] == pytest.approx(0, abs=8)  # 33 in one colour of three is 11 in the mean
    assert (difference(frame, truth) == difference(truth, frame)).all()
    assert shown[0, 3] == 252 + 255 + 164  # the last colour
    assert difference(grey(100 + BRIGHTEST // 4), grey(100))[0, 0].tolist() == [87, 16, 110]  # a quarter of the way


def test_an_answer_compares_with_the_held_first_frame_and_has_nothing_without_truth():
    seen = [Seen(grey(0), grey(0)), Seen(grey(51), grey(102), {"reward": 1.0})]
    said = answer(seen, None)
    assert said["psnr"] == pytest.approx(20 * np.log10(5)) and said["still"] == pytest.approx(20 * np.log10(2.5))
    assert said["reward"] == 1.0 and "goal" not in said and said["difference"] != said["truth"] != said["frame"]
    over = answer([*seen, Seen(grey(9), None)], grey(3))
    assert over["goal"] and [over[key] for key in ("truth", "psnr", "still", "difference")] == [None] * 4


def test_a_clip_has_the_frames_of_the_drive():
    seen = [Seen(grey(40 * t), grey(250 - 40 * t) if t < 3 else None) for t in range(5)]
    content, kind = clip(seen, "gif")
    film = Image.open(io.BytesIO(content))
    assert kind == "image/gif" and film.n_frames == 5 and film.size == (3 * 192 + 2 * 2, 192 + 14)
    for t in range(5):
        film.seek(t)
        pixels = np.asarray(film.convert("RGB"))
        assert abs(int(pixels[100, 96, 0]) - 40 * t) <= 2
        assert abs(int(pixels[100, 192 + 2 + 96, 0]) - (250 - 40 * min(t, 2))) <= 2  # the last true frame stays
    content, kind = clip(seen, "mp4")
    with av.open(io.BytesIO(content)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert kind == "video/mp4" and len(frames) == 5 and container.streams.video[0].average_rate == 8
    assert [abs(int(frame[100, 96, 0]) - 40 * t) <= 4 for t, frame in enumerate(frames)] == [True] * 5


def test_a_clip_without_a_simulator_is_imagined_alone_and_bad_asking_is_refused():
    seen = [Seen(grey(0), None), Seen(grey(9), None)]
    assert Image.open(io.BytesIO(clip(seen, "gif")[0])).size[0] == 192
    with pytest.raises(UserError, match="format=webm: choose one of gif, mp4"):
        clip(seen, "webm")
    with pytest.raises(UserError, match="no clip yet"):
        clip(seen[:1], "gif")
