"""Frames to colours and back, how they lie, which crops are kept, and times of what lies beside, with plain numbers."""

from fractions import Fraction
from functools import partial
from types import SimpleNamespace

import av
import numpy as np
import pytest

from toolkit.data.video import beside, crops, pixels
from toolkit.data.video.crops import ClipCrops
from toolkit.data.video.pixels import FromRgb, Orientation, ToRgb


def test_transparent_parts_lie_on_black_to_the_nearest_level():
    """200 of 255 at an opacity of 100 is 78.4, at 200 it is 156.9."""
    colours = np.full((16, 16, 4), 200, np.uint8)
    colours[..., 3] = np.repeat([0, 100, 200, 255], 4)
    made = ToRgb(16, 16)(av.VideoFrame.from_ndarray(colours, format="rgba"))
    assert made[5, ::4].tolist() == [[0] * 3, [78] * 3, [157] * 3, [200] * 3]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("degrees", "upright", "is_askew"),
    [
        (0, [[1, 2, 3], [4, 5, 6]], False),
        (1, [[1, 2, 3], [4, 5, 6]], False),
        (3, [[1, 2, 3], [4, 5, 6]], True),
        (90, [[4, 1], [5, 2], [6, 3]], False),  # clockwise
        (183, [[6, 5, 4], [3, 2, 1]], True),
        (269, [[3, 6], [2, 5], [1, 4]], False),
    ],
)
def test_a_picture_is_turned_by_right_angles_and_what_is_more_than_a_degree_off_them_is_told(
    degrees, upright, is_askew, mirrored, monkeypatch
):
    """[x y] [[a, b], [c, d]], x to the right and y down: clockwise by t is a = d = cos t, b = -c = sin t."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    across = -1 if mirrored else 1  # mirrored after it was turned
    matrix = np.array([across * cos, sin, 0, -across * sin, cos, 0, 0, 0, 2**14]) * 2**16
    told = {"DISPLAYMATRIX": matrix.astype(np.int32).tobytes()}
    monkeypatch.setattr(pixels, "SideDataContainer", lambda frame: told)
    found = pixels.orientation(None)
    assert found.upright(np.array([[1, 2, 3], [4, 5, 6]])).tolist() == [row[::across] for row in upright]
    assert found.is_askew == is_askew and Orientation() == (False, False, False, False)


def test_what_is_written_has_bt709s_luma_in_video_range_or_another_that_is_asked_for():
    """Of green, 16 + 219 times 0.7152 in BT.709 and 0.678 in BT.2020 (9 in H.273)."""
    green = np.zeros((16, 16, 3), np.uint8)
    green[..., 1] = 255
    for made, luma in ((FromRgb("yuv444p"), 172.6), (FromRgb("yuv444p", 9), 164.5)):
        assert abs(int(np.frombuffer(made(green).planes[0], np.uint8)[0]) - luma) < 1.5


def test_untagged_frames_are_of_high_definition_from_720_rows_on():
    found = [pixels.source_colorspace(SimpleNamespace(colorspace=2, height=rows)) for rows in (719, 720)]
    assert found == [pixels.Colorspace.ITU601, pixels.Colorspace.ITU709]
    assert pixels.source_colorspace(SimpleNamespace(colorspace=9, height=100)) == 9


# -- crops -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contrast", "steps", "is_good"),
    [(4, [0], True), (3.9, [0], False), (20, [30], True), (20, [31], False), (20, [0, 0, 40], False), (4, [], True)],
)
def test_a_crop_shows_something_and_never_changes_by_more_than_thirty_levels_at_once(contrast, steps, is_good):
    """A board of squares so far above and below grey, which jumps by so much from frame to frame."""
    board = 128 + contrast * (1 - 2 * (np.indices((4, 6)).sum(axis=0) % 2))
    clip = board + np.cumsum([0, *steps]).reshape(-1, 1, 1)
    assert crops._is_good(np.repeat(clip[..., None], 3, axis=-1)) == is_good


def test_of_a_crop_that_is_longer_than_needed_the_first_frames_are_read(tmp_path):
    (tmp_path / "crops.u8").write_bytes(bytes(range(2 * 3 * 2 * 2 * 3)))
    found = ClipCrops(tmp_path / "crops.u8", (2, 3, 2, 2, 3), ("", "")).read([1, 0], 2)
    assert found.shape == (2, 2, 3, 2, 2)
    assert found[:, :, 0, 0, 0].tolist() == [[36, 48], [0, 12]] and found[0, 0, :, 1, 0].tolist() == [42, 43, 44]


def test_crops_begin_at_any_time_row_and_column_where_they_fit(monkeypatch):
    """Of five frames of 4 x 5 pixels three frames of 3 x 3: at three times, two rows and three columns."""
    places = np.arange(20).reshape(4, 5, 1).repeat(3, axis=-1)
    made = SimpleNamespace(tasks=lambda wanted: (partial(np.add, places, 40 * number) for number in sorted(wanted)))
    monkeypatch.setattr(crops, "VideoReader", lambda index: made)
    monkeypatch.setattr(crops, "_is_good", lambda crop: True)
    index, bar = SimpleNamespace(num_frames=5, width=5, height=4, rate=24), SimpleNamespace(advance=lambda number: None)
    found = [*crops._crops_of(index, 150, 3, 3, None, np.random.default_rng(0), bar)]
    assert len(found) == 150 and {one.shape for one in found} == {(3, 3, 3, 3)}
    corners = {40 * start + 5 * top + left for start in range(3) for top in range(2) for left in range(3)}
    assert {int(one[0, 0, 0, 0]) for one in found} == corners


# -- beside ------------------------------------------------------------------------------------------------------------


def test_subtitles_of_what_is_shown_come_at_their_time_after_its_start():
    """Shown is the second from 0.25 s on; times are in thousandths."""

    def packet(pts, size=1):
        return SimpleNamespace(pts=pts, size=size, time_base=Fraction(1, 1000), stream=SimpleNamespace(index=3))

    packets = [packet(None), packet(249), packet(250), packet(700, size=0), packet(1249), packet(1250)]
    source = SimpleNamespace(streams={3: "third"}, demux=lambda streams: iter(packets))
    sound = SimpleNamespace(start_s=Fraction(1, 4), index=SimpleNamespace(duration_s=Fraction(1)))
    found = [*beside._packets(source, sound, {3: "made"})]
    assert [(time_s, one.pts, one.dts, one.stream) for time_s, one in found] == [
        (0.0, 0, 0, "made"),
        (0.999, 999, 999, "made"),
    ]
