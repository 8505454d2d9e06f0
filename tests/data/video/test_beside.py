"""What lies beside the pictures comes along at its time: sound, subtitles, time codes; and fields become pictures."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.data.video.test_real_files import CLIP, join, with_sound
from tests.data.videos import moving, psnr, write
from toolkit.data.video import sound as sound_module
from toolkit.data.video.beside import beside_notes, time_code
from toolkit.data.video.reader import VideoReader
from toolkit.data.video.scan import index_video
from toolkit.data.video.sound import Sound, _Restarts, sound_plan
from toolkit.data.video.write import Encoding, join_parts, write_part


def beeps(path, codec, pieces, rate=48000):
    """A film whose sound is pieces ``(begins at, seconds, frequency)``; a tone of half the loudness of full scale."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream(codec, rate=rate, layout="stereo")
        for number, pixels in enumerate(CLIP):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for begin, seconds, hertz in pieces:
            size = 1000  # no multiple of AAC's 1024
            for first in range(0, int(seconds * rate), size):
                at = np.arange(first, first + size) / rate
                samples = np.repeat((0.5 * 32767 * np.sin(2 * np.pi * hertz * at)).astype(np.int16), 2)[None]
                frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
                frame.sample_rate, frame.pts = rate, round(begin * rate) + first
                container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path


def sounding(path):
    """(begin, end) in seconds of every stretch in which there is sound, to 5 ms."""
    with av.open(str(path)) as container:
        rate, pieces = 48000, {}
        for frame in container.decode(container.streams.audio[0]):
            pieces[round(frame.time * frame.sample_rate)] = np.abs(frame.to_ndarray()).max(0)
    whole = np.zeros(max(start + len(piece) for start, piece in pieces.items()), np.float32)
    for start, piece in pieces.items():
        whole[max(start, 0) : start + len(piece)] = piece[max(0, -start) :]
    loud = (whole[: len(whole) // 240 * 240].reshape(-1, 240).max(1) > 0.1).astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], loud, [0]])))
    return [(begin * 240 / rate, end * 240 / rate) for begin, end in edges.reshape(-1, 2)]


@pytest.mark.parametrize("first_s", [0.0, 0.25])
def test_sound_that_becomes_aac_stays_at_its_time_across_pauses(tmp_path, first_s):
    """Pauses of which none is a multiple of AAC's frames; the last one ends as the clip does, to 20 ms."""
    pieces = [(first_s, 0.3), (first_s + 0.4, 0.2), (first_s + 0.77, 0.1), (first_s + 1.5, 0.2)]
    path = beeps(tmp_path / "a.mkv", "pcm_s16le", [(*piece, 440) for piece in pieces])
    heard = sounding(join(tmp_path, path, "out.mp4"))
    assert sound_plan(str(path), "mp4")[0] == {1: "aac"}
    assert len(heard) == len(pieces)
    for (begin, end), (start, seconds) in zip(heard, pieces, strict=True):
        # tones are whole pieces of 1000 samples
        assert abs(begin - start) < 0.02 and abs(end - start - -(-seconds * 48 // 1) / 48) < 0.03


def test_sound_of_before_the_first_picture_does_not_push_the_rest(tmp_path):
    path = beeps(tmp_path / "a.mkv", "pcm_s16le", [(0.0, 0.2, 440), (1.0, 0.2, 440)])
    index = index_video(path)
    later = replace(index, pts=tuple(pts + 500 for pts in index.pts))  # the first picture is shown at 0.5 s
    encoding = Encoding(64, 48, index.rate, speed="ultrafast")
    write_part(tmp_path / "p.mp4", list(CLIP[:12]), encoding)
    join_parts([tmp_path / "p.mp4"], tmp_path / "o.mp4", encoding, Sound(later), overwrite=True, token="x")
    ((begin, _),) = sounding(tmp_path / "o.mp4")
    assert abs(begin - 0.5) < 0.02


def test_the_sound_of_files_laid_end_to_end_follows_leaps_forward_too():
    """The second file's times lie 100 s later, the third's start again; the sound of the second is missing."""
    restarts = tuple(map(Fraction, (-98, 4)))
    times = _Restarts(restarts)
    assert [times.shift(time) for time in (0.0, 1.9, 100.0, 101.9, 0.0)] == [0, 0, -98, -98, 4]
    times = _Restarts(restarts)
    assert [times.shift(time) for time in (0.0, 1.9, 0.01, 1.0)] == [0, 0, 4, 4]
    times = _Restarts(())
    assert [times.shift(time) for time in (0.0, 1.0, 30.0)] == [0, 0, 0]  # a pause


def test_a_leap_of_a_transport_stream_is_followed_by_its_sound(tmp_path):
    one = with_sound(tmp_path / "one.ts", "mp2", rate=25, codec="libx264")
    two = tmp_path / "two.ts"
    with av.open(str(one)) as source, av.open(str(two), "w", options={"mpegts_flags": "resend_headers"}) as out:
        streams = [out.add_stream_from_template(stream) for stream in source.streams]
        for packet in source.demux():
            if packet.dts is not None:
                shift = round(60 / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    path = tmp_path / "leap.ts"
    path.write_bytes(one.read_bytes() + two.read_bytes())
    index = index_video(path)
    assert index.num_frames == 48 and abs(index.duration_s - Fraction(48, 25)) < 0.05
    (begin, _), (next_begin, end) = sounding(join(tmp_path, path, "out.mp4"))  # with a moment between the two files
    assert abs(begin) < 0.06 and abs(next_begin - 0.96) < 0.03 and abs(end - 2 * 0.96) < 0.1


def test_sound_is_looked_at_once(tmp_path, monkeypatch):
    path = with_sound(tmp_path / "a.mp4", "aac")
    tried = []
    monkeypatch.setattr(sound_module, "takes", lambda *about: tried.append(about) or True)
    assert sound_plan(str(path), "mp4")[0] == sound_plan(str(path), "mp4")[0] == {1: "copy"}
    assert len(tried) == 1


# -- fields ----------------------------------------------------------------------------------------------------------


def fields(path, count=24):
    """A film of interlaced frames, even rows half a frame earlier than odd ones. Returns the moments as pictures."""
    moments = moving(2 * count, 128, 96, step=4)
    woven = moments[::2].copy()
    woven[:, 1::2] = moments[1::2][:, 1::2]
    write(path, woven, codec="mpeg2video", rate=25, options={"flags": "+ildct+ilme", "qscale": "2", "g": "6"})
    return moments


def test_two_fields_become_one_full_picture_from_any_position(tmp_path):
    moments = fields(tmp_path / "i.ts")
    left, index = (index_video(tmp_path / "i.ts", deinterlace=how) for how in ("off", "auto"))
    woven, made = (np.stack(list(VideoReader(one).frames())) for one in (left, index))
    assert left.deinterlace == "" and index.deinterlace == "interlaced" and made.shape == woven.shape
    best = max(psnr(made[2:-2], moments[side::2][2:-2]) for side in (0, 1))  # whichever field the file says is first
    assert best > max(psnr(woven[2:-2], moments[side::2][2:-2]) for side in (0, 1)) + 5
    assert np.array_equal(np.stack(list(VideoReader(index).frames(7))), made[7:])
    assert any("one full picture is made" in note for note in index.notes)
    assert any("interlaced, and left so" in note for note in left.notes)


def test_what_is_not_interlaced_is_left_alone_unless_told(tmp_path):
    path = write(tmp_path / "p.mp4", CLIP[:6])
    assert index_video(path, deinterlace="auto").deinterlace == ""
    on = index_video(path, deinterlace="on")
    assert on.deinterlace == "all" and len(list(VideoReader(on).frames())) == 6


# -- beside the pictures ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subtitled(tmp_path_factory):
    """25 fps, two lines of German subtitles, a time code."""
    folder = tmp_path_factory.mktemp("subtitled")
    text = "1\n00:00:00,000 --> 00:00:00,500\nOne\n\n2\n00:00:00,600 --> 00:00:00,900\nTwo\n\n"
    (folder / "a.srt").write_text(text)
    with av.open(str(folder / "a.srt")) as texts, av.open(str(folder / "a.mkv"), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.metadata["timecode"] = "01:02:03:04"
        made = out.add_stream_from_template(texts.streams[0])
        made.metadata["language"] = "deu"
        for number, pixels in enumerate(CLIP):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        for packet in texts.demux():
            if packet.size:
                packet.stream = made
                out.mux(packet)
    return folder / "a.mkv"


def test_subtitles_and_the_time_code_come_along_where_the_container_takes_them(tmp_path, subtitled):
    index = index_video(subtitled)
    assert beside_notes(Sound(index), "matroska", index.rate) == []
    with av.open(str(join(tmp_path, subtitled, "out.mkv"))) as out:
        (stream,) = out.streams.subtitles
        assert stream.metadata["language"] == "deu" and time_code(out) == "01:02:03:04"
        lines = [(float(packet.pts * packet.time_base), bytes(packet)) for packet in out.demux(stream) if packet.size]
        assert lines == [(0.0, b"One"), (0.6, b"Two")]
    (note,) = beside_notes(Sound(index), "mp4", index.rate)
    assert note == (
        "subtitles of stream 1 (srt) are left out: the container does not take them; output=NAME.mkv takes most"
    )
    with av.open(str(join(tmp_path, subtitled, "out.mp4"))) as out:
        assert not out.streams.subtitles and time_code(out) == "01:02:03:04"
    notes = beside_notes(Sound(index), "matroska", 2 * index.rate)
    assert notes == ["its time code is left out: it counts frames of another rate or of the whole clip"]


def test_of_a_part_of_a_clip_its_subtitles_begin_at_its_beginning(tmp_path, subtitled):
    index = index_video(subtitled, start_s=0.48)
    encoding = Encoding(64, 48, index.rate, speed="ultrafast")
    write_part(tmp_path / "p.mp4", VideoReader(index).frames(), encoding)
    sound = Sound(index, is_whole=False, is_heard=False)
    join_parts([tmp_path / "p.mp4"], tmp_path / "o.mkv", encoding, sound, overwrite=True, token="x")
    with av.open(str(tmp_path / "o.mkv")) as out:
        lines = [
            (float(packet.pts * packet.time_base), bytes(packet)) for packet in out.demux(subtitles=0) if packet.size
        ]
    assert lines == [(0.12, b"Two")]


def test_further_pictures_and_a_cover_are_left_out_with_a_line(tmp_path):
    path = tmp_path / "angles.mp4"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream(codec, rate=12) for codec in ("libx264", "mpeg4", "mjpeg")]
        for stream in streams:
            stream.width, stream.height = 64, 48
            stream.pix_fmt = "yuvj420p" if stream is streams[2] else "yuv420p"
        streams[2].disposition = av.stream.Disposition.attached_pic
        for number, pixels in enumerate(CLIP):
            for stream in streams[: 3 if number == 0 else 2]:
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts = number
                container.mux(stream.encode(frame))
        container.mux([packet for stream in streams for packet in stream.encode(None)])
    index = index_video(path)
    notes = beside_notes(Sound(index), "mp4", index.rate)
    assert notes == ["pictures of stream 1 (mpeg4) are left out: the first are made", "its cover is left out"]
    assert beside_notes(Sound(index_video(write(tmp_path / "a.mp4", CLIP))), "mp4", Fraction(12)) == []
