"""One clip from its frames to its file: parts in order, each final once it is there; then joined with the sound."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.data.video.reader import VideoIndex
from toolkit.data.video.write import Encoding, write_part
from toolkit.errors import JobError
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
    paths = [folder / f"part_{part.number:06d}.mp4" for part in parts]
    for shot, group in itertools.groupby(zip(parts, paths, strict=True), key=lambda item: item[0].shot):
        missing = [(part, path) for part, path in group if not path.exists()]
        if not missing:
            continue
        frames = backend.frames(shot, missing[0][0].start)
        for part, path in missing:
            write_part(path, _taken(frames, part, bar), encoding)
            backend.stored(shot, part.stop)
    return paths


def _taken(frames: Iterator[np.ndarray], part: Part, bar: progress.Bar | None) -> Iterator[np.ndarray]:
    """The frames of one part, counted. Raises JobError when there are fewer."""
    for number in range(part.start, part.stop):
        frame = next(frames, None)
        if frame is None:
            raise JobError(f"part {part.number}: the backend ended after {number} of {part.stop} frames of its shot")
        yield frame
        if bar:
            bar.advance(part.shot.first + number + 1)


def keep_index(path: Path, make: object) -> tuple[VideoIndex, list[int]]:
    """The clip's index and cuts, from ``path`` where a former attempt left them, else from ``make()``."""
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        return VideoIndex.from_json(stored["index"]), list(stored["cuts"])
    index, cuts = make()  # type: ignore[operator]
    write_json(path, {"index": index.to_json(), "cuts": cuts})
    return index, cuts
