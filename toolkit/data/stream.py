"""Endless batches in which the position is a pure function of the step, so a resumed run needs no loader state."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from toolkit.data.sets import Batch, Split
from toolkit.errors import UserError
from toolkit.runs.seeds import generator


def batches(
    split: Split,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    flip: bool = False,
) -> Iterator[Batch]:
    """Yield (x, labels) for steps ``start_step``, ``start_step + 1``, ... without end.

    ``batch_size`` counts the items of all ranks together; each rank gets ``batch_size / world_size`` of its own.
    Epochs are seeded permutations laid end to end (a batch may span two), so that
    ``batches(..., start_step=k)`` goes on exactly where a fresh iterator is after k steps. ``flip`` mirrors each image
    left to right with probability 1/2, drawn for (seed, step). ``num_workers`` threads read ahead; the stream is the
    same for any number of them. Raises UserError when ``batch_size`` is not a multiple of ``world_size`` or points
    are to be flipped.
    """
    if flip and len(split.shape) != 3:
        raise UserError("data.flip=true: only images can be mirrored, not points")
    if batch_size % world_size:
        raise UserError(f"batch_size={batch_size}: must be a multiple of the {world_size} processes")
    return _stream(_Reader(split, batch_size, seed, rank, world_size, flip), start_step, num_workers)


def _stream(reader: _Reader, start_step: int, num_workers: int) -> Iterator[Batch]:
    steps = iter(range(start_step, 2**62))
    if num_workers == 0:
        for step in steps:
            yield reader.read(step, reader.indices(step))
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="data")
    pending: deque[Future[Batch]] = deque()
    try:
        for step in steps:
            pending.append(pool.submit(reader.read, step, reader.indices(step)))
            if len(pending) > 2 * num_workers:
                yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Reader:
    def __init__(self, split: Split, batch_size: int, seed: int, rank: int, world_size: int, flip: bool):
        self.split, self.batch_size, self.seed, self.flip = split, batch_size, seed, flip
        each = batch_size // world_size
        self.own = slice(rank * each, (rank + 1) * each)
        self.epoch, self.order = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """This rank's items of ``step``: its slice of the endless sequence of permutations."""
        start = step * self.batch_size + self.own.start
        stop = step * self.batch_size + self.own.stop
        num_items, pieces = len(self.split), []
        while start < stop:
            epoch, offset = divmod(start, num_items)
            end = min(offset + stop - start, num_items)
            pieces.append(self._permutation(epoch)[offset:end])
            start += end - offset
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self.epoch:
            self.order = torch.randperm(len(self.split), generator=generator(self.seed, "order", epoch))
            self.epoch = epoch
        return self.order

    def read(self, step: int, indices: Tensor) -> Batch:
        x, labels = self.split.batch(indices)
        if self.flip:
            coins = torch.rand(self.batch_size, generator=generator(self.seed, "flip", step))[self.own] < 0.5
            x = torch.where(coins.view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)
        return x, labels
