"""Subtitles and time codes of a file, brought along with the pictures where the container takes them as they are."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from toolkit.data.video.reader import file_url, picture_stream
from toolkit.data.video.sound import Sound, describe_stream, name_of, takes


def beside_notes(sound: Sound, form: str, rate: Fraction) -> list[str]:
    """What stands beside the pictures of ``sound``'s file and is not carried into container ``form``, and why."""
    state = Path(sound.index.path).stat()
    notes = list(_subtitles(sound.index.path, form, state.st_size, state.st_mtime_ns)[1])
    with av.open(file_url(sound.index.path)) as source:
        if time_code(source) and not keeps_time_code(sound, rate):
            notes.append("its time code is left out: it counts frames of another rate or of the whole clip")
        shown = picture_stream(source, Path(sound.index.path))
        for stream in source.streams.video:
            if stream.disposition & av.stream.Disposition.attached_pic:
                notes.append("its cover is left out")
            elif stream is not shown:
                notes.append(f"pictures of stream {stream.index} ({name_of(stream)}) are left out: the first are made")
    return notes


@functools.lru_cache(maxsize=64)
def _subtitles(path: str, form: str, size_bytes: int, modified_ns: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Streams that container ``form`` takes, and notes on the others."""
    plan, notes = [], []
    with av.open(file_url(path)) as source:
        for stream in source.streams.subtitles:
            if stream.codec_context is not None and takes(form, stream):
                plan.append(stream.index)
            else:
                hint = "" if form == "matroska" else "; output=NAME.mkv takes most"
                what = f"subtitles of stream {stream.index} ({name_of(stream)})"
                notes.append(f"{what} are left out: the container does not take them{hint}")
    return tuple(plan), tuple(notes)


def add_subtitles(source: Any, out: Any, sound: Sound, form: str) -> Iterator[tuple[float, av.Packet]]:
    """Add the streams that ``out`` takes; yields (time in seconds, packet), those of what is shown."""
    state = Path(sound.index.path).stat()
    plan, _ = _subtitles(sound.index.path, form, state.st_size, state.st_mtime_ns)
    made = {}
    for index in plan:
        made[index] = out.add_stream_from_template(source.streams[index])
        describe_stream(source.streams[index], made[index])
    return _packets(source, sound, made)


def _packets(source: Any, sound: Sound, made: dict[int, Any]) -> Iterator[tuple[float, av.Packet]]:
    if not made:
        return
    for packet in source.demux([source.streams[index] for index in made]):
        if packet.pts is None or not packet.size:
            continue
        time_s = packet.pts * packet.time_base - sound.start_s
        if not 0 <= time_s < sound.index.duration_s:
            continue
        packet.pts = packet.dts = round(time_s / packet.time_base)
        packet.stream = made[packet.stream.index]
        yield float(time_s), packet


def time_code(source: Any) -> str | None:
    """The time code of the first frame, as cameras and editors write it (``01:00:00:00``)."""
    for tags in (source.metadata, *(stream.metadata for stream in (*source.streams.video, *source.streams.data))):
        for key, value in tags.items():
            if key.lower() == "timecode":
                return value
    return None


def keeps_time_code(sound: Sound, rate: Fraction) -> bool:
    """Whether frames of ``rate`` have the numbers that the input's have."""
    return sound.is_whole and rate == sound.index.rate
