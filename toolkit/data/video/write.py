"""Writing video files in parts: each part is encoded by itself, put in place whole, and joined without re-encoding.

A killed job goes on after its last part. The joined file is written beside its final name, read back, and renamed:
under the final name there is a whole video or nothing.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from toolkit.data.video.beside import add_subtitles, keeps_time_code, time_code
from toolkit.data.video.pictures import PICTURES, link_pictures, put_folder, remove, write_pictures
from toolkit.data.video.pixels import FromRgb
from toolkit.data.video.reader import file_url
from toolkit.data.video.sequence import PICTURE_SUFFIXES
from toolkit.data.video.sound import Sound, add_sound, describe
from toolkit.errors import JobError, UserError
from toolkit.runs.files import write_json

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
ENCODERS = {"h264": "libx264", "hevc": "libx265", "rgb": "libx264rgb", "png": "png"}  # rgb: lossless
MOST_SIDE_PX = {"h264": 16384, "hevc": 16384, "rgb": 16384, "png": 65535}
DEEP_FORMATS = ("yuv420p10le", "yuv444p10le", "rgb48be")  # of more than 8 bits a colour
THREADS = 6  # fixed: the encoders' output depends on it, and a resumed job must write the same bytes
KEY_FRAME_EVERY = 250
MOST_REORDERING = 16  # frames; both encoders' presets stay below


@dataclass(frozen=True)
class Encoding:
    """How frames become a video. ``aspect``: width of a pixel over its height.

    ``codec``: h264 or hevc with ``pix_fmt`` yuv420p or yuv444p (hevc: also yuv420p10le, yuv444p10le); rgb with rgb24,
    which is exact; or png, numbered pictures, with rgb24 or rgb48be. ``primaries``, ``transfer`` and ``matrix`` say in
    ITU-T H.273's numbers what the values mean; 1 is BT.709.
    """

    width: int
    height: int
    rate: Fraction
    codec: str = "h264"
    crf: int = 17
    speed: str = "medium"
    pix_fmt: str = "yuv420p"
    aspect: Fraction = Fraction(1)
    primaries: int = 1
    transfer: int = 1
    matrix: int = 1


def container_of(path: Path, key: str = "output") -> str:
    """FFmpeg's name of the container that the suffix of ``path`` says. Raises UserError for any other suffix."""
    if path.suffix.lower() not in CONTAINERS:
        known, hint = ", ".join(CONTAINERS), ""
        if path.suffix.lower() in PICTURE_SUFFIXES:
            hint = "; for numbered pictures name a folder, with encode.codec=png"
        raise UserError(f"{key}={path}: the name must end in one of {known}, which hold h264 and hevc{hint}")
    return CONTAINERS[path.suffix.lower()]


def write_part(path: Path, frames: Iterable[np.ndarray], encoding: Encoding) -> int:
    """Encode ``frames`` (uint8 or uint16 RGB (height, width, 3)) into ``path``, put in place whole; returns the number.

    Of ``codec`` png it is a folder. Raises OSError when the disk is full; there is then no ``path``.
    """
    if encoding.codec == "png":
        return write_pictures(path, _pictures(frames, encoding))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    count = 0
    try:
        with av.open(file_url(temporary), "w", format="mp4") as container:
            stream = _add_stream(container, encoding)
            for packet in _encoded(frames, stream, encoding):
                packet.dts = count - MOST_REORDERING  # x265 leaves it undefined in clips of one or two frames
                container.mux(packet)
                count += 1
        _into_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _pictures(frames: Iterable[np.ndarray], encoding: Encoding) -> Iterator[av.VideoFrame]:
    """With the tags of their colours (cICP) where they are not those of every picture."""
    from_rgb = FromRgb(encoding.pix_fmt)
    for pixels in frames:
        frame = from_rgb(pixels)
        if (encoding.primaries, encoding.transfer) != (1, 1):
            frame.color_primaries, frame.color_trc = encoding.primaries, encoding.transfer
            frame.color_range = av.video.reformatter.ColorRange.JPEG
        yield frame


def _encoded(frames: Iterable[np.ndarray], stream: Any, encoding: Encoding) -> Iterator[av.Packet]:
    from_rgb = FromRgb(encoding.pix_fmt, encoding.matrix)
    for number, pixels in enumerate(frames):
        frame = from_rgb(pixels)
        frame.pts, frame.time_base = number, 1 / encoding.rate
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _add_stream(container: Any, encoding: Encoding) -> Any:
    crf = 0 if encoding.codec == "rgb" else encoding.crf
    options = {"crf": str(crf), "preset": encoding.speed, "g": str(KEY_FRAME_EVERY)}
    if encoding.codec == "hevc":
        options["x265-params"] = "log-level=none:open-gop=0:frame-threads=4"
    else:
        options["x264-params"] = f"threads={THREADS}:open-gop=0"
    stream = container.add_stream(ENCODERS[encoding.codec], rate=encoding.rate, options=options)
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = encoding.width, encoding.height, encoding.pix_fmt
    context.time_base = 1 / encoding.rate
    context.sample_aspect_ratio = encoding.aspect
    if encoding.codec != "rgb":  # video range
        context.colorspace, context.color_range = encoding.matrix, 1
        context.color_primaries, context.color_trc = encoding.primaries, encoding.transfer
    if encoding.codec == "hevc":
        context.codec_tag = "hvc1"  # the tag that Apple's players take
    return stream


def count_frames(path: Path) -> int:
    """How many frames a written file, or folder of pictures, holds. Raises FFmpegError where it cannot be read."""
    if path.is_dir():
        return len(list(path.glob(PICTURES)))
    with av.open(file_url(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))


def join_parts(
    parts: Sequence[Path],
    target: Path,
    encoding: Encoding,
    sound: Sound | None = None,
    *,
    overwrite: bool,
    token: str,
    claim: Path | None = None,
) -> None:
    """Join ``parts`` into ``target`` with the sound, titles and chapters of ``sound``'s file.

    ``token`` marks the unfinished file of this job; ``claim`` is a file to note in that ``target`` is this job's
    (:func:`is_claimed`), so that a job killed right after knows its own result. Raises JobError when ``target`` came
    into being meanwhile or the result does not read back, OSError when the disk is full; ``target`` is then as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{token}.part")
    total = sum(count_frames(part) for part in parts)
    try:
        if encoding.codec == "png":
            link_pictures(parts, temporary)
        else:
            _join(parts, temporary, container_of(target), encoding, sound)
        found = count_frames(temporary)
        if found != total:
            raise JobError(f"{target}: {found} of {total} frames read back from what was written; is the disk full?")
        if is_taken(target) and not overwrite:
            raise JobError(f"{target}: was made by someone else meanwhile; give another output or overwrite=true")
        if claim:
            write_json(claim, identity(temporary))
        _into_place(temporary, target)
    finally:
        remove(temporary)


def is_claimed(target: Path, claim: Path) -> bool:
    """Whether ``target`` is the file that a job put there and noted in ``claim``."""
    try:
        return target.exists() and claim.exists() and json.loads(claim.read_bytes()) == identity(target)
    except (ValueError, RecursionError):  # damaged: it proves nothing
        return False


def is_taken(target: Path) -> bool:
    """Whether something is there that writing to ``target`` would replace; an empty folder is nothing."""
    return target.exists() and not (target.is_dir() and not any(target.iterdir()))


def can_encode(codec: str, pix_fmt: str) -> bool:
    """Whether the encoder of ``codec``, as FFmpeg was built, takes ``pix_fmt``."""
    return pix_fmt in [one.name for one in av.Codec(ENCODERS[codec], "w").video_formats or ()]


def identity(path: Path) -> list[int]:
    """Of a file, what renaming does not change."""
    state = path.stat()
    return [state.st_ino, state.st_size, state.st_mtime_ns]


def _join(parts: Sequence[Path], path: Path, form: str, encoding: Encoding, sound: Sound | None) -> None:
    options = {"movflags": "+faststart"} if form in ("mp4", "mov") else {}
    delay = max(_reordering(part, encoding.rate) for part in parts)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(av.open(file_url(path), "w", format=form, options=options))
        first = stack.enter_context(av.open(file_url(parts[0])))
        video = out.add_stream_from_template(first.streams.video[0])
        video.time_base = 1 / encoding.rate
        streams = [_video_packets(parts, video, encoding.rate, delay)]
        if sound:
            source = stack.enter_context(av.open(file_url(sound.index.path)))
            describe(source, out, sound)
            if (code := time_code(source)) and keeps_time_code(sound, encoding.rate):
                video.metadata["timecode"] = code
            if sound.is_heard:
                streams.append(add_sound(source, out, sound, form))
            beside = stack.enter_context(av.open(file_url(sound.index.path)))  # read at another pace
            streams.append(add_subtitles(beside, out, sound, form))
        for _, packet in heapq.merge(*streams, key=lambda item: item[0]):
            out.mux(packet)


def _reordering(part: Path, rate: Fraction) -> int:
    """By how many frames the decoding order runs ahead of the display order."""
    with av.open(file_url(part)) as container:
        stream = container.streams.video[0]
        shown = (_frame_number(packet, rate) for packet in container.demux(stream) if packet.size)
        return max((order - number for order, number in enumerate(shown)), default=0)


def _frame_number(packet: Any, rate: Fraction) -> int:
    return round(packet.pts * packet.time_base * rate)


def _video_packets(parts: Sequence[Path], stream: Any, rate: Fraction, delay: int) -> Iterator[tuple[float, av.Packet]]:
    order = begin = 0
    for part in parts:
        with av.open(file_url(part)) as container:
            count = 0
            for packet in container.demux(container.streams.video[0]):
                if not packet.size:
                    continue
                number = begin + _frame_number(packet, rate)
                packet.time_base, packet.pts, packet.dts, packet.duration = 1 / rate, number, order - delay, 1
                packet.stream = stream
                yield float((order - delay) / rate), packet
                order += 1
                count += 1
            begin += count


def _into_place(temporary: Path, path: Path) -> None:
    if temporary.is_dir():
        put_folder(temporary, path)
        return
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
