"""Reading and writing videos: every frame, its time, its colours; damage; parts that join without a seam."""

import gc
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.data.videos import moving, psnr, read, sound_bytes, write
from toolkit.data.video.reader import VideoIndex, VideoReader
from toolkit.data.video.scan import index_video
from toolkit.data.video.sound import Sound
from toolkit.data.video.write import Encoding, container_of, join_parts, write_part
from toolkit.errors import JobError, UserError

CLIP = moving(24, 64, 48)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("clip.mp4", {"options": {"g": "10", "bf": "2"}}),
        ("clip.mkv", {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=8"}}),
        ("clip.avi", {"codec": "mpeg4", "options": {"qscale": "2"}}),
        ("clip.mpg", {"codec": "mpeg2video", "rate": 25}),
        ("clip.webm", {"codec": "libvpx-vp9", "options": {"g": "9", "deadline": "realtime"}}),
        ("clip.ts", {"options": {"g": "6"}}),
        ("clip.h264", {"options": {"g": "6"}}),
        ("clip.mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le"}),
        ("clip.gif", {"codec": "gif", "pix_fmt": "rgb8", "rate": 10}),
    ],
)
def test_frames_from_any_position_are_those_of_one_pass(tmp_path, name, settings):
    path = write(tmp_path / name, CLIP, **settings)
    index = index_video(path)
    assert (index.num_frames, index.width, index.height) == (24, 64, 48)
    assert not index.notes or name == "clip.gif"
    assert index.is_constant and index.rate == settings.get("rate", 12 if name != "clip.h264" else index.rate)
    whole = np.stack(list(VideoReader(index).frames()))
    assert psnr(whole, CLIP) > (12 if name.endswith("gif") else 28)
    for start in (1, 5, 11, 23):
        assert np.array_equal(np.stack(list(VideoReader(index).frames(start))), whole[start:]), start
    assert list(VideoReader(index).frames(24)) == []


@pytest.mark.parametrize("rate", ["24000/1001", "30000/1001", "75", "12.5"])
def test_rates_are_exact_fractions(tmp_path, rate):
    for name in ("a.mp4", "a.mkv"):  # Matroska rounds times to milliseconds
        index = index_video(write(tmp_path / name, CLIP, rate=Fraction(rate)))
        assert index.rate == Fraction(rate) and index.is_constant and index.duration_s == 24 / Fraction(rate)


def test_varying_rate_keeps_every_time(tmp_path):
    times = [0, 40, 80, 300, 340, 800]
    index = index_video(write(tmp_path / "v.mkv", CLIP[:6], times=times, rate=25))
    assert not index.is_constant and "varying frame rate" in index.notes[0]
    assert [round(1000 * index.time(i)) for i in range(6)] == times
    assert index.position(Fraction(190, 1000)) == (2, 0.5)
    assert index.position(Fraction(5)) == (5, 0.0) and index.position(Fraction(0)) == (0, 0.0)


def test_a_part_of_a_clip_begins_at_the_frame_asked_for(tmp_path):
    path = write(tmp_path / "clip.mp4", CLIP, options={"g": "10"})
    index = index_video(path, start_s=0.5, duration_s=0.75)
    assert index.num_frames == 9 and not index.notes
    whole = np.stack(list(VideoReader(index_video(path)).frames()))
    assert np.array_equal(np.stack(list(VideoReader(index).frames(2))), whole[8:15])
    with pytest.raises(UserError, match="no frame after start_s"):
        index_video(path, start_s=10)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_rotated_clip_is_turned_upright(tmp_path, turn):
    path = write(tmp_path / "r.mp4", CLIP, rotation=turn, options={"qp": "1"}, aspect=Fraction(4, 3))
    index = index_video(path)
    upright = np.rot90(CLIP, turn // 90, axes=(1, 2))
    assert (index.height, index.width) == upright.shape[1:3]
    assert index.aspect == (Fraction(3, 4) if turn % 180 else Fraction(4, 3))
    assert psnr(np.stack(list(VideoReader(index).frames())), upright) > 33


def test_ten_bits_and_full_colour_come_out_in_eight(tmp_path):
    path = write(tmp_path / "ten.mkv", CLIP, codec="ffv1", pix_fmt="yuv444p10le")
    assert psnr(np.stack(list(VideoReader(index_video(path)).frames())), CLIP) > 50


def test_transparent_parts_lie_on_black(tmp_path):
    rgba = np.concatenate([CLIP, np.full((24, 48, 64, 1), 255, np.uint8)], -1)
    rgba[:, :, :32, 3] = 0
    rgba[:, :10, :, 3] = 128
    index = index_video(write(tmp_path / "a.mov", rgba, codec="qtrle", pix_fmt="argb", source="rgba"))
    assert "transparent" in index.notes[0]
    got = np.stack(list(VideoReader(index).frames()))
    assert not got[:, 20:, :32].any() and np.array_equal(got[:, 20:, 32:], CLIP[:, 20:, 32:])
    assert abs(got[:, :10].astype(int) - CLIP[:, :10].astype(int) * 128 / 255).max() <= 1


@pytest.mark.parametrize(("rows", "space"), [(48, 5), (720, 1)])
def test_untagged_colours_are_read_as_players_do(tmp_path, rows, space):
    pixels = np.empty((2, rows, 64, 3), np.uint8)
    pixels[:] = (200, 60, 30)
    yuv = av.VideoFrame.from_ndarray(pixels[0], format="rgb24").reformat(
        format="yuv444p", dst_colorspace=space, dst_color_range=1
    )
    got = next(VideoReader(index_video(_untagged(tmp_path / "c.mkv", yuv))).frames())
    assert abs(got.astype(int) - (200, 60, 30)).max() <= 2


def _untagged(path, yuv):
    planes = yuv.to_ndarray()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = yuv.width, yuv.height, "yuv444p"
        for pts in range(2):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv444p")
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def make_bad(kind, tmp_path):
    path = tmp_path / f"{kind.replace(' ', '_')}.mp4"
    if kind == "empty file":
        path.write_bytes(b"")
    elif kind == "no video":
        path.write_text("hello " * 1000)
    elif kind == "no frames":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=12)
            stream.width, stream.height = 64, 48
            container.start_encoding()
    elif kind == "only sound":
        with av.open(str(path), "w") as container:
            from tests.data.videos import tone

            container.mux(tone(container.add_stream("aac", rate=48000), 0.5))
    elif kind == "cut short":
        path.write_bytes(write(path, CLIP).read_bytes()[:1500])
    elif kind == "a folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("empty file", "the file is empty"),
        ("no video", "not a video that can be read"),
        ("no frames", "has no"),
        ("only sound", "only sound"),
        ("cut short", "not a video that can be read"),
        ("a folder", "is a folder"),
        ("missing", "no such file"),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(tmp_path, kind, said):
    path = make_bad(kind, tmp_path)
    with pytest.raises(UserError, match=said) as refusal:
        index_video(path)
    assert str(refusal.value).startswith(f"input={path}: ") and "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["t.mkv", "t.ts", "t.mp4"])
def test_of_a_clip_cut_short_the_readable_frames_are_used_and_said(tmp_path, name):
    options = {"g": "4"} | ({"movflags": "+faststart"} if name == "t.mp4" else {})
    noise = np.random.default_rng(0).integers(0, 255, (240, 48, 64, 3), dtype=np.uint8)
    whole = write(tmp_path / name, noise, options={"g": "4"})
    if name == "t.mp4":
        with av.open(str(whole)) as source, av.open(str(tmp_path / "f.mp4"), "w", options=options) as out:
            stream = out.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
        whole = tmp_path / "f.mp4"
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    index = index_video(whole)
    assert 60 < index.num_frames < 200
    assert len(list(VideoReader(index).frames(50))) == index.num_frames - 50
    if name != "t.ts":  # a transport stream does not say how long it is
        assert "damaged or cut short" in index.notes[0] and "of 20.00 s" in index.notes[0]


def test_a_huge_picture_is_refused_before_a_frame_is_decoded(tmp_path):
    path = write(tmp_path / "big.mp4", np.zeros((1, 480, 640, 3), np.uint8))
    with pytest.raises(UserError, match=r"one frame of 640x480 takes 1 MiB"):
        index_video(path, most_bytes=2**19)


def test_a_file_that_changes_while_it_is_worked_on_is_noticed(tmp_path):
    index = index_video(write(tmp_path / "c.mp4", CLIP))
    write(tmp_path / "c.mp4", CLIP[:10])
    with pytest.raises(UserError, match="changed"):
        next(VideoReader(index).frames())


def test_a_frame_that_was_read_does_not_stay_in_memory(tmp_path):
    index = index_video(write(tmp_path / "clip.mp4", CLIP))
    gc.collect()
    gc.disable()  # what is left behind must not need it
    try:
        assert len(list(VideoReader(index).frames())) == 24
        assert not any(type(one) is av.VideoFrame for one in gc.get_objects())
    finally:
        gc.enable()


def test_an_index_survives_json(tmp_path):
    import json

    index = index_video(write(tmp_path / "c.mp4", CLIP, sound="aac", rate=Fraction(30000, 1001)), start_s=0.1)
    assert VideoIndex.from_json(json.loads(json.dumps(index.to_json()))) == index


# -- writing -----------------------------------------------------------------------------------------------------------


def make(tmp_path, name, sizes, encoding, frames, **settings):
    parts, start = [], 0
    for number, size in enumerate(sizes):
        parts.append(tmp_path / f"{name}_{number}.mp4")
        assert write_part(parts[-1], frames[start : start + size], encoding) == size
        start += size
    target = tmp_path / name
    settings = {"overwrite": False, "token": "x"} | settings
    join_parts(parts, target, encoding, **settings)
    return target


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("name", ["o.mp4", "o.mkv", "o.mov"])
def test_joined_parts_are_one_clip(tmp_path, codec, name):
    rate = Fraction(30000, 1001)
    encoding = Encoding(64, 48, rate, codec, crf=10, speed="veryfast")
    target = make(tmp_path, name, [9, 1, 14], encoding, CLIP)
    index = index_video(target)
    assert index.rate == rate and index.is_constant and index.num_frames == 24 and not index.notes
    assert psnr(np.stack(list(VideoReader(index).frames())), CLIP) > 33
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert stream.average_rate == rate and context.name == codec
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        frame = next(container.decode(stream))
        assert (frame.colorspace, frame.color_range, frame.pts) == (1, 1, 0)


def test_the_same_frames_give_the_same_bytes(tmp_path):
    """At a width that fills x264's vectors: below, one clip in some hundred comes out a few bits different."""
    wide = moving(8, 256, 128)
    encoding = Encoding(256, 128, Fraction(24))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = make(tmp_path / "a", "o.mp4", [4, 4], encoding, wide)
    assert make(tmp_path / "b", "o.mp4", [4, 4], encoding, wide).read_bytes() == first.read_bytes()


def test_full_colour_keeps_odd_sizes_and_pixels_that_are_not_square(tmp_path):
    odd = moving(5, 123, 85)
    encoding = Encoding(123, 85, Fraction(24), crf=1, pix_fmt="yuv444p", aspect=Fraction(4, 3))
    index = index_video(make(tmp_path, "o.mp4", [5], encoding, odd))
    assert (index.width, index.height, index.aspect) == (123, 85, Fraction(4, 3))
    assert psnr(np.stack(list(VideoReader(index).frames())), odd) > 46


@pytest.mark.parametrize(("source", "target", "codec"), [("s.mp4", "o.mp4", "aac"), ("s.mkv", "o.mkv", "pcm_s16le")])
def test_sound_is_copied_bit_for_bit(tmp_path, source, target, codec):
    index = index_video(write(tmp_path / source, CLIP, sound=codec))
    made = make(tmp_path, target, [24, 24], Encoding(64, 48, Fraction(24)), np.repeat(CLIP, 2, 0), sound=Sound(index))
    assert sound_bytes(made) == sound_bytes(tmp_path / source)
    with av.open(str(made)) as container:
        assert abs(container.duration / av.time_base - 2) < 0.1


def test_of_a_part_of_a_clip_only_its_sound_is_taken(tmp_path):
    index = index_video(write(tmp_path / "s.mkv", CLIP, sound="pcm_s16le"), start_s=0.5, duration_s=1.0)
    sound = Sound(index, is_whole=False)
    made = make(tmp_path, "o.mkv", [12], Encoding(64, 48, Fraction(12)), CLIP[6:18], sound=sound)
    assert abs(len(sound_bytes(made)) / 4 / 48000 - 1.0) < 0.05


def test_an_unknown_suffix_names_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"\.mp4, \.m4v, \.mov, \.mkv"):
        container_of(tmp_path / "o.webm")


def test_a_result_that_came_meanwhile_is_not_overwritten(tmp_path):
    encoding = Encoding(64, 48, Fraction(24), speed="ultrafast")
    (tmp_path / "o.mp4").write_bytes(b"someone's")
    with pytest.raises(JobError, match="meanwhile"):
        make(tmp_path, "o.mp4", [4], encoding, CLIP)
    assert (tmp_path / "o.mp4").read_bytes() == b"someone's"
    make(tmp_path, "o.mp4", [4], encoding, CLIP, overwrite=True)
    assert len(read(tmp_path / "o.mp4")) == 4
