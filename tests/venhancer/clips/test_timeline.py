"""Which frames an output frame is made of: exact counts and rates, cuts, dropped frames, varying rates."""

from dataclasses import replace
from fractions import Fraction

import pytest

from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.data.video.reader import VideoIndex
from toolkit.errors import UserError
from toolkit.venhancer.clips.inputs import check_size, output_size
from toolkit.venhancer.clips.timeline import make_timeline, output_rate


def clip(num_frames=9, rate=12, width=90, height=62, times=None):
    rate = Fraction(rate)
    pts = tuple(times or range(num_frames))
    base = Fraction(1, 1000) if times else 1 / rate
    rate = rate if not times else Fraction(len(pts) - 1) / ((pts[-1] - pts[0]) * base)
    return VideoIndex("c.mp4", 1, 1, width, height, "h264", "yuv420p", Fraction(1), base, pts, rate, not times)


def config(*words):
    return compose(COMMANDS["enhance-video"], ["input=c.mp4", *words])


def places(timeline):
    """Every output frame as a place on the input's frames."""
    found = []
    for shot in timeline.shots:
        for position in shot.positions:
            low = shot.keys[int(position)]
            share = position - int(position)
            assert not share or shot.keys[int(position) + 1] == low + 1
            found.append(low + share)
    assert len(found) == timeline.num_frames
    return found


@pytest.mark.parametrize("fps", ["24", "29.97", "60", "12", "6", "11", "95.9"])
@pytest.mark.parametrize("num_frames", [1, 2, 9, 100])
def test_counts_last_as_long_as_the_input_and_every_frame_has_its_time(fps, num_frames):
    index = clip(num_frames)
    rate = output_rate(config(f"fps={fps}"), index)
    timeline = make_timeline(index, rate)
    assert abs(timeline.num_frames / rate - index.duration_s) <= 1 / rate
    for number, place in enumerate(places(timeline)):
        exact = min(number / rate * 12, Fraction(num_frames - 1))
        assert place == exact if rate > 12 else abs(place - exact) <= Fraction(1, 2)


def test_a_last_frame_that_is_shown_shortly_is_not_dropped():
    index = replace(clip(times=[0, 2000, 4000]), last_s=Fraction(1, 2))
    assert {key for shot in make_timeline(index, index.rate).shots for key in shot.keys} == {0, 1, 2}
    assert make_timeline(index, Fraction(1, 4)).num_frames == 1  # a lower rate may


def test_the_issues_example():
    index = clip(9, 12)
    timeline = make_timeline(index, output_rate(config("fps=24"), index))
    assert timeline.rate == 24 and timeline.num_frames == 18 and timeline.factor == 2
    assert output_rate(config("fps=29.97"), index) == Fraction(30000, 1001)
    assert output_size(config("scale=1.37"), index)[:3] == (124, 84, "yuv420p")
    assert "123x85 becomes 124x84" in output_size(config("scale=1.37"), index)[3]
    full = config("scale=1.37", "encode.pix_fmt=yuv444p")
    assert output_size(full, index) == (123, 85, "yuv444p", "")


@pytest.mark.parametrize("factor", range(1, 9))
def test_whole_factors_fall_on_the_grid(factor):
    index = clip(7, "30000/1001")
    timeline = make_timeline(index, output_rate(config(f"frame_factor={factor}"), index))
    assert timeline.rate == factor * Fraction(30000, 1001) and timeline.factor == factor
    assert places(timeline)[: 6 * factor + 1] == [Fraction(n, factor) for n in range(6 * factor + 1)]


def test_beyond_eight_times_is_refused():
    assert output_rate(config("fps=96"), clip()) == 96
    with pytest.raises(UserError, match=r"fps=97: more than 8 times the input's 12; at most 96"):
        output_rate(config("fps=97"), clip())


def test_lower_rates_drop_frames_and_keep_none_that_is_not_used():
    timeline = make_timeline(clip(24, 24), Fraction(12))
    assert places(timeline) == list(range(0, 24, 2)) and timeline.shots[0].keys == tuple(range(0, 24, 2))
    assert timeline.factor == 1


def test_nothing_is_interpolated_across_a_cut():
    timeline = make_timeline(clip(8, 10), Fraction(40), cuts=[3, 6])
    found = places(timeline)
    assert [shot.keys for shot in timeline.shots] == [(0, 1, 2), (3, 4, 5), (6, 7)]
    assert [shot.first for shot in timeline.shots] == [0, 11, 23]
    for number, place in enumerate(found):
        before = Fraction(number, 4)
        if 2 < before < 3 or 5 < before < 6:
            assert place in (2, 3, 5, 6) and abs(place - before) <= Fraction(1, 2)
        else:
            assert place == min(before, 7)


def test_a_varying_rate_is_read_at_its_own_times():
    index = clip(times=[0, 100, 200, 600])
    timeline = make_timeline(index, Fraction(20))
    found = places(timeline)
    assert found[:5] == [0, Fraction(1, 2), 1, Fraction(3, 2), 2]
    assert found[6] == 2 + Fraction(100, 400) and found[12] == 3


@pytest.mark.parametrize("scale", [1, 1.37, 2, 2.5, 3.3, 4, 8])
def test_the_size_asked_for_is_the_size_delivered(scale):
    auto, full = config(f"scale={scale}"), config(f"scale={scale}", "encode.pix_fmt=yuv444p")
    for width, height in ((90, 62), (91, 63), (640, 272)):
        index = clip(width=width, height=height)
        exact = (round(width * scale), round(height * scale))
        assert output_size(full, index)[:2] == exact
        even = output_size(auto, index)
        assert all(side % 2 == 0 and abs(side - want) <= 1 for side, want in zip(even[:2], exact, strict=True))
        assert (even[3] == "") == (even[:2] == exact)


def test_sizes_by_width_and_height():
    index = clip(width=640, height=272)
    assert output_size(config("height=544"), index)[:2] == (1280, 544)
    assert output_size(config("width=1001", "height=600", "encode.pix_fmt=yuv444p"), index)[:2] == (1001, 600)
    with pytest.raises(UserError, match=r"height=200: is 0\.735 times"):
        output_size(config("height=200"), index)
    with pytest.raises(UserError, match="width=5760: is 9 times"):
        output_size(config("width=5760"), index)
    with pytest.raises(UserError, match=r"encode\.pix_fmt=yuv420p: needs even sides"):
        output_size(config("scale=1.37", "encode.pix_fmt=yuv420p"), clip())


def test_huge_results_are_refused_with_what_fits(monkeypatch):
    index = clip(width=1920, height=1080)
    with pytest.raises(UserError, match=r"can hold \(16384 a side\); at most scale=8"):
        check_size(config("scale=8"), clip(width=2048, height=1152), 16392, 9216)
    monkeypatch.setenv("TOOLKIT_MEMORY_GIB", "0.75")
    check_size(config("scale=2"), index, 3840, 2160)
    with pytest.raises(
        UserError, match=r"scale=8\.0: frames of 15360x8640 need about 2\.\d GiB, 768\.0 MiB are free; at"
    ):
        check_size(config("scale=8"), index, 15360, 8640)
    with pytest.raises(UserError, match="is too small"):
        check_size(config("scale=2"), clip(width=8, height=8), 16, 16)
