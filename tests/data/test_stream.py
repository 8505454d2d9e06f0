"""The stream's position is a pure function of the step, for any ranks, workers and epochs."""

import threading
from itertools import islice

import pytest
import torch

from toolkit.data import batches
from toolkit.data.sets import MemorySplit
from toolkit.errors import UserError


@pytest.fixture
def split() -> MemorySplit:
    return MemorySplit(torch.arange(10.0)[:, None], torch.arange(10).numpy())


def take(iterator, number: int) -> list[torch.Tensor]:
    return [x for x, _ in islice(iterator, number)]


@pytest.mark.parametrize("batch_size", [4, 10, 23])
def test_starting_at_a_step_continues_exactly(split, batch_size):
    whole = take(batches(split, batch_size, seed=3), 12)
    for start in (0, 1, 5, 11):
        again = take(batches(split, batch_size, seed=3, start_step=start), 12 - start)
        assert all(torch.equal(a, b) for a, b in zip(whole[start:], again, strict=True))


def test_every_epoch_is_a_new_permutation(split):
    stream = torch.cat(take(batches(split, 4, seed=0), 10)).view(4, 10)
    assert all(torch.equal(epoch.sort().values, torch.arange(10.0)) for epoch in stream)
    assert not torch.equal(stream[0], stream[1])
    assert not torch.equal(stream, torch.cat(take(batches(split, 4, seed=1), 10)).view(4, 10))


def test_ranks_partition_each_batch(split):
    whole = take(batches(split, 6, seed=1), 8)
    ranks = [take(batches(split, 6, seed=1, rank=rank, world_size=3), 8) for rank in range(3)]
    assert all(torch.equal(torch.cat(parts), x) for x, *parts in zip(whole, *ranks, strict=True))
    with pytest.raises(UserError, match="batch_size=4: must be a multiple of the 3"):
        batches(split, 4, seed=1, world_size=3)


def test_workers_and_flips_give_the_same_stream():
    images = MemorySplit(
        torch.randint(0, 256, (9, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    )
    plain = take(batches(images, 4, seed=2, flip=True), 20)
    threads = take(batches(images, 4, seed=2, flip=True, num_workers=3), 20)
    halves = [take(batches(images, 4, seed=2, flip=True, rank=r, world_size=2, start_step=7), 13) for r in (0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(plain, threads, strict=True))
    assert all(torch.equal(a, torch.cat(b)) for a, *b in zip(plain[7:], *halves, strict=True))


def test_workers_read_at_the_same_time(split):
    both = threading.Barrier(2)

    class Together(MemorySplit):
        def batch(self, indices):
            both.wait(timeout=10)  # until another worker reads too
            return super().batch(indices)

    assert len(take(batches(Together(split.values), 2, seed=0, num_workers=2), 1)) == 1


def test_flips_mirror_about_half_of_the_images():
    ramp = torch.arange(4, dtype=torch.uint8).expand(64, 1, 4, 4)
    (x,) = take(batches(MemorySplit(ramp), 64, seed=0, flip=True), 1)
    mirrored = x[:, 0, 0, 0] > x[:, 0, 0, -1]
    assert 16 < mirrored.sum() < 48
    assert torch.equal(x[mirrored].flip(-1)[0], x[~mirrored][0])


def test_every_step_mirrors_other_places_of_the_batch():
    ramp = torch.arange(4, dtype=torch.uint8).expand(64, 1, 4, 4)
    steps = take(batches(MemorySplit(ramp), 64, seed=0, flip=True), 3)
    mirrored = [tuple((x[:, 0, 0, 0] > x[:, 0, 0, -1]).tolist()) for x in steps]
    assert len(set(mirrored)) == 3


def test_points_are_not_flipped(split):
    with pytest.raises(UserError, match="only images can be mirrored"):
        batches(split, 2, seed=0, flip=True)


def test_an_error_in_a_worker_reaches_the_reader(split):
    class Broken(MemorySplit):
        def batch(self, indices):
            raise UserError("a bad file")

    with pytest.raises(UserError, match="a bad file"):
        next(batches(Broken(split.values), 2, seed=0, num_workers=2))
