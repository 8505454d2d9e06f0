"""Numbered pictures in and out, and more than 8 bits a colour on the way."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tests.data.videos import moving, psnr, write
from toolkit.data.video.reader import VideoReader
from toolkit.data.video.scan import index_video
from toolkit.data.video.tone import ToneMap, pq_light
from toolkit.data.video.write import Encoding, can_encode, join_parts, write_part
from toolkit.errors import UserError
from toolkit.venhancer.clips.classic import Between, resize
from toolkit.venhancer.config import Classic

CLIP = moving(12, 64, 48)


def pictures(folder, name="{:05d}.png", first=8, frames=CLIP):
    folder.mkdir(parents=True)
    for number, pixels in enumerate(frames, first):
        Image.fromarray(pixels).save(folder / name.format(number))
    return folder


def frames_of(index, start=0):
    return np.stack(list(VideoReader(index).frames(start)))


@pytest.mark.parametrize("name", ["{:05d}.png", "shot 1_{}.bmp"])  # the second: 8, 9, 10 in order of number
def test_numbered_pictures_are_a_video_at_the_rate_that_is_given(tmp_path, name):
    folder = pictures(tmp_path / "100% raw", name)
    for path in (folder, folder / name.replace("{:05d}", "%05d").replace("{}", "%d")):
        index = index_video(path, rate=Fraction(24000, 1001))
        assert (index.num_frames, index.rate, index.is_constant) == (12, Fraction(24000, 1001), True)
        assert np.array_equal(frames_of(index), CLIP) and np.array_equal(frames_of(index, 7), CLIP[7:])
    (folder / name.format(9)).write_bytes((folder / name.format(10)).read_bytes())
    with pytest.raises(UserError, match="changed"):
        frames_of(index)


def test_pictures_of_which_one_is_missing_or_that_are_two_rows_are_refused(tmp_path):
    folder = pictures(tmp_path / "a")
    (folder / "00011.png").unlink()
    with pytest.raises(UserError, match=r"input=.*a: 00011\.png is missing"):
        index_video(folder)
    pictures(tmp_path / "b", "left{:03d}.png")
    for number in range(3):
        Image.fromarray(CLIP[0]).save(tmp_path / "b" / f"right{number:03d}.png")
    with pytest.raises(UserError, match=r"several rows of pictures \(left%d\.png, right%d\.png\)"):
        index_video(tmp_path / "b")
    assert index_video(tmp_path / "b" / "right%03d.png").num_frames == 3


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_a_picture_that_cannot_be_read_is_named_and_ends_no_film(tmp_path, content):
    folder = pictures(tmp_path / "a")
    (folder / "00011.png").write_bytes(content)
    with pytest.raises(UserError, match=r"input=.*a: 00011\.png cannot be read"):
        index_video(folder)
    assert index_video(folder, duration_s=2 / 25).num_frames == 2  # of what comes before


def test_numbers_that_ffmpeg_cannot_count_are_refused(tmp_path):
    folder = pictures(tmp_path / "a", first=20240101120000, frames=CLIP[:2])
    with pytest.raises(UserError, match=r"20240101120001\.png: numbers up to 2147483647 are read; rename"):
        index_video(folder)


@pytest.mark.parametrize(("turn", "upright"), [(1, lambda x: x), (2, np.fliplr), (6, lambda x: np.rot90(x, -1))])
def test_pictures_of_cameras_are_turned_as_their_exif_says(tmp_path, turn, upright):
    (tmp_path / "a").mkdir()
    picture = Image.fromarray(CLIP[0])
    exif = picture.getexif()
    exif[0x0112] = turn
    for number in range(2):
        picture.save(tmp_path / "a" / f"{number}.jpg", exif=exif, quality=98, subsampling=0)
    shown = frames_of(index_video(tmp_path / "a"))
    assert shown.shape[1:] == upright(CLIP[0]).shape and psnr(shown[0], upright(CLIP[0])) > 35


def deep_frames():
    """uint16, of which the lower bits say something: a slope of 600 values."""
    ramp = np.linspace(20_000, 30_000, 64 * 48 * 3).reshape(1, 48, 64, 3)
    return np.repeat(ramp, 5, 0).astype(np.uint16)


@pytest.mark.parametrize(("pix_fmt", "frames"), [("rgb24", CLIP), ("rgb48be", deep_frames())])
def test_pictures_are_written_in_parts_and_joined_exactly(tmp_path, pix_fmt, frames):
    encoding = Encoding(64, 48, Fraction(12), codec="png", pix_fmt=pix_fmt)
    parts = [tmp_path / "part_0", tmp_path / "part_1"]
    assert [write_part(parts[0], frames[:3], encoding), write_part(parts[1], frames[3:], encoding)] == [
        3,
        len(frames) - 3,
    ]
    join_parts(parts, tmp_path / "out", encoding, overwrite=False, token="x")
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        f"{1 + n:06d}.png" for n in range(len(frames))
    ]
    index = index_video(tmp_path / "out")
    assert index.bits == (16 if pix_fmt == "rgb48be" else 8)
    assert np.array_equal(frames_of(replace(index, deep=index.bits > 8)), frames)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_pictures_say_what_their_colours_mean(tmp_path):
    for primaries, transfer in ((9, 16), (1, 1)):
        encoding = Encoding(64, 48, Fraction(12), codec="png", pix_fmt="rgb24", primaries=primaries, transfer=transfer)
        write_part(tmp_path / "part", CLIP[:2], encoding)
        index = index_video(tmp_path / "part")
        assert (index.primaries, index.transfer) == (primaries, transfer)
        assert np.array_equal(frames_of(index), CLIP[:2])


def test_ten_bits_of_hevc_keep_what_eight_lose(tmp_path):
    frames = deep_frames()
    off = {}
    for pix_fmt in ("yuv444p", "yuv444p10le"):
        encoding = Encoding(
            64,
            48,
            Fraction(12),
            codec="hevc",
            crf=0,
            pix_fmt=pix_fmt,
            primaries=9,
            transfer=16,
            matrix=9,
            speed="ultrafast",
        )
        write_part(tmp_path / f"{pix_fmt}.mp4", frames, encoding)
        index = index_video(tmp_path / f"{pix_fmt}.mp4")
        assert (index.bits, index.primaries, index.transfer) == (10 if "10" in pix_fmt else 8, 9, 16)
        made = frames_of(replace(index, deep=True))
        off[pix_fmt] = np.abs(made.astype(int) - frames).mean()
    assert off["yuv444p10le"] < 60 < off["yuv444p"]  # a step of 10 bits is 64, of 8 it is 257
    assert can_encode("hevc", "yuv420p10le") and not can_encode("hevc", "rgb48be")


def test_hdr_becomes_sdr_by_its_definition(tmp_path):
    """Of 203 cd/m2 BT.2390's curve makes 159, dark greys are as they were, hues stay, 1000 is the screen's white."""
    assert pq_light(np.array([0.5080784, 0.7518271])) == pytest.approx([100, 1000], rel=1e-4)
    levels = np.array([10.0, 50.0, 203.0, 1000.0, 4000.0])
    root = (levels / 10000) ** (2610 / 16384)
    codes = ((3424 / 4096 + 2413 / 128 * root) / (1 + 2392 / 128 * root)) ** (2523 / 32)
    grey = np.repeat(np.rint(codes * 65535)[None, :, None], 3, 2).astype(np.uint16)
    light = 203 * (ToneMap(16)(grey)[0] / 65535.0) ** 2.4
    assert light[:, 0] == pytest.approx([10, 50, 159.04, 203, 203], rel=3e-3)
    assert np.abs(light - light[:, :1]).max() < 0.1
    path = tmp_path / "pq.mp4"
    encoding = Encoding(64, 48, Fraction(12), "hevc", 0, "ultrafast", "yuv444p10le", Fraction(1), 9, 16, 9)
    write_part(path, np.broadcast_to(grey[:, 2:3], (1, 48, 64, 3)), encoding)
    toned = frames_of(replace(index_video(path), is_toned=True))
    assert toned.dtype == np.uint8 and np.abs(toned.astype(int) - round(255 * (159.04 / 203) ** (1 / 2.4))).max() <= 1


def test_deep_pictures_are_resized_and_mixed_as_those_of_eight_bits():
    deep = CLIP.astype(np.uint16) * 257
    assert np.abs(resize(deep[0], 100, 70) / 257 - resize(CLIP[0], 100, 70)).max() < 1.5  # that of 8 bits rounds twice
    made = Between(deep[0], deep[1], Classic()).at(0.5)
    assert made.dtype == np.uint16 and psnr((made / 257).round(), Between(CLIP[0], CLIP[1], Classic()).at(0.5)) > 50


def test_transparent_pictures_of_16_bits_lie_on_black(tmp_path):
    rgba = np.full((48, 64, 4), 40_000, np.uint16)
    rgba[:, :32, 3] = 0
    rgba[:, 32:, 3] = 65535
    frame = av.VideoFrame.from_ndarray(rgba, format="rgba64le")
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("png", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgba64be"
        container.mux(stream.encode(frame.reformat(format="rgba64be")))
        container.mux(stream.encode(None))
    made = frames_of(replace(index_video(tmp_path / "a.mov"), deep=True))[0]
    assert not made[:, :32].any() and (made[:, 32:] == 40_000).all()
    assert write(tmp_path / "b.mp4", CLIP[:2]).exists() and index_video(tmp_path / "b.mp4").bits == 8
