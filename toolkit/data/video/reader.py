"""Reading video files, any container and codec that PyAV's FFmpeg knows: the frames as RGB, from any position.

``toolkit.data.video.scan.index_video`` says what is in a file; ``VideoReader(index).frames(start)`` gives its frames.
Memory does not grow with length.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import re
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.context import Flags

from toolkit.data.video.deinterlace import BEFORE, deinterlaced
from toolkit.data.video.pixels import ToRgb
from toolkit.data.video.sequence import GUESSED_RATE, find_sequence
from toolkit.data.video.tone import ToneMap
from toolkit.errors import UserError
from toolkit.plain_files import why

WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


@dataclass(frozen=True)
class VideoIndex:
    """A video's frames in order of display; ``width`` and ``height`` are those of the upright picture.

    pts: of every frame, strictly rising, in units of ``time_base`` seconds. rate: frames per second, the declared one
    where the frames keep to it, else that of their shorter intervals. is_constant: whether they keep to it. last_s: how
    long the last frame is shown, where the file says so. audio: codec names of the sound streams. notes: what a user
    should know, one line each. primaries, transfer: what the colours mean, in ITU-T H.273's numbers. restarts_s: what
    is added to the file's times from the first, second, ... frame on at which they start again; first_frame: how many
    frames of the file precede the first one. begin_s: when it is shown after the file's own first. deinterlace: which
    frames readers make full pictures of, those that are marked (``interlaced``) or ``all``; empty: none. bits: of a
    colour in the file. deep: whether readers give uint16. is_toned: whether they bring HDR to what screens of 8 bits
    show.
    """

    path: str
    size_bytes: int
    modified_ns: int
    width: int
    height: int
    codec: str
    pixel_format: str
    aspect: Fraction
    time_base: Fraction
    pts: tuple[int, ...]
    rate: Fraction
    is_constant: bool
    audio: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    last_s: Fraction | None = None
    primaries: int = 1
    transfer: int = 1
    restarts_s: tuple[Fraction, ...] = ()
    first_frame: int = 0
    begin_s: Fraction = Fraction(0)
    deinterlace: str = ""
    bits: int = 8
    deep: bool = False
    is_toned: bool = False

    @property
    def num_frames(self) -> int:
        """How many frames there are."""
        return len(self.pts)

    @property
    def duration_s(self) -> Fraction:
        """From the first frame's beginning to the last frame's end."""
        return self.time(self.num_frames - 1) + (self.last_s or 1 / self.rate)

    def time(self, index: int) -> Fraction:
        """When frame ``index`` is shown, in seconds after the first one."""
        if self.is_constant:
            return index / self.rate
        return (self.pts[index] - self.pts[0]) * self.time_base

    def position(self, time_s: Fraction) -> tuple[int, Fraction]:
        """``(i, a)``: ``time_s`` lies the fraction a in [0, 1) of the way from frame i to the next; the ends hold."""
        last = self.num_frames - 1
        if self.is_constant:
            place = max(Fraction(0), min(time_s * self.rate, Fraction(last)))
            return int(place), place - int(place)
        tick = time_s / self.time_base + self.pts[0]
        index = max(0, bisect.bisect_right(self.pts, tick) - 1)
        if index >= last or tick <= self.pts[0]:
            return min(index, last), Fraction(0)
        return index, (tick - self.pts[index]) / (self.pts[index + 1] - self.pts[index])

    def to_json(self) -> dict[str, Any]:
        """Plain values; fractions as text."""
        values = asdict(self) | {"restarts_s": [str(one) for one in self.restarts_s]}
        return {key: str(value) if isinstance(value, Fraction) else value for key, value in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> VideoIndex:
        """The inverse of :meth:`to_json`."""
        fractions = {key: Fraction(values[key]) for key in ("aspect", "time_base", "rate")}
        fractions["begin_s"] = Fraction(values.get("begin_s", 0))  # older files have none
        lists = {key: tuple(values[key]) for key in ("pts", "audio", "notes")}
        lists["restarts_s"] = tuple(Fraction(one) for one in values.get("restarts_s", ()))
        last = {"last_s": Fraction(values["last_s"])} if values.get("last_s") else {}
        return cls(**{**values, **fractions, **lists, **last})


def open_video(path: Path, key: str = "input", rate: Fraction = GUESSED_RATE) -> Any:
    """The file, or the numbered pictures at ``rate``, as a PyAV container. Raises UserError where it cannot be opened.

    Only files are: what else FFmpeg takes for a name (addresses, ``concat:a|b``) is refused.
    """
    if pictures := find_sequence(path, key):
        return pictures.open(rate)
    if re.match(r"[a-z]{2,}:/", str(path)):
        raise UserError(f"{key}={path}: is an address, not a file; fetch it first")
    if not path.exists():
        raise UserError(f"{key}={path}: no such file")
    if path.is_dir():
        raise UserError(f"{key}={path}: is a folder without numbered pictures")
    if not path.is_file():
        raise UserError(f"{key}={path}: is no regular file, and a video is read more than once; save it first")
    try:
        return av.open(file_url(path))
    except PermissionError:
        raise UserError(f"{key}={path}: may not be read") from None
    except (av.FFmpegError, UnicodeDecodeError) as error:
        said = "the file is empty" if path.stat().st_size == 0 else reason(error)
        raise UserError(f"{key}={path}: not a video that can be read ({why(path, said)})") from None


def file_url(path: str | Path) -> str:
    """FFmpeg's name of a file; without it what precedes a colon, as in ``12:30.mp4``, would be a protocol."""
    return f"file:{path}"


def file_state(path: Path) -> tuple[int, int]:
    """(size in bytes, newest change in ns) of the file, or of all numbered pictures."""
    if pictures := find_sequence(path):
        return pictures.state()
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def picture_stream(container: Any, path: Path, key: str = "input") -> Any:
    """The first stream of moving pictures (a song's cover is none). Raises UserError where there is none."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic and stream.codec_context is not None:
            return stream
    has = "only sound" if container.streams.audio else "no stream of pictures that can be read"
    raise UserError(f"{key}={path}: has {has}; give a whole video")


def decoder_of(stream: Any) -> Any:
    """What decodes the stream's packets: of WebM's transparency FFmpeg's own decoder reads nothing, libvpx does.

    Frames begin where the stream's crop marks say, though memory is not aligned there: else columns at the left that
    are cut off would be shown.
    """
    name = WITH_ALPHA.get(stream.codec_context.name) if stream.metadata.get("alpha_mode") == "1" else None
    decoder = av.CodecContext.create(name, "r") if name in av.codecs_available else stream.codec_context
    decoder.flags |= Flags.unaligned
    return decoder


def reason(error: Exception) -> str:
    """What FFmpeg says, in a few words."""
    text = getattr(error, "strerror", None) or str(error)
    return text[:1].lower() + text[1:]


class VideoReader:
    """The frames of an indexed video as uint8 (or uint16) RGB, from any position on; opens it anew for every pass."""

    def __init__(self, index: VideoIndex):
        self.index = index
        self.num_frames, self.height, self.width = index.num_frames, index.height, index.width

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Frames ``start``, start + 1, ... to the end, each uint8 (uint16 of a deep index) (height, width, 3).

        Raises UserError when the file changed since it was indexed.
        """
        to_rgb = self._converter()
        for _, frame in self._numbered(start):
            yield to_rgb(frame)

    def tasks(self, numbers: Collection[int]) -> Iterator[Callable[[], np.ndarray]]:
        """For each frame of ``numbers``, in their order, a function that makes what :meth:`frames` gives.

        Any thread may call it. The other frames are decoded and no more.
        """
        own = threading.local()

        def make(frame: av.VideoFrame) -> np.ndarray:
            if not hasattr(own, "to_rgb"):
                own.to_rgb = self._converter()
            return own.to_rgb(frame)

        return (functools.partial(make, frame) for number, frame in self._numbered(0) if number in numbers)

    def _converter(self) -> Callable[[av.VideoFrame], np.ndarray]:
        to_rgb = ToRgb(self.width, self.height, self.index.deep or self.index.is_toned)
        return (lambda frame: self._toned(to_rgb(frame))) if self.index.is_toned else to_rgb

    def _numbered(self, start: int) -> Iterator[tuple[int, av.VideoFrame]]:
        if file_state(Path(self.index.path)) != (self.index.size_bytes, self.index.modified_ns):
            raise UserError(f"input={self.index.path}: the file changed while it was worked on; start again")
        if start >= self.num_frames:
            return
        number = start - 1
        for number, frame in enumerate(self._full(start), start):
            yield number, frame
            if number + 1 == self.num_frames:
                return
        raise UserError(f"input={self.index.path}: only {number + 1} of {self.num_frames} frames could be read again")

    def _toned(self, pixels: np.ndarray) -> np.ndarray:
        toned = self._toner(pixels)
        return toned if self.index.deep else ((toned.astype(np.uint32) + 128) // 257).astype(np.uint8)

    @functools.cached_property
    def _toner(self) -> ToneMap:
        return ToneMap(self.index.transfer)

    def _full(self, start: int) -> Iterator[av.VideoFrame]:
        """Frames from ``start`` on, without fields; the same from any position: the filter sees what comes before."""
        if not self.index.deinterlace:
            return self._decode(start)
        before = min(BEFORE, start)
        return itertools.islice(deinterlaced(self._decode(start - before), self.index.deinterlace), before, None)

    def _decode(self, start: int) -> Iterator[av.VideoFrame]:
        """Frames from ``start`` on: by seeking where that lands on it, else from the beginning."""
        found = self._seek(self.index.pts[start]) if start > 0 and not self.index.restarts_s else None
        if found is not None:
            yield from found
            return
        with self._open() as container:
            stream = picture_stream(container, Path(self.index.path))
            stream.thread_type = "AUTO"
            yield from itertools.islice(_until_damage(container, stream), self.index.first_frame + start, None)

    def _open(self) -> Any:
        return open_video(Path(self.index.path), rate=self.index.rate)

    def _seek(self, wanted: int) -> Iterator[av.VideoFrame] | None:
        container = self._open()
        stream = picture_stream(container, Path(self.index.path))
        stream.thread_type = "AUTO"
        try:
            container.seek(wanted, stream=stream, backward=True)
            frames = _until_damage(container, stream)
            first = next(frames, None)
            while first is not None and first.pts is not None and first.pts < wanted:
                first = next(frames, None)
        except av.FFmpegError:
            first = None
        if first is None or first.pts != wanted:
            container.close()
            return None
        return _chain(container, first, frames)


def _chain(container: Any, first: av.VideoFrame, rest: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    with container:
        yield first
        yield from rest


def _until_damage(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
    try:
        decoder = decoder_of(stream)
        for packet in container.demux(stream):
            yield from decoder.decode(packet)
    except av.FFmpegError:
        return
