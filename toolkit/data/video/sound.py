"""What comes along with the pictures: sound as it is, or as AAC where the container does not take it; titles, chapters.

What a container takes is asked of its muxer by writing a header, before any long work: neither the list of codecs nor
the query of one says it (TrueHD in mp4 is "experimental", Opus in mov is not).
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from toolkit.data.video.reader import VideoIndex, file_url

AAC_BIT_RATE_PER_CHANNEL = 96_000
AAC_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
BACKWARDS_S = 0.1  # times that go back by more have started again
FORWARDS_S = 10.0  # as may those that leap by more
SLACK_S = 0.02  # by which sound that becomes AAC may be off its time: containers round times
TAGS = ("title", "artist", "album", "album_artist", "comment", "copyright", "date", "description", "genre", "synopsis")


@dataclass(frozen=True)
class Sound:
    """What lies beside the pictures in ``index``'s file, to be brought along with those that were made of them."""

    index: VideoIndex
    is_whole: bool = True  # False: only what sounds while the frames of the index are shown
    is_heard: bool = True  # False: only titles, chapters, subtitles and time code

    @property
    def start_s(self) -> Fraction:
        """The time in the file at which the first frame is shown."""
        return self.index.pts[0] * self.index.time_base


def name_of(stream: Any) -> str:
    """The codec of a stream, "unknown" where FFmpeg has no decoder for it."""
    return stream.codec_context.name if stream.codec_context is not None else "unknown"


def sound_plan(path: str, form: str) -> tuple[dict[int, str], list[str]]:
    """What becomes of each sound stream of ``path`` in container ``form``: ``({index: "copy" or "aac"}, notes)``.

    A stream that is not there is left out; the notes say which are not copied, and why.
    """
    state = Path(path).stat()
    plan, notes = _planned(path, form, state.st_size, state.st_mtime_ns)
    return dict(plan), list(notes)


@functools.lru_cache(maxsize=64)
def _planned(path: str, form: str, size_bytes: int, modified_ns: int) -> tuple[dict[int, str], list[str]]:
    """``sound_plan`` of a file as it is now: streams are tried, and a folder may hold many."""
    plan: dict[int, str] = {}
    notes: list[str] = []
    with av.open(file_url(path)) as source:
        for stream in source.streams.audio:
            name = name_of(stream)
            if stream.codec_context is None:
                notes.append(f"sound stream {stream.index} is left out: of a kind that FFmpeg cannot read")
            elif takes(form, stream):
                plan[stream.index] = "copy"
            elif _decodes(path, stream.index):
                plan[stream.index] = "aac"
                notes.append(
                    f"sound stream {stream.index} ({name}) becomes AAC: the container does not take it as it is"
                )
            else:
                notes.append(f"sound stream {stream.index} ({name}) is left out: it cannot be decoded")
    return plan, notes


def takes(form: str, stream: Any) -> bool:
    """Whether the muxer of container ``form`` takes the packets of ``stream`` as they are."""
    if form == "mp4" and name_of(stream).startswith("pcm_"):
        return False  # written, but read as noise by players with FFmpeg 5 and older
    try:
        with av.open(io.BytesIO(), "w", format=form) as trial:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
    except (av.FFmpegError, ValueError):
        return False
    return True


def _decodes(path: str, index: int) -> bool:
    with av.open(file_url(path)) as source:
        try:
            return next(source.decode(source.streams[index]), None) is not None
        except av.FFmpegError:
            return False


def add_sound(source: Any, out: Any, sound: Sound, form: str) -> Iterator[tuple[float, av.Packet]]:
    """Add the streams that ``sound_plan`` names to ``out``; yields (time in seconds, packet) in the file's order."""
    plan, _ = sound_plan(sound.index.path, form)
    makers: dict[int, Callable[[Any], list[av.Packet]]] = {}
    for stream in source.streams.audio:
        if stream.index in plan:
            made = out.add_stream_from_template(stream) if plan[stream.index] == "copy" else _aac_stream(out, stream)
            describe_stream(stream, made)
            makers[stream.index] = _copier(made) if plan[stream.index] == "copy" else _transcoder(made, stream)
    return _packets(source, sound, makers)


def _packets(source: Any, sound: Sound, makers: dict[int, Callable[[Any], list[av.Packet]]]) -> Iterator[Any]:
    if not makers:  # an empty list would mean all streams
        return
    times = {index: _Restarts(sound.index.restarts_s) for index in makers}
    last: dict[int, int] = {}
    for packet in source.demux([stream for stream in source.streams.audio if stream.index in makers]):
        if packet.pts is None or packet.dts is None:
            continue
        index = packet.stream.index
        shift_s = times[index].shift(float(packet.dts * packet.time_base)) - sound.start_s
        time_s = packet.pts * packet.time_base + shift_s
        if not sound.is_whole and not 0 <= time_s < sound.index.duration_s:
            continue
        shift = round(shift_s / packet.time_base)
        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
        if packet.dts <= last.get(index, packet.dts - 1):  # the sound of one file lasts longer than its pictures
            continue
        last[index] = packet.dts
        for made in makers[index](packet):
            yield float(time_s), made
    for maker in makers.values():
        for made in maker(None):
            yield float((made.pts or 0) * made.time_base), made


class _Restarts:
    """What to add to times that start again on the way, as those of files laid end to end."""

    def __init__(self, restarts_s: tuple[Fraction, ...]):
        self.left, self.now = list(restarts_s), Fraction(0)
        self.last: float | None = None

    def shift(self, time_s: float) -> Fraction:
        """Seconds, at a packet whose file time is ``time_s``.

        Where times go back or leap, it is that of the pictures' restarts which brings the sound nearest to where it
        was: a pause is no restart, and of a piece without sound nothing is heard.
        """
        if self.last is not None and not -BACKWARDS_S <= time_s - self.last <= FORWARDS_S:
            was = self.last + self.now
            stays = [self.now] if time_s > self.last or not self.left else []
            nearest = min([*stays, *self.left], key=lambda shift: abs(time_s + shift - was))
            if nearest != self.now:
                del self.left[: self.left.index(nearest) + 1]
                self.now = nearest
        self.last = time_s
        return self.now


def _copier(made: Any) -> Callable[[Any], list[av.Packet]]:
    def copy(packet: Any) -> list[av.Packet]:
        if packet is None:
            return []
        packet.stream = made
        return [packet]

    return copy


def _aac_stream(out: Any, stream: Any) -> Any:
    """Of as many channels, where AAC has a layout for them, and of the same rate, where it has that."""
    context = stream.codec_context
    made = out.add_stream("aac", rate=context.sample_rate if context.sample_rate in AAC_RATES else 48_000)
    made.codec_context.layout = LAYOUTS.get(context.layout.nb_channels, "stereo")
    made.codec_context.bit_rate = AAC_BIT_RATE_PER_CHANNEL * made.codec_context.layout.nb_channels
    return made


def _transcoder(made: Any, stream: Any) -> Callable[[Any], list[av.Packet]]:
    """Decoded, resampled where needed, encoded; where the sound pauses there is silence, where it overlaps one."""
    resampler = av.AudioResampler(made.codec_context.format, made.codec_context.layout, made.codec_context.sample_rate)
    line = _Line(made)

    def encode(frames: list[Any], flush: bool) -> list[av.Packet]:
        return [packet for frame in frames for packet in line.add(frame)] + (line.encode(flush=True) if flush else [])

    def transcode(packet: Any) -> list[av.Packet]:
        try:
            decoded = stream.codec_context.decode(packet)
        except av.FFmpegError:  # one damaged packet
            decoded = []
        frames = [piece for frame in decoded for piece in resampler.resample(frame)]
        if packet is not None:
            return encode(frames, flush=False)
        return encode(frames + resampler.resample(None), flush=True)

    return transcode


class _Line:
    """Samples on one line of time, into an encoder that takes them in frames of its own size."""

    def __init__(self, made: Any):
        self.made, self.context = made, made.codec_context
        self.fifo = av.AudioFifo()
        self.at: int | None = None  # the next sample to encode

    def add(self, frame: Any) -> list[av.Packet]:
        """Write a frame at its time: after silence, or without what was heard already."""
        packets: list[av.Packet] = []
        rate = self.context.sample_rate
        wanted = None if frame.time is None else round(frame.time * rate)
        if self.at is None:
            self.at = max(0, wanted or 0)
        off = 0 if wanted is None else wanted - (self.at + self.fifo.samples)
        while off > SLACK_S * rate:
            count = min(off, rate)  # a second at a time: a pause may be long
            self._write(np.zeros((self.context.layout.nb_channels, count), np.float32))
            packets += self.encode()
            off -= count
        samples = frame.to_ndarray()
        self._write(samples[:, -off:] if off < -SLACK_S * rate else samples)
        return packets + self.encode()

    def _write(self, samples: np.ndarray) -> None:
        """Planar samples (channels, count); the encoder's format is fltp."""
        if samples.shape[1]:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", self.context.layout.name)
            frame.sample_rate = self.context.sample_rate
            self.fifo.write(frame)

    def encode(self, flush: bool = False) -> list[av.Packet]:
        """What fills frames of the encoder's size; with ``flush`` everything."""
        packets: list[av.Packet] = []
        while piece := self.fifo.read(self.context.frame_size or 1024, partial=flush):
            piece.pts, piece.time_base = self.at, Fraction(1, self.context.sample_rate)
            self.at = (self.at or 0) + piece.samples
            packets += self.made.encode(piece)
        return packets + (self.made.encode(None) if flush else [])


def describe_stream(stream: Any, made: Any) -> None:
    """Language and title of a stream, and whether players choose it."""
    for key in ("language", "title"):
        if key in stream.metadata:
            made.metadata[key] = stream.metadata[key]
    made.disposition = stream.disposition


def describe(source: Any, out: Any, sound: Sound) -> None:
    """The file's title and the like, and its chapters as far as they lie in what is shown."""
    for key, value in source.metadata.items():
        if key.lower() in TAGS:
            out.metadata[key] = value
    chapters = []
    for chapter in source.chapters():
        base = chapter["time_base"]
        begin, end = (chapter[side] * base - sound.start_s for side in ("start", "end"))
        begin, end = max(begin, Fraction(0)), min(end, sound.index.duration_s)
        if begin < end:
            chapters.append({**chapter, "start": round(begin / base), "end": round(end / base)})
    if chapters:
        out.set_chapters(chapters)
