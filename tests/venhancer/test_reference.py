"""The clip as it should look is of the same times, fields and colours as the part of the input that is used."""

import re
from fractions import Fraction

import numpy as np
import pytest

from tests.data.video.test_beside import fields
from tests.data.videos import moving, write
from tests.venhancer.test_files import pq, prepared
from toolkit.data.video.reader import VideoReader
from toolkit.errors import UserError
from toolkit.launch import launch

CLIP = moving(12, 90, 62)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def numbers_of(index, of):
    """Which frames of ``of`` are those of the indexed video."""
    found = VideoReader(index).frames()
    return [int(np.argmin([np.abs(frame.astype(int) - one).mean() for one in of])) for frame in found]


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["start_s=0.2"], range(6, 12)),  # the first frame that is shown then or later is the sixth, at 0.2002 s
        (["start_s=0.21"], range(7, 12)),
        (["start_s=0.1", "duration_s=0.1"], range(3, 6)),
        (["duration_s=0.2"], range(6)),
        ([], range(12)),
    ],
)
@pytest.mark.parametrize("suffixes", [("mp4", "mkv"), ("mkv", "mp4")])  # of which mkv rounds times to ms
def test_it_is_cut_as_the_input_is(folder, words, numbers, suffixes):
    rate = Fraction(30000, 1001)
    for name, suffix in zip(("in", "good"), suffixes, strict=True):
        write(folder / f"{name}.{suffix}", CLIP, rate=rate, options={"crf": "10"})
    work = prepared(folder, f"input=in.{suffixes[0]}", f"reference=good.{suffixes[1]}", "backend=classic", *words)
    assert numbers_of(work.index, CLIP) == numbers_of(work.reference, CLIP) == [*numbers]


def test_one_of_twice_the_rate_begins_with_the_inputs_first_frame(folder):
    write(folder / "in.mp4", CLIP[::2], rate=12)
    write(folder / "good.mp4", CLIP, rate=24)
    work = prepared(folder, "input=in.mp4", "reference=good.mp4", "backend=classic", "start_s=0.05")
    assert numbers_of(work.reference, CLIP) == [*range(2, 12)]  # of the input the second frame is the first to be used


@pytest.mark.parametrize("count", [2, 7])
def test_one_that_is_cut_already_is_refused(folder, count, capfd):
    write(folder / "in.mp4", CLIP)
    write(folder / "good.mp4", CLIP[-count:])
    words = ["input=in.mp4", "reference=good.mp4", "start_s=0.3", "backend=classic"]
    assert launch("enhance-video", [*words, "hydra.run.dir=RUN"]) == 2
    said = capfd.readouterr().err
    assert "reference=good.mp4: " in said and ("cut it as they cut the input" in said or "no frame after" in said)


def test_without_a_cut_other_lengths_are_said(folder):
    write(folder / "in.mp4", CLIP[:6])
    write(folder / "good.mp4", CLIP)
    work = prepared(folder, "input=in.mp4", "reference=good.mp4", "backend=classic")
    assert "in: the reference has 1.00 s, the input 0.50 s; both are compared from their first frames on" in work.notes


def test_it_is_toned_as_the_input_is_and_refused_where_only_one_is_hdr(folder):
    pq(folder)
    words = ["input=pq.mp4", "backend=classic"]
    work = prepared(folder, *words, "reference=pq.mp4", "encode.hdr=tonemap")
    assert work.reference.is_toned
    write(folder / "plain.mp4", CLIP[:6])
    assert not prepared(folder, *words, "reference=plain.mp4", "encode.hdr=tonemap").reference.is_toned
    said = "reference=plain.mp4: is no HDR, the input HDR (PQ); encode.hdr=tonemap makes BT.709 of both"
    with pytest.raises(UserError, match=re.escape(said)):
        prepared(folder, *words, "reference=plain.mp4")


def test_its_fields_are_made_full_pictures_where_the_inputs_are(folder):
    fields(folder / "i.ts", count=4)
    for how, expected in (("auto", "interlaced"), ("off", "")):
        words = ["input=i.ts", "reference=i.ts", "backend=classic", f"deinterlace={how}"]
        work = prepared(folder / how, *words)
        assert work.reference.deinterlace == work.index.deinterlace == expected
