"""What is in a video file: one decoding pass that notes the time of every frame, and the first damage.

So counts, rates, sizes and damage are known before any long work starts. Memory does not grow with the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from toolkit.data.video.pixels import UNSPECIFIED, has_alpha, orientation, thumbnail
from toolkit.data.video.reader import VideoIndex, decoder_of, file_state, open_video, picture_stream, reason
from toolkit.data.video.sequence import GUESSED_RATE, find_sequence
from toolkit.data.video.sound import name_of
from toolkit.errors import UserError

NTSC_RATES = [Fraction(1000 * rate, 1001) for rate in (24, 30, 60)]
USUAL_RATES = [*map(Fraction, (10, 12, 15, 24, 25, 30, 48, 50, 60, 90, 100, 120, 144, 240)), *NTSC_RATES]
BACKWARDS_S = 0.1  # times that go back by more start again, as in files laid end to end
FORWARDS_S = 10.0  # as do times of a stream without an index (TS, VOB) that leap by more
MOST_OFF_BEAT = 0.2  # of an interval: a phone's clock trembles so much around its rate
MOST_OF_USUAL = 1.5  # times the rate of the median interval: that rate is not higher
MOST_LOST = 0.01  # of the frames, at such a rate
CONSTANT_RATE_TOLERANCE = 0.25  # of the mean interval: containers round times, cameras drop whole frames


def index_video(
    path: str | Path,
    *,
    key: str = "input",
    start_s: float = 0.0,
    duration_s: float | None = None,
    most_bytes: int | None = None,
    rate: Fraction = GUESSED_RATE,
    deinterlace: str = "off",
    each: Callable[[av.VideoFrame], None] | None = None,
) -> VideoIndex:
    """Decode ``path`` once, from ``start_s`` for ``duration_s`` seconds, and say what is there.

    ``path``: a file, or numbered pictures (a folder of them, or ``frames/%05d.png``), which are shown at ``rate``.
    ``deinterlace``: auto, where frames are marked as interlaced, on or off; readers of the index do it. ``each`` is
    called with every frame. ``most_bytes``: refuse a picture of more uint8 RGB bytes, before decoding one.
    Raises UserError naming ``key`` for a file that is missing, no video, without frames or without a picture stream.
    """
    path = Path(path)
    with open_video(path, key, rate) as container:
        stream = picture_stream(container, path, key)
        _refuse_huge(stream, path, key, most_bytes)
        stream.thread_type = "AUTO"
        scan = _Scan(stream, start_s, duration_s, each)
        scan.run(container)
        if scan.first is None:
            raise UserError(f"{key}={path}: {scan.nothing()}")
        _refuse_unread_picture(scan, path, key)
        index = _index(path, scan, stream, container, deinterlace)
        _refuse_unconvertible(scan.first, index, key)
        return replace(index, notes=tuple(_notes(index, scan, stream, container)))


def declared_frames(path: Path, key: str = "input") -> int:
    """How many frames the file says it has, or its length and rate do; 1 where it says neither.

    Raises UserError as :func:`index_video` does.
    """
    with open_video(path, key) as container:
        stream = picture_stream(container, path, key)
        duration_s = (container.duration or 0) / av.time_base
        return stream.frames or max(1, round(duration_s * float(stream.average_rate or GUESSED_RATE)))


def _index(path: Path, scan: _Scan, stream: Any, container: Any, deinterlace: str) -> VideoIndex:
    assert scan.first is not None
    turned = orientation(scan.first).transposed
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    size_bytes, modified_ns = file_state(path)
    rate, is_constant = _frame_rate(scan, stream)
    return VideoIndex(
        path=str(path),
        size_bytes=size_bytes,
        modified_ns=modified_ns,
        width=scan.height if turned else scan.width,
        height=scan.width if turned else scan.height,
        codec=stream.codec_context.name,
        pixel_format=scan.first.format.name,
        bits=max(component.bits for component in scan.first.format.components),
        aspect=1 / aspect if turned else aspect,
        time_base=scan.time_base,
        pts=tuple(scan.pts),
        rate=rate,
        is_constant=is_constant,
        last_s=None if is_constant else scan.last_s,
        audio=tuple(name_of(audio) for audio in container.streams.audio),
        primaries=_known(scan.first, "color_primaries"),
        transfer=_known(scan.first, "color_trc"),
        restarts_s=tuple(scan.restarts_s),
        first_frame=scan.skipped,
        begin_s=scan.begin_s,
        deinterlace={"auto": "interlaced" if scan.is_interlaced else "", "on": "all"}.get(deinterlace, ""),
    )


class _Scan:
    """One pass over the frames: their times, and the first damage."""

    def __init__(self, stream: Any, start_s: float, duration_s: float | None, each: Any):
        self.stream, self.each = stream, each
        self.start_s, self.end_s = start_s, None if duration_s is None else start_s + duration_s
        self.first: av.VideoFrame | None = None
        self.time_base = stream.time_base or Fraction(1, 1000)
        self.pts: list[int] = []
        self.width = self.height = 0
        self.decoded = 0
        self.origin: int | None = None
        self.begin: int | None = None  # the least time of a packet up to the first frame
        self.damage = ""
        self.num_corrupt = self.skipped = 0
        self.shift = 0  # of the times after the last restart, in units of the time base
        self.restarts_s: list[Fraction] = []
        self.last_s: Fraction | None = None
        self.sound_end_s = 0.0
        self.leaps = stream.container.format.name in ("mpegts", "mpeg")
        self.same_time: list[int] = []  # frames with the time of the one before
        self.is_interlaced = self.changes_size = self.was_timed = self.is_ended = False

    def run(self, container: Any) -> None:
        """Decode to the end of the part asked for, or to the damage."""
        decoder = decoder_of(self.stream)
        streams = [self.stream, *(one for one in container.streams.audio if one.codec_context is not None)]
        try:
            for packet in container.demux(streams):
                if packet.stream is not self.stream:
                    if packet.pts is not None:
                        self.sound_end_s = max(self.sound_end_s, float(packet.pts * packet.time_base))
                    continue
                if not self.decoded and packet.pts is not None and not packet.is_discard:
                    self.begin = packet.pts if self.begin is None else min(self.begin, packet.pts)
                for frame in decoder.decode(packet):
                    if not self._take(frame):
                        self.is_ended = True
                        return
        except (av.FFmpegError, OSError) as error:
            self.damage = reason(error)

    def _take(self, frame: av.VideoFrame) -> bool:
        pts = self._pts(frame)
        self.decoded += 1
        self.origin = pts if self.origin is None else self.origin
        time_s = (pts - self.origin) * self.time_base
        if time_s < self.start_s - 1e-9:
            self.skipped += 1
            return True
        if self.end_s is not None and time_s >= self.end_s - 1e-9:
            return False
        if self.first is None:
            self.first = frame
            self.width, self.height = frame.width, frame.height
        if self.pts and pts <= self.pts[-1]:
            self.same_time.append(len(self.pts))
            pts = self.pts[-1] + 1
        self.pts.append(pts)
        self.is_interlaced |= bool(frame.interlaced_frame)
        self.num_corrupt += bool(frame.is_corrupt)
        self.last_s = frame.duration * self.time_base if frame.duration and frame.pts is not None else None
        self.changes_size |= (frame.width, frame.height) != (self.width, self.height)
        if self.each:
            self.each(frame)
        return True

    def _pts(self, frame: av.VideoFrame) -> int:
        """The frame's time; frames of a raw stream have none and follow each other at the stream's rate."""
        if frame.pts is not None:
            self.was_timed = True
            if frame.time_base:
                self.time_base = frame.time_base
            return self._joined(frame.pts)
        if not self.was_timed:
            self.time_base = 1 / (self.stream.average_rate or GUESSED_RATE)
            return self.decoded
        return (self.pts[-1] if self.pts else self.origin or 0) + 1

    def _joined(self, pts: int) -> int:
        """``pts`` with what earlier restarts add. A restart goes on one frame after the last one."""
        if self.pts:
            step_s = float((pts + self.shift - self.pts[-1]) * self.time_base)
            if step_s < -BACKWARDS_S or (self.leaps and step_s > FORWARDS_S):
                usual = self.pts[-1] - self.pts[-2] if len(self.pts) > 1 else 1
                self.shift = self.pts[-1] + usual - pts
                self.restarts_s.append(self.shift * self.time_base)
        return pts + self.shift

    @property
    def begin_s(self) -> Fraction:
        """When the first frame taken is shown, after the first one of the file."""
        return (self.pts[0] - (self.origin or 0)) * self.time_base

    @property
    def lost_s(self) -> Fraction:
        """What comes before the first frame, as of a recording that begins in the middle of its pictures."""
        if self.begin is None or self.origin is None or self.start_s:
            return Fraction(0)
        return (self.origin - self.begin) * self.time_base

    def nothing(self) -> str:
        """Why there is no frame."""
        if self.damage:
            hint = "; animated WebP is not read, APNG and GIF are" if self.stream.codec_context.name == "webp" else ""
            return f"no frame of it can be decoded ({self.damage}){hint}"
        until = "" if self.end_s is None else f" and before {self.end_s:g} s, where duration_s ends it"
        return f"has no frame after start_s={self.start_s}{until}" if self.decoded else "has no frames"


def _refuse_huge(stream: Any, path: Path, key: str, most_bytes: int | None) -> None:
    need = 3 * stream.codec_context.width * stream.codec_context.height
    if most_bytes is not None and need > most_bytes:
        size = f"{stream.codec_context.width}x{stream.codec_context.height}"
        raise UserError(
            f"{key}={path}: one frame of {size} takes {need / 2**20:.0f} MiB and work on it several; "
            f"{most_bytes / 2**20:.0f} MiB are the most here; make it smaller first"
        )


def _refuse_unread_picture(scan: _Scan, path: Path, key: str) -> None:
    """Of numbered pictures all must be read: FFmpeg ends at the first that is damaged or empty."""
    pictures = find_sequence(path)
    if pictures and not scan.is_ended and (number := pictures.first + scan.decoded) <= pictures.last:
        why = scan.damage or "the file is empty, or damaged"
        raise UserError(f"{key}={path}: {pictures.file(number).name} cannot be read ({why}); mend or replace it")


def _refuse_unconvertible(frame: av.VideoFrame, index: VideoIndex, key: str) -> None:
    """Tried, not guessed: FFmpeg knows more kinds of colours than it converts, such as YCgCo and ICtCp."""
    try:
        thumbnail(frame, 16, 16)
    except av.FFmpegError as error:
        kind = f"{index.pixel_format}, H.273's matrix {int(frame.colorspace)}"
        raise UserError(f"{key}={index.path}: its colours ({kind}) cannot be converted ({reason(error)})") from None


def _frame_rate(scan: _Scan, stream: Any) -> tuple[Fraction, bool]:
    """(rate, whether the frames keep to it). Where they do not, it is the one that they tremble around and that shows
    them all, else that of their shorter intervals."""
    rate, is_constant = _rate_of_times(scan, stream)
    return rate, is_constant and (scan.last_s is None or abs(scan.last_s * rate - 1) < 0.5)


def _rate_of_times(scan: _Scan, stream: Any) -> tuple[Fraction, bool]:
    declared = Fraction(stream.average_rate or stream.base_rate or GUESSED_RATE)
    if len(scan.pts) < 2 + len(scan.same_time):
        return (1 / scan.last_s if scan.last_s else declared), True
    mean = Fraction(len(scan.pts) - 1) / ((scan.pts[-1] - scan.pts[0]) * scan.time_base)
    for rate in (declared, Fraction(stream.base_rate or declared), mean.limit_denominator(1001)):
        interval = 1 / rate / scan.time_base
        off = max(abs(pts - scan.pts[0] - index * interval) for index, pts in enumerate(scan.pts))
        if off <= max(CONSTANT_RATE_TOLERANCE * interval, 1):
            return rate, True
    intervals = np.delete(np.diff(np.array(scan.pts)), [number - 1 for number in scan.same_time])
    possible = [rate for rate in USUAL_RATES if rate * scan.time_base * int(np.median(intervals)) <= MOST_OF_USUAL]
    if possible:
        trembling = min(possible, key=lambda rate: _off_beat(scan, intervals, rate) / rate)
        if _off_beat(scan, intervals, trembling) < MOST_OFF_BEAT and _shows_all(scan, trembling):
            return trembling, False
    short = int(np.sort(intervals)[len(intervals) // 10])  # the odd one that is too short does not count
    shorter = 1 / (short * scan.time_base)
    nearest = min(USUAL_RATES, key=lambda rate: abs(rate - shorter))
    return (nearest if abs(nearest / shorter - 1) < 0.05 else shorter.limit_denominator(1001)), False


def _off_beat(scan: _Scan, intervals: np.ndarray, rate: Fraction) -> float:
    """By how much of an interval of ``rate`` the frames' intervals are no multiples of it (root of the mean square)."""
    beats = intervals * float(scan.time_base * rate)
    return float(np.sqrt(np.square(beats - np.maximum(np.rint(beats), 1)).mean()))


def _shows_all(scan: _Scan, rate: Fraction) -> bool:
    """Whether (almost) every frame is the nearest one to a time of ``rate``."""
    ticks = np.rint((np.array(scan.pts) - scan.pts[0]) * float(scan.time_base * rate))
    return len(scan.pts) - len(scan.same_time) - len(np.unique(ticks)) <= MOST_LOST * len(scan.pts)


def _known(frame: Any, name: str) -> int:
    """A colour tag of the frame, BT.709's where there is none."""
    value = int(getattr(frame, name, 1) or 1)
    return 1 if value in (0, UNSPECIFIED) else value


def _notes(index: VideoIndex, scan: _Scan, stream: Any, container: Any) -> Iterator[str]:
    name = Path(index.path).name
    declared_s = float(stream.duration * stream.time_base) if stream.duration else 0.0
    got_s, whole_s = float(index.duration_s), float(container.duration or 0) / av.time_base
    reached_s = got_s
    if "matroska" in container.format.name:  # FFmpeg's own files count from 0, whenever the first frame is shown
        whole_s -= max(0, container.start_time or 0) / av.time_base
    if not declared_s and whole_s:  # of the longest stream
        declared_s, reached_s = whole_s, max(got_s, scan.sound_end_s)
    is_short = scan.end_s is None and not index.restarts_s and declared_s - scan.start_s > 1.05 * reached_s + 0.5
    if scan.damage or is_short:
        said = f" of {declared_s:.2f}" if declared_s else ""
        why = f" ({scan.damage})" if scan.damage else ""
        can = f"{index.num_frames} frames, {got_s:.2f}{said} s"
        yield f"{name}: damaged or cut short{why}; used is what can be read: {can}"
    if scan.lost_s * index.rate >= 1:
        lost = f"its first {float(scan.lost_s):.2f} s cannot be decoded"
        yield f"{name}: begins between whole pictures; {lost}, used is what follows"
    if scan.num_corrupt:
        yield f"{name}: damaged: {scan.num_corrupt} of {index.num_frames} frames could be decoded in part only"
    if index.restarts_s:
        yield f"{name}: {len(index.restarts_s)} times its times start again, as in files laid end to end; joined"
    if scan.same_time:
        yield f"{name}: {len(scan.same_time)} frames have the time of the one before them, and may not be shown"
    if not index.is_constant:
        yield f"{name}: varying frame rate; frames keep their times at {float(index.rate):.4g} fps"
    assert scan.first is not None
    if orientation(scan.first).is_askew:
        yield f"{name}: is to be turned by other than right angles, and is turned by the nearest"
    if has_alpha(scan.first.format):
        yield f"{name}: transparent parts, if any, are laid on black"
    elif stream.metadata.get("alpha_mode") == "1":  # without libvpx
        yield f"{name}: is transparent in parts, as WebM has it, which is not read: they show the colours beneath"
    if index.deinterlace:
        yield f"{name}: interlaced; of its two fields one full picture is made (deinterlace=off leaves them)"
    elif scan.is_interlaced:
        yield f"{name}: interlaced, and left so"
    if scan.changes_size:
        yield f"{name}: frames change their size on the way; all are brought to {index.width}x{index.height}"
