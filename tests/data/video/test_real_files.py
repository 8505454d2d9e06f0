"""Videos as people have them: sound that a container refuses, times that start again, odd colours and turns."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.data.videos import moving, psnr, read, tone, write
from toolkit.data.video.reader import VideoIndex, VideoReader, open_video
from toolkit.data.video.scan import index_video
from toolkit.data.video.sound import Sound, sound_plan
from toolkit.data.video.write import Encoding, join_parts, write_part
from toolkit.errors import UserError

CLIP = moving(24, 64, 48)


def with_sound(path, sound, rate=12, frames=CLIP, **settings):
    return write(path, frames, sound=sound, rate=rate, **settings)


def join(tmp_path, source, name, **settings):
    """The pictures of ``source`` and its sound, put together as ``name``."""
    index = index_video(source)
    encoding = Encoding(index.width, index.height, index.rate, speed="ultrafast", **settings)
    part = tmp_path / f"part_of_{name}.mp4"
    write_part(part, VideoReader(index).frames(), encoding)
    join_parts([part], tmp_path / name, encoding, Sound(index), overwrite=True, token="x")
    return tmp_path / name


def sound_of(path, stream=0):
    """(codec, loudness over tenths of a second) of a sound stream."""
    with av.open(str(path)) as container:
        chosen = container.streams.audio[stream]
        resampler = av.AudioResampler("fltp", "mono", 48000)
        frames = [piece for frame in container.decode(chosen) for piece in resampler.resample(frame)]
    samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    whole = samples[: len(samples) // 4800 * 4800].reshape(-1, 4800)
    return chosen.codec_context.name, np.sqrt((whole**2).mean(1)), len(samples) / 48000


# -- sound -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "source", "target", "becomes"),
    [
        ("aac", "a.mp4", "mp4", "copy"),
        ("libopus", "a.mkv", "mp4", "copy"),
        ("libopus", "a.mkv", "mov", "aac"),  # "opus only supported in MP4", says the muxer and no list
        ("flac", "a.mkv", "mov", "aac"),
        ("wmav2", "a.wmv", "mp4", "aac"),
        ("wmav2", "a.wmv", "matroska", "aac"),
        ("pcm_s24le", "a.mov", "mp4", "aac"),  # as PCM, older players read noise
        ("pcm_s24le", "a.mov", "mov", "copy"),
        ("adpcm_ima_wav", "a.avi", "matroska", "aac"),
    ],
)
def test_sound_is_copied_or_becomes_aac_and_never_fails_at_the_end(tmp_path, codec, source, target, becomes):
    path = tmp_path / source
    _write_with(path, {"a.wmv": "wmv2", "a.avi": "mpeg4"}.get(source, "libx264"), codec)
    plan, notes = sound_plan(str(path), target)
    assert plan == {1: becomes}
    assert bool(notes) == (becomes == "aac")
    suffix = {"matroska": "mkv"}.get(target, target)
    name, loudness, seconds = sound_of(join(tmp_path, path, f"out.{suffix}"))
    assert name == {"copy": sound_of(path)[0], "aac": "aac"}[becomes]
    assert abs(seconds - 2) < 0.15 and 0.1 < np.median(loudness) < 0.3


def _write_with(path, video, codec):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(video, rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream(codec, rate=48000, layout="mono" if codec[:3] == "pcm" else "stereo")
        audio.bit_rate = 128_000
        for number, pixels in enumerate(CLIP):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        container.mux(tone(audio, 2.0))


def test_a_sound_stream_that_nothing_can_decode_is_left_out_and_said(tmp_path):
    path = with_sound(tmp_path / "a.mp4", "aac")
    content = path.read_bytes()
    assert content.count(b"mp4a") == 1
    path.write_bytes(content.replace(b"mp4a", b"apac").replace(b"esds", b"dapa"))
    assert index_video(path).audio == ("unknown",)
    plan, notes = sound_plan(str(path), "mp4")
    assert plan == {} and notes == ["sound stream 1 is left out: of a kind that FFmpeg cannot read"]
    with av.open(str(join(tmp_path, path, "out.mp4"))) as out:
        assert not out.streams.audio and len(out.streams.video) == 1


def test_titles_languages_default_flags_and_chapters_come_along(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "A walk"
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sounds = [container.add_stream("aac", rate=48000) for _ in range(2)]
        for one, language in zip(sounds, ("eng", "fra"), strict=True):
            one.metadata["language"] = language
        sounds[1].disposition = av.stream.Disposition.default
        base = Fraction(1, 1000)
        container.set_chapters(
            [
                {"id": 1, "start": 0, "end": 1500, "time_base": base, "metadata": {"title": "The bridge"}},
                {"id": 2, "start": 1500, "end": 2000, "time_base": base, "metadata": {"title": "Home"}},
            ]
        )
        for number, pixels in enumerate(CLIP):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for one in sounds:
            container.mux(tone(one, 2.0))
    for name in ("out.mp4", "out.mkv"):
        with av.open(str(join(tmp_path, path, name))) as out:
            assert out.metadata["title"] == "A walk"
            assert [one.metadata.get("language") for one in out.streams.audio] == ["eng", "fra"]
            assert [bool(one.disposition & av.stream.Disposition.default) for one in out.streams.audio] == [False, True]
            chapters = out.chapters()
            starts = [float(chapter["start"] * chapter["time_base"]) for chapter in chapters]
            assert starts == [0, 1.5] and [one["metadata"]["title"] for one in chapters] == ["The bridge", "Home"]


# -- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "codec"), [("ts", "libx264"), ("mpg", "mpeg2video")])
def test_files_laid_end_to_end_play_one_after_the_other(tmp_path, suffix, codec):
    one = with_sound(tmp_path / f"one.{suffix}", "mp2", rate=25, codec=codec)
    path = tmp_path / f"twice.{suffix}"
    path.write_bytes(one.read_bytes() * 2)
    index = index_video(path)
    assert index.num_frames == 48 and index.rate == 25 and abs(index.duration_s - Fraction(48, 25)) < 0.05
    assert any("times start again" in note for note in index.notes)
    single = np.stack(list(VideoReader(index_video(one)).frames()))
    frames = np.stack(list(VideoReader(index).frames()))
    assert np.array_equal(frames[:24], single) and np.array_equal(frames[24:], single)
    assert np.array_equal(np.stack(list(VideoReader(index).frames(30))), frames[30:])
    _, _, seconds = sound_of(join(tmp_path, path, "out.mp4"))
    assert abs(seconds - 2 * 0.96) < 0.1
    assert VideoIndex.from_json(index.to_json()) == index


PHONE_MS = [0, 36, 69, 99, 132, 167, 199, 236, 265, 333, 368, 404, 434, 465, 503, 535, 565]  # 30, up to 4 ms off


@pytest.mark.parametrize(
    ("times", "rate"),
    [
        ([0, 40, 80, 120, 200, 240, 280, 320], 25),  # one dropped frame
        ([*range(0, 200, 20), 400, 600, 800, *range(1000, 1200, 20)], 50),  # a screen that rests between bursts
        ([0, 500, 1000], 2),
        (PHONE_MS, 30),
    ],
)
def test_varying_rate_is_written_at_a_rate_that_shows_every_frame(tmp_path, times, rate):
    from toolkit.venhancer.clips.timeline import make_timeline

    index = index_video(write(tmp_path / "v.mkv", CLIP[: len(times)], times=times, rate=rate))
    assert abs(index.rate - rate) < 0.05  # 29.97 cannot be told from 30 in half a second
    shown = {key for shot in make_timeline(index, index.rate).shots for key in shot.keys}
    assert shown == set(range(len(times)))


def test_frames_of_one_time_do_not_make_a_rate_of_a_thousand(tmp_path):
    times = [0, 80, 80, 160, 240, 240, 320, 400, 480, 560]
    index = index_video(write(tmp_path / "v.mkv", CLIP[:10], times=times, rate=12))
    assert index.num_frames == 10 and 11.9 < index.rate < 12.6
    assert any("2 frames have the time of the one before" in note for note in index.notes)
    still = index_video(write(tmp_path / "all.mkv", CLIP[:4], times=[0, 0, 0, 0], rate=12))
    assert still.rate < 100


def test_a_slow_film_is_not_written_at_the_rate_of_its_clock(tmp_path):
    times = [0, 400, 800, 1200, 1600, 2400, 2800, 3200, 3600, 4400]  # of fifteenths of a second, six each or more
    index = index_video(write(tmp_path / "v.mkv", CLIP[:10], times=times, rate=15))
    assert index.rate == Fraction(5, 2)


def test_the_last_picture_of_a_slide_show_is_shown_as_long_as_it_says(tmp_path):
    path = write(tmp_path / "slides.gif", CLIP[:3], codec="gif", pix_fmt="rgb8", rate=2)
    content = bytearray(path.read_bytes())
    controls = [at for at in range(len(content) - 4) if content[at : at + 3] == b"\x21\xf9\x04"]
    struct.pack_into("<H", content, controls[-1] + 4, 300)  # hundredths of a second
    path.write_bytes(content)
    index = index_video(path)
    assert index.duration_s == 4 and not any("damaged" in note for note in index.notes)


def test_a_file_that_breaks_off_is_called_damaged_also_when_it_has_sound(tmp_path):
    path = with_sound(tmp_path / "a.mkv", "aac", frames=np.concatenate([CLIP] * 4))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    notes = index_video(path).notes
    assert any("damaged or cut short" in note and "of 8.0" in note for note in notes), notes


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_recording_that_begins_between_whole_pictures_says_what_is_lost(tmp_path, codec):
    whole = write(tmp_path / "whole.ts", CLIP, rate=25, codec=codec, options={"g": "12", "bf": "2"})
    assert index_video(whole).notes == ()
    late = tmp_path / "late.ts"
    late.write_bytes(whole.read_bytes()[188 * 8 + 50 :])  # the first whole picture is gone, the second comes at 12
    index = index_video(late)
    assert index.num_frames == 12 and any("its first 0.4" in note and "between" in note for note in index.notes), index


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_transparent_parts_of_webm_lie_on_black(tmp_path, codec, monkeypatch):
    alpha = np.where(np.arange(CLIP.shape[2]) < 32, 255, 0).astype(np.uint8)
    pixels = np.concatenate([CLIP[:6], np.broadcast_to(alpha[:, None], (6, *CLIP.shape[1:3], 1))], -1)
    options = {"auto-alt-ref": "0", "crf": "4", "b": "2M", "g": "3"}
    path = write(tmp_path / "a.webm", pixels, codec=codec, pix_fmt="yuva420p", source="rgba", options=options)
    index = index_video(path)
    assert index.num_frames == 6 and any("laid on black" in note for note in index.notes)
    frames = np.stack(list(VideoReader(index).frames()))
    assert psnr(frames[:, :, :28], CLIP[:6, :, :28]) > 28 and frames[:, :, 36:].max() < 8
    assert np.array_equal(np.stack(list(VideoReader(index).frames(4))), frames[4:])
    monkeypatch.setattr(av, "codecs_available", set())
    assert any("not read" in note for note in index_video(path).notes)
    plain = write(tmp_path / "b.webm", CLIP[:4], codec=codec)
    assert index_video(plain).notes == ()


def test_a_file_that_begins_late_is_whole(tmp_path):
    path = write(tmp_path / "late.mkv", CLIP, rate=25, times=[100_000 + 40 * n for n in range(24)])
    with av.open(str(path)) as container:
        assert container.duration > 100 * av.time_base  # so it declares
    index = index_video(path)
    assert index.notes == () and index.duration_s == Fraction(24, 25)


# -- pictures --------------------------------------------------------------------------------------------------------


MIRRORED = {  # display matrices as cameras and editors write them, and what they do
    (-1, 0, 0, 1): lambda x: x[:, :, ::-1],
    (1, 0, 0, -1): lambda x: x[:, ::-1],
    (-1, 0, 0, -1): lambda x: x[:, ::-1, ::-1],
    (0, 1, 1, 0): lambda x: x.swapaxes(1, 2),
    (0, 1, -1, 0): lambda x: np.rot90(x, -1, axes=(1, 2)),
}


@pytest.mark.parametrize("matrix", list(MIRRORED))
def test_turned_and_mirrored_pictures_come_out_upright(tmp_path, matrix):
    path = write(tmp_path / "m.mp4", CLIP[:4], options={"qp": "1"}, rotation=90)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of other fields
    a, b, c, d = (value * 65536 for value in matrix)
    struct.pack_into(">9i", content, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    expected = MIRRORED[matrix](CLIP[:4])
    index = index_video(path)
    assert (index.height, index.width) == expected.shape[1:3]
    assert psnr(np.stack(list(VideoReader(index).frames())), expected) > 33


@pytest.mark.parametrize("matrix", [8, 10, 14])  # YCgCo, BT.2020 of constant luminance, ICtCp
def test_colours_that_cannot_be_converted_are_refused_before_any_work(tmp_path, matrix):
    path = write(tmp_path / "odd.mp4", CLIP[:2], tags={"colorspace": matrix})
    with pytest.raises(UserError, match=rf"odd\.mp4: its colours \(yuv420p, H\.273's matrix {matrix}\) cannot be conv"):
        index_video(path)


def test_a_picture_turned_askew_is_said(tmp_path):
    notes = [index_video(write(tmp_path / "t.mp4", CLIP[:2], rotation=turn)).notes for turn in (30, 90)]
    assert [any("other than right angles" in note for note in one) for one in notes] == [True, False]


@pytest.mark.parametrize(("primaries", "transfer"), [(9, 1), (12, 1), (9, 16), (6, 6)])
def test_colours_keep_their_meaning(tmp_path, primaries, transfer):
    """What is written is tagged as what was read: wide colours are not called BT.709's."""
    path = tmp_path / "wide.mp4"
    write_part(path, CLIP[:4], Encoding(64, 48, Fraction(12), primaries=primaries, transfer=transfer))
    index = index_video(path)
    assert (index.primaries, index.transfer) == (primaries, transfer)
    out = join(tmp_path, path, "out.mp4", primaries=index.primaries, transfer=index.transfer)
    with av.open(str(out)) as container:
        frame = next(container.decode(video=0))
        assert (frame.color_primaries, frame.color_trc, frame.colorspace) == (primaries, transfer, 1)
    assert psnr(read(out), CLIP[:4]) > 28


# -- names -----------------------------------------------------------------------------------------------------------


def test_only_files_are_videos(tmp_path):
    for name, why in [
        ("https://example.com/a.mp4", "is an address, not a file"),
        (tmp_path / "f%d.png", "no such pictures"),
        (tmp_path / "f%d.mp4", "one number and the suffix of a picture"),
        ("concat:a.ts|b.ts", "no such file"),
        ("/dev/zero", "is no regular file"),
        (tmp_path, "is a folder"),
    ]:
        with pytest.raises(UserError, match=why):
            open_video(name if isinstance(name, type(tmp_path)) else type(tmp_path)(str(name)), "input")
    odd = write(tmp_path / "concat:a.mp4", CLIP[:2])
    assert index_video(odd).num_frames == 2


@pytest.mark.parametrize("name", ["12:30.mp4", "data:x.mkv"])
def test_a_colon_in_a_name_is_no_protocol(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    source = with_sound(type(tmp_path)(name), "aac")
    made = join(type(tmp_path)(), source, f"out {name}")
    assert index_video(made).num_frames == 24 and index_video(made).audio == ("aac",)
