"""One clip from its frames to its file: parts in order, each final once it is there; then joined with the sound."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from toolkit.data.video.pictures import remove
from toolkit.data.video.reader import VideoIndex, VideoReader
from toolkit.data.video.scan import index_video
from toolkit.data.video.write import DEEP_FORMATS, Encoding, write_part
from toolkit.errors import JobError, UserError, brief
from toolkit.plain_files import read_object
from toolkit.runs import progress
from toolkit.runs.files import write_json
from toolkit.venhancer.clips.backends import Backend
from toolkit.venhancer.clips.timeline import Shot, Timeline


@dataclass(frozen=True)
class Part:
    """Output frames ``start`` to ``stop`` of a shot, counted from its first; ``number`` is unique in the clip."""

    number: int
    shot: Shot
    start: int
    stop: int


def plan_parts(timeline: Timeline, part_frames: int) -> list[Part]:
    """Parts of at most ``part_frames`` frames that do not reach across cuts."""
    numbers = itertools.count()
    return [
        Part(next(numbers), shot, start, min(start + part_frames, len(shot.positions)))
        for shot in timeline.shots
        for start in range(0, len(shot.positions), part_frames)
    ]


def write_parts(
    backend: Backend, timeline: Timeline, encoding: Encoding, part_frames: int, folder: Path, bar: progress.Bar | None
) -> list[Path]:
    """Make every part that is not there yet and return all of them; ``bar`` counts output frames."""
    parts = plan_parts(timeline, part_frames)
    name = hashlib.sha256(repr(encoding).encode()).hexdigest()[:8]
    suffix = "" if encoding.codec == "png" else ".mp4"  # of a folder of pictures
    paths = [folder / f"part_{part.number:06d}_{name}{suffix}" for part in parts]
    _encode_again(folder, paths, encoding)
    for shot, group in itertools.groupby(zip(parts, paths, strict=True), key=lambda item: item[0].shot):
        frames = None
        for part, path in group:
            if path.exists():
                frames = None  # the next one that is not there begins elsewhere
                continue
            frames = frames or backend.frames(shot, part.start)
            write_part(path, _taken(frames, part, bar), encoding)
            backend.stored(shot, part.stop)
    return paths


def _encode_again(folder: Path, paths: list[Path], encoding: Encoding) -> None:
    """Bring parts that are there in another encoding into the one that is asked for now."""
    others: dict[str, list[Path]] = {}
    for other in sorted(folder.glob("part_*")):
        others.setdefault(_number_of(other), []).append(other)
    for path in paths:
        found = others.get(_number_of(path), [])
        if found and path not in found:
            made = Written(found[0], encoding)
            write_part(path, made.reader.frames(), encoding)
            for other in found:
                remove(other)


def _number_of(path: Path) -> str:
    """``000012`` of part_000012_ENCODING.mp4, and of an earlier version's part_000012.mp4."""
    found = re.match(r"part_(\d+)", path.name)
    return found[1] if found else ""


class Written:
    """A backend of frames that were made and written before, to be encoded otherwise.

    Raises UserError where they have another size.
    """

    def __init__(self, path: Path, encoding: Encoding):
        index = index_video(path, key="output")
        if (index.width, index.height) != (encoding.width, encoding.height):
            made, asked = f"{index.width}x{index.height}", f"{encoding.width}x{encoding.height}"
            raise UserError(f"encode.pix_fmt: the frames were made as {made}, {asked} needs a new run (hydra.run.dir)")
        self.reader = VideoReader(replace(index, deep=encoding.pix_fmt in DEEP_FORMATS))

    def frames(self, shot: Shot, start: int) -> Iterator[np.ndarray]:
        """As in ``Backend``."""
        return self.reader.frames(shot.first + start)

    def stored(self, shot: Shot, stop: int) -> None:
        """Nothing is kept."""


def _taken(frames: Iterator[np.ndarray], part: Part, bar: progress.Bar | None) -> Iterator[np.ndarray]:
    """The frames of one part, counted. Raises JobError when there are fewer."""
    for number in range(part.start, part.stop):
        frame = next(frames, None)
        if frame is None:
            raise JobError(f"part {part.number}: the backend ended after {number} of {part.stop} frames of its shot")
        yield frame
        if bar:
            bar.show(frame)
            bar.advance(part.shot.first + number + 1)


def keep_index(path: Path, make: object) -> tuple[VideoIndex, list[int]]:
    """The clip's index and cuts, from ``path`` where a former attempt left them, else from ``make()``."""
    if path.exists():
        stored = read_object(path, index=dict, cuts=list)
        try:
            return VideoIndex.from_json(stored["index"]), stored["cuts"]
        except (TypeError, ValueError, KeyError, ArithmeticError) as error:
            raise UserError(f"{path}: damaged ({brief(error)}); remove it, and the clip is looked at again") from None
    index, cuts = make()  # type: ignore[operator]
    write_json(path, {"index": index.to_json(), "cuts": cuts})
    return index, cuts
