"""The ways of making a shot's frames, each ``frames(shot, start)``: VEnhancer's network, key frames enlarged one by
one, motion compensation, plain blending.

All give uint8 RGB (height, width, 3) of the output's size, from any output frame on, so that a killed job goes on where
it stopped.
"""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from toolkit.data.video.reader import VideoReader
from toolkit.data.video.together import in_order
from toolkit.runs.files import write_atomic
from toolkit.venhancer.clips.between import Between, make_between
from toolkit.venhancer.clips.classic import blend_tasks, motion_frames, motion_tasks, resize, up_to_size
from toolkit.venhancer.clips.colour import fix_colour
from toolkit.venhancer.clips.timeline import Shot
from toolkit.venhancer.config import Classic, EnhanceVideo
from toolkit.venhancer.keys import Upscaler
from toolkit.venhancer.keys.tiled import enlarge_to

if TYPE_CHECKING:
    from toolkit.venhancer.engine.enhancer import Enhancer


log = logging.getLogger("toolkit")


class KeyFrames:
    """The key frames of a shot, read from the clip on demand: what ``Enhancer`` calls a FrameSource."""

    def __init__(self, reader: VideoReader, shot: Shot):
        self.reader, self.keys = reader, shot.keys
        self.num_frames, self.height, self.width = len(shot.keys), reader.height, reader.width

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Keys ``start``, start + 1, ... to the end."""
        wanted = self.keys[start:]
        if not wanted:
            return
        position = 0
        for number, frame in enumerate(self.reader.frames(wanted[0]), wanted[0]):
            if number == wanted[position]:
                yield frame
                position += 1
                if position == len(wanted):
                    return


class Backend(Protocol):
    """Makes the frames of one clip at one size."""

    def frames(self, shot: Shot, start: int) -> Iterator[np.ndarray]:
        """Output frames ``start``, start + 1, ... of ``shot``, counted from its own first."""
        ...

    def stored(self, shot: Shot, stop: int) -> None:
        """The shot's output frames before ``stop`` are safe; what only they need may go."""
        ...


class ClassicBackend:
    """Motion compensation at the input's size, then Lanczos; with ``blend`` the baseline: linear, then bicubic.

    On a CPU as many frames are made at once as torch has threads.
    """

    def __init__(
        self, reader: VideoReader, width: int, height: int, settings: Classic, device: Any, blend: bool = False
    ):
        self.reader, self.width, self.height = reader, width, height
        self.settings, self.device, self.blend = settings, device, blend

    def frames(self, shot: Shot, start: int) -> Iterator[np.ndarray]:
        """As in :class:`Backend`."""
        keys = KeyFrames(self.reader, shot)
        if self.blend:
            tasks = up_to_size(blend_tasks(keys, shot.positions, start), self.width, self.height, "bicubic")
        else:
            moved = motion_tasks(keys, shot.positions, start, self.settings, self.device)
            tasks = up_to_size(moved, self.width, self.height, "lanczos")
        on_cpu = torch.device(self.device).type == "cpu"
        return in_order(tasks, torch.get_num_threads() if on_cpu else 1)

    def stored(self, shot: Shot, stop: int) -> None:
        """Nothing is kept."""


class KeysBackend:
    """Key frames enlarged one by one, then what is between them, at the output's size.

    upscaler, tile: as ``enlarge_to`` takes them.
    """

    def __init__(
        self, reader: VideoReader, size: tuple[int, int], upscaler: Upscaler, tile: tuple[int, int], between: Between
    ):
        self.reader, self.size, self.upscaler, self.tile, self.between = reader, size, upscaler, tile, between

    def frames(self, shot: Shot, start: int) -> Iterator[np.ndarray]:
        """As in :class:`Backend`."""
        return self.between(_Enlarged(self, shot), shot.positions, start)

    def stored(self, shot: Shot, stop: int) -> None:
        """Nothing is kept."""


class _Enlarged:
    """The key frames of one shot at the output's size."""

    def __init__(self, backend: KeysBackend, shot: Shot):
        self.backend, self.keys = backend, KeyFrames(backend.reader, shot)

    def frames(self, start: int) -> Iterator[np.ndarray]:
        """Keys ``start``, start + 1, ..."""
        backend = self.backend
        for frame in self.keys.frames(start):
            yield enlarge_to(backend.upscaler, frame, *backend.size, backend.tile)


class GenerativeBackend:
    """The network on a grid of ``factor`` steps between keys, its colours fixed, then the output's own times.

    What the network finished lies on disk (``work_dir``) until its part of the video is in place.
    """

    def __init__(
        self,
        reader: VideoReader,
        enhancer: Enhancer,
        config: EnhanceVideo,
        size: tuple[int, int],
        factor: int,
        device: Any,
        work_dir: Path,
        progress: Callable[[Any], None] | None = None,
    ):
        self.reader, self.enhancer, self.config = reader, enhancer, config
        self.width, self.height = size
        self.factor, self.device, self.work_dir, self.progress = factor, device, work_dir, progress

    def frames(self, shot: Shot, start: int) -> Iterator[np.ndarray]:
        """As in :class:`Backend`."""
        grid = _Grid(self, shot)
        between = make_between(self.config.between, self.config.classic, self.config.windows, self.device)
        return between(grid, self.places(shot), start)

    def places(self, shot: Shot) -> list[Fraction]:
        """The shot's output frames on the grid."""
        return [position * self.factor for position in shot.positions]

    def stored(self, shot: Shot, stop: int) -> None:
        """Forget grid frames that only output frames before ``stop`` need; all of the shot at its end."""
        if stop == len(shot.positions):
            shutil.rmtree(self.folder(shot), ignore_errors=True)
            return
        needed = int(shot.positions[stop] * self.factor)
        for path, first, count in _chunks(self.folder(shot)):
            if first + count <= needed:
                path.unlink()

    def folder(self, shot: Shot) -> Path:
        """Where the shot's unfinished work lies."""
        return self.work_dir / f"shot_{shot.first:08d}"


class _Grid:
    """The network's frames of one shot, from disk as far as they are there, then from the network."""

    def __init__(self, backend: GenerativeBackend, shot: Shot):
        self.backend, self.shot = backend, shot
        self.keys = KeyFrames(backend.reader, shot)

    def frames(self, start: int) -> Iterator[np.ndarray]:
        """Grid frames ``start``, start + 1, ..."""
        have = start
        for path, first, count in _chunks(self.backend.folder(self.shot)):
            if first <= have < first + count:
                yield from np.load(path, allow_pickle=False)[have - first :]
                have = first + count
        for first, frames in self._made():
            if first > have:  # it was forgotten: the frames after it were stored before the part that is made now
                log.warning("%s: a part of it is gone; this shot starts again", self.backend.folder(self.shot))
                shutil.rmtree(self.backend.folder(self.shot))
                yield from self.frames(have)
                return
            if first + len(frames) > have:
                yield from frames[max(0, have - first) :]
                have = first + len(frames)

    def _made(self) -> Iterator[tuple[int, np.ndarray]]:
        """Chunks of the network, each on disk before the next is asked for."""
        backend = self.backend
        folder = backend.folder(self.shot)
        made = backend.enhancer.enhance(self.keys, folder / "network", progress=backend.progress)
        for chunk in made:
            frames = self._coloured(chunk.start, chunk.frames)
            buffer = io.BytesIO()
            np.save(buffer, frames)
            write_atomic(folder / f"chunk_{chunk.start:08d}_{len(frames):04d}.npy", buffer.getvalue())
            yield chunk.start, frames

    def _coloured(self, start: int, frames: np.ndarray) -> np.ndarray:
        backend, config = self.backend, self.backend.config
        if config.color_fix == "none":
            return frames
        last = self.keys.num_frames - 1
        places = [min(Fraction(number, backend.factor), Fraction(last)) for number in range(start, start + len(frames))]
        guides = motion_frames(self.keys, places, 0, config.classic, backend.device)
        size = backend.width, backend.height
        fixed = [
            fix_colour(frame, resize(guide, *size, "bicubic"), config.color_fix, backend.device)
            for frame, guide in zip(frames, guides, strict=True)
        ]
        return np.stack(fixed)


def _chunks(folder: Path) -> list[tuple[Path, int, int]]:
    """(file, first grid frame, how many), in order."""
    found = []
    for path in sorted(folder.glob("chunk_*.npy")):
        _, first, count = path.stem.split("_")
        found.append((path, int(first), int(count)))
    return found
