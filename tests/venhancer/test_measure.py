"""What a result is measured as: which frames are keys, which lie between, which stand still; written out by hand."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

from tests.data.videos import moving
from tests.venhancer.clips.test_timeline import clip
from toolkit.data.video.scan import index_video
from toolkit.data.video.write import Encoding, write_part
from toolkit.venhancer import measure
from toolkit.venhancer.clips.timeline import make_timeline
from toolkit.venhancer.measure import frame_kinds, score_video

LETTERS = {"key": "k", "between": "b", "held": "h"}


def kinds(index, rate, cuts=()):
    return "".join(LETTERS[kind] for kind in frame_kinds(index, make_timeline(index, Fraction(rate), cuts)))


@pytest.mark.parametrize(
    ("rate", "cuts", "expected"),
    [
        (24, (), "kbkbkbkbkbkh"),  # after the last input frame the picture stands still
        (24, (3,), "kbkbkhkbkbkh"),  # and so it does before a cut
        (36, (3,), "kbbkbbkhhkbbkbbkhh"),
        (12, (3,), "kkkkkk"),
        (6, (), "kkk"),
        (8, (), "khkh"),  # 1/8 s lies between two input frames, of which the nearer is shown
        (18, (), "kbbkbbkbh"),
    ],
)
def test_a_key_is_an_input_frame_at_its_own_time(rate, cuts, expected):
    assert kinds(clip(6, 12), rate, cuts) == expected


def test_a_key_of_a_varying_rate_may_be_off_by_the_rounding_of_its_file():
    index = replace(clip(times=[0, 33, 67, 100, 300, 333]), rate=Fraction(30))
    assert kinds(index, 30) == "kkkkhhhhhkk"


def test_each_kind_is_measured_by_itself(tmp_path):
    truth = moving(12, 64, 48).clip(0, 200)
    made = truth.copy()
    made[1::2] += 10  # frames between
    made[5], made[11] = truth[5] + 30, truth[11] + 50  # held across the cut; after the last input frame: not counted
    encoding = Encoding(64, 48, Fraction(24), codec="rgb", pix_fmt="rgb24")
    for name, frames in (("made", made), ("truth", truth)):
        write_part(tmp_path / f"{name}.mp4", frames, encoding)
    source = clip(6, 12)
    timeline = make_timeline(source, Fraction(24), (3,))
    found = score_video(tmp_path / "made.mp4", timeline, source, index_video(tmp_path / "truth.mp4"), 99)
    assert found["psnr_key"] == math.inf
    assert found["psnr_between"] == pytest.approx(20 * math.log10(255 / 10))
    assert found["psnr_held"] == pytest.approx(20 * math.log10(255 / 30))
    errors = np.array([0, 100, 0, 100, 0, 900, 0, 100, 0, 100, 0])
    assert found["psnr"] == pytest.approx(10 * math.log10(255**2 / errors.mean()))


@pytest.mark.parametrize(("most", "count"), [(99, 11), (8, 8), (1, 1)])
def test_so_many_frames_are_measured_each_as_what_it_is_and_cuts_are_told(monkeypatch, most, count):
    source, seen = clip(6, 12), []
    scores = SimpleNamespace(
        add=lambda frame, true, kind, is_cut: seen.append((int(frame), true, kind[0], is_cut)), result=dict
    )
    monkeypatch.setattr(measure, "VideoScores", lambda perceptual: scores)
    monkeypatch.setattr(measure, "index_video", lambda path, key: None)
    monkeypatch.setattr(measure, "VideoReader", lambda index: SimpleNamespace(frames=lambda: iter(range(12))))
    monkeypatch.setattr(measure, "to_tensor", lambda frame: frame)
    score_video("made.mp4", make_timeline(source, Fraction(24), (3,)), source, None, most)
    expected = [(n, None, kind, n in (0, 6)) for n, kind in enumerate("kbkbkhkbkbkh")]
    assert seen == expected[:count]  # the twelfth lies after the input's last


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (24, [0, None, 1, None, 2, None, 3]),
        (10, [0, 1, None, None]),
        (36, [0, None, None, 1]),
        (Fraction(24, 5), [0, 3, 5, 8]),  # 2.5 and 7.5 frames on: of two as near the later
    ],
)
def test_a_frame_is_held_against_what_the_reference_has_within_a_quarter_of_its_time(monkeypatch, rate, expected):
    monkeypatch.setattr(measure, "VideoReader", lambda index: SimpleNamespace(frames=lambda: iter(range(9))))
    reference = clip(9, 12)  # 0, 1/12, 1/6, 1/4 ... s
    # at 10 a second: 0.1 is 1/60 from 1/12, but 0.2 is 1/30 from 1/6, and 0.3 is 1/30 from 1/3
    assert list(islice(measure._matched(reference, Fraction(rate)), len(expected))) == expected
