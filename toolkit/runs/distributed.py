"""What the ranks of one job agree on. With a single process every call is free and torch.distributed is not touched."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from toolkit.errors import JobError, UserError

T = TypeVar("T")


def world_size() -> int:
    """Number of processes of this job (set by torchrun or accelerate launch)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number; 0 alone writes records."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def start() -> None:
    """Join the process group of the launcher. NCCL for CUDA tensors, gloo for the rest."""
    if world_size() == 1:
        return
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=1))  # the others wait while rank 0 samples and measures


def stop() -> None:
    """Leave the process group."""
    if world_size() > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def from_rank_zero(make: Callable[[], T]) -> T:
    """The value of ``make()`` on rank 0, on every rank; its UserError or JobError is raised on every rank too."""
    if world_size() == 1:
        return make()
    import torch.distributed as dist

    box: list[object] = [None, None]
    if rank() == 0:
        try:
            box[0] = make()
        except (UserError, JobError) as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[1], Exception):
        raise box[1]
    return box[0]  # type: ignore[return-value]


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.barrier()


def gather(value: T) -> list[T]:
    """The values of all ranks, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]
