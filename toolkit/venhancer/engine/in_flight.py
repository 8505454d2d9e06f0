"""What an enhancement has in flight, on disk: latents of every frame that is begun and not yet handed out.

One operation is one window at one step. It reads latents of the step before and writes those of the step after into the
other of two files, so it can be repeated after a crash at any moment without harm: a killed job goes on after its last
finished operation and gives the same frames, bit for bit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toolkit.errors import JobError, UserError
from toolkit.plain_files import read_object
from toolkit.runs.files import write_json
from toolkit.runs.seeds import generator
from toolkit.venhancer.engine.frame_store import FrameStore
from toolkit.venhancer.engine.windows import Windows
from toolkit.venhancer.model.samplers import Evaluation

log = logging.getLogger("toolkit")

NOISE_ROWS = 16  # noise is drawn for blocks of so many latent rows, whatever the tiles and windows are


@dataclass(frozen=True)
class Geometry:
    """Sizes of one enhancement: of a latent (rows and columns, padding included), and of what is in flight."""

    channels: int
    rows: int
    columns: int
    in_flight: int
    window_frames: int
    source_height: int
    source_width: int
    frame_factor: int

    @property
    def keys_in_flight(self) -> int:
        return self.in_flight // self.frame_factor + 2


class Flight:
    """The files of one enhancement in ``folder``, and how far it has come.

    Attributes:
        done: operations finished. keys_read: key frames taken from the source. delivered: output frames handed out.
    """

    def __init__(self, folder: Path, geometry: Geometry, fingerprint: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.geometry, self.fingerprint = folder, geometry, fingerprint
        self.done = self.keys_read = self.delivered = 0
        self._load()
        self._check_files()
        stores = {
            name: FrameStore(folder / name, *shape, dtype=dtype) for name, (shape, dtype) in _files(geometry).items()
        }
        self.latents = (stores["latents0"], stores["latents1"])  # by the parity of the step
        self.memory = (stores["memory0"], stores["memory1"])
        self.shared = stores["shared"]  # x0 so far of the frames that the next window covers too
        self.window = stores["window"]  # x0 of the window at work
        self.hints, self.source = stores["hints"], stores["source"]

    def canvas(self, frames: int, factor: int) -> FrameStore:
        """Room for decoded pictures, ``factor`` pixels per latent."""
        return FrameStore(self.folder / "canvas", *_canvas(self.geometry, frames, factor))

    @staticmethod
    def size(geometry: Geometry, group: int, factor: int) -> int:
        """Bytes on disk, the canvas for ``group`` frames included."""
        files = [*_files(geometry).values(), (_canvas(geometry, group, factor), "float32")]
        return sum(_num_bytes(shape, dtype) for shape, dtype in files)

    def save(self) -> None:
        """Remember how far this has come; whole or not at all."""
        write_json(
            self.folder / "state.json",
            {
                "fingerprint": self.fingerprint,
                "done": self.done,
                "keys_read": self.keys_read,
                "delivered": self.delivered,
            },
        )

    def _load(self) -> None:
        path = self.folder / "state.json"
        if not path.exists():
            return
        try:
            state = read_object(path, fingerprint=str, done=int, keys_read=int, delivered=int)
            fingerprint, *numbers = (state[key] for key in ("fingerprint", "done", "keys_read", "delivered"))
        except ValueError as error:
            raise JobError(f"{path}: damaged ({error}); remove {self.folder} to start again") from None
        if len(fingerprint) < len(self.fingerprint):  # of a version that named the settings otherwise
            log.info("%s: begun by an earlier version; this shot starts again", self.folder)
            return
        if fingerprint != self.fingerprint:
            raise UserError(f"{self.folder}: holds another enhancement in progress (other settings, model or source)")
        self.done, self.keys_read, self.delivered = numbers

    def _check_files(self) -> None:
        """Start again where a file is gone that the work so far lies in: a new one would be all zeros."""
        sizes = {name: _num_bytes(*one) for name, one in _files(self.geometry).items()}
        paths = {name: self.folder / name for name in sizes}
        lost = [name for name, path in paths.items() if not path.is_file() or path.stat().st_size != sizes[name]]
        if self.done and lost:
            log.warning("%s: %s is gone or damaged; this shot starts again", self.folder, lost[0])
            self.done = self.keys_read = self.delivered = 0

    def key_frame(self, key: int) -> np.ndarray:
        """uint8 (h, w, 3) of a source frame that is still in flight."""
        return self.source.read([key])[0].permute(1, 2, 0).numpy()

    def keep_key_frame(self, key: int, frame: np.ndarray) -> None:
        """Store a source frame, uint8 (h, w, 3)."""
        self.source.write([key], torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None])

    def bands(self) -> Iterator[tuple[int, int]]:
        """Row blocks of a latent: what is computed at once of one frame."""
        for start in range(0, self.geometry.rows, NOISE_ROWS):
            yield start, min(start + NOISE_ROWS, self.geometry.rows)

    def noise(self, seed: int, purpose: str, frame: int, rows: tuple[int, int]) -> Tensor:
        """Unit noise (1, C, rows, columns) of one block of one frame, a pure function of its arguments."""
        return self.noise_of(self.geometry, seed, purpose, frame, rows)

    @staticmethod
    def noise_of(g: Geometry, seed: int, purpose: str, frame: int, rows: tuple[int, int]) -> Tensor:
        drawn = generator(seed, purpose, frame, rows[0])
        return torch.randn(1, g.channels, rows[1] - rows[0], g.columns, generator=drawn)

    def settle(
        self,
        windows: Windows,
        index: int,
        step: int,
        evaluation: Evaluation,
        noise: Callable[[int, tuple[int, int]], Tensor],
    ) -> None:
        """Blend the x0 in ``self.window`` with its neighbour's, and take the settled frames one step further."""
        before, after = self.latents[step % 2], self.latents[(step + 1) % 2]
        remembered, memory = self.memory[(step - 1) % 2], self.memory[step % 2]
        shared_from, shared_until = windows.overlap(index)
        first, last = windows.settled(index)
        for frame in range(first, last):
            for rows in self.bands():
                x0 = self.window.read([frame], rows)
                if shared_from <= frame < shared_until:
                    x0 = torch.lerp(self.shared.read([frame], rows), x0, windows.weight(index, frame))
                old = remembered.read([frame], rows) if evaluation.recall else None
                fresh = noise(frame, rows) if evaluation.noise else None
                z, kept = evaluation.advance(before.read([frame], rows), x0, old, fresh)
                after.write([frame], z, rows)
                if evaluation.memory_z or evaluation.memory_x0:
                    memory.write([frame], kept, rows)
        for frame in range(last, windows.spans[index][1]):
            for rows in self.bands():
                self.shared.write([frame], self.window.read([frame], rows), rows)


def _files(g: Geometry) -> dict[str, tuple[tuple[int, int, int, int], str]]:
    """Name -> shape (frames, C, H, W) and type of every file but the canvas."""
    latent = (g.channels, g.rows, g.columns)
    whole = ("latents0", "latents1", "memory0", "memory1", "shared")
    files = dict.fromkeys(whole, ((g.in_flight, *latent), "float32"))
    files |= {"window": ((g.window_frames, *latent), "float32"), "hints": ((g.keys_in_flight, *latent), "float32")}
    return files | {"source": ((g.keys_in_flight, 3, g.source_height, g.source_width), "uint8")}


def _num_bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _canvas(g: Geometry, frames: int, factor: int) -> tuple[int, int, int, int]:
    return frames, 3, g.rows * factor, g.columns * factor
