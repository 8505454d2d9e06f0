"""Frames on disk: a ring of float32 frames that is read and changed piece by piece.

What an enhancement has in flight lies in files like these instead of in memory. A file is mapped for one access and let
go, so that its pages never count as the process's own; the operating system keeps as many of them at hand as it can. A
killed process loses nothing that was written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toolkit.errors import JobError


class FrameStore:
    """``capacity`` slots of (C, H, W) float32; frame n lies in slot n % capacity."""

    def __init__(self, path: Path, capacity: int, channels: int, height: int, width: int, dtype: str = "float32"):
        self.path, self.shape, self.dtype = path, (capacity, channels, height, width), np.dtype(dtype)
        size = self.num_bytes
        if not path.exists() or path.stat().st_size != size:
            _allocate(path, size)

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(
        self, frames: Iterable[int], rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> Tensor:
        """[N, C, h, w] of those frames."""
        mapped = self._map("r")
        parts = [mapped[(frame % self.shape[0], *self._where(rows, columns))] for frame in frames]
        return torch.from_numpy(np.stack(parts))

    def write(
        self,
        frames: Iterable[int],
        values: Tensor,
        rows: tuple[int, int] | None = None,
        columns: tuple[int, int] | None = None,
        add: bool = False,
    ) -> None:
        """Set (or ``add`` to) a piece of those frames; values (N, C, h, w)."""
        mapped, place = self._map("r+"), self._where(rows, columns)
        for frame, value in zip(frames, values.detach().cpu().numpy(), strict=True):
            target = mapped[(frame % self.shape[0], *place)]
            np.add(target, value, out=target) if add else np.copyto(target, value)

    def clear(self, frames: Iterable[int]) -> None:
        """Set whole frames to zero."""
        mapped = self._map("r+")
        for frame in frames:
            mapped[frame % self.shape[0]] = 0

    def _map(self, mode: str) -> np.ndarray:
        return np.memmap(self.path, dtype=self.dtype, mode=mode, shape=self.shape)  # type: ignore[call-overload]

    @staticmethod
    def _where(rows: tuple[int, int] | None, columns: tuple[int, int] | None) -> tuple[slice, slice, slice]:
        return slice(None), slice(*(rows or (None,))), slice(*(columns or (None,)))


def _allocate(path: Path, size: int) -> None:
    """A file of zeros that surely has its place: writing to a mapped file on a full disk would kill the process.

    Raises JobError where the disk is full.
    """
    try:
        with open(path, "wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise JobError(f"{path}: {size / 2**20:.0f} MiB for what is in flight: {error.strerror}") from None
