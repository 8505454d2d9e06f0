"""Samples of a run as they are drawn, batch by batch, so that an interrupted run continues with the next batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from toolkit.runs.files import write_atomic


@dataclass(frozen=True)
class Batch:
    """images: uint8 (n, C, H, W), or float32 points (n, d). seconds: of the whole batch. calls: per image."""

    images: Tensor
    seconds: float
    calls: float


class SampleStore:
    """The batches of one column and sampling seed: a file each, on a fixed grid of ``batch_size``."""

    def __init__(self, folder: Path, num: int, batch_size: int) -> None:
        self.folder, self.num, self.batch_size = folder / f"{num}_by_{batch_size}", num, batch_size

    def missing(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of every batch that has no whole file yet."""
        for start in range(0, self.num, self.batch_size):
            if self._read(start) is None:
                yield start, min(self.num, start + self.batch_size)

    def write(self, start: int, images: Tensor, seconds: float, calls: float) -> None:
        """Store one batch: ``images`` float32 in [-1, 1] are kept as 8-bit pictures, points as they are."""
        kept = (to_bytes(images) if images.dim() == 4 else images).contiguous()
        metadata = {"seconds": json.dumps(seconds), "calls": json.dumps(calls)}
        write_atomic(self.folder / f"{start:08d}.safetensors", save({"images": kept}, metadata=metadata))

    def read(self) -> Batch:
        """All batches as one."""
        batches = [self._read(start) for start in range(0, self.num, self.batch_size)]
        found = [batch for batch in batches if batch is not None]
        assert len(found) == len(batches), f"{self.folder} is not complete"
        images = torch.cat([batch.images for batch in found])
        return Batch(images, sum(batch.seconds for batch in found), max(batch.calls for batch in found))

    def _read(self, start: int) -> Batch | None:
        path = self.folder / f"{start:08d}.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                return Batch(file.get_tensor("images"), json.loads(metadata["seconds"]), json.loads(metadata["calls"]))
        except (SafetensorError, TypeError, LookupError, ValueError):  # a damaged file is drawn again
            return None


def clear(folder: Path) -> None:
    """Remove the batches of a finished run."""
    shutil.rmtree(folder, ignore_errors=True)


def to_bytes(images: Tensor) -> Tensor:
    """float32 in [-1, 1] -> uint8, as saving a picture does."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_floats(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]; points stay as they are."""
    return images.float().div_(127.5).sub_(1) if images.dtype == torch.uint8 else images
