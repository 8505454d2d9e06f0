"""What the ranks of one job agree on. With a single process every call is free and torch.distributed is not touched.

Two waits are told apart. Within a step the ranks are minutes apart at most, and one that does not answer is lost. While
rank 0 samples and measures, the others may wait for days: every rank counts up in a store while it lives, and whoever
waits sees that.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from toolkit.errors import JobError, LostProcess, UserError

T = TypeVar("T")
TIMEOUT = "TOOLKIT_TIMEOUT_S"  # how long a rank waits for another one within a step; default _TIMEOUT_S
_TIMEOUT_S = 1800
OTHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # of mpirun, and of srun --mpi
_LONGEST_PAUSE_S = 0.5  # between two looks at the store
_BEAT_S = 1.0
_met = 0  # how often the ranks have met
_ended = threading.Event()
_heart: threading.Thread | None = None


def world_size() -> int:
    """Number of processes of this job (set by torchrun or accelerate launch); 1 where that is no number."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdecimal() else 1


def rank() -> int:
    """This process's number; 0 alone writes records."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def start() -> None:
    """Join the process group of the launcher. NCCL for CUDA tensors, gloo for the rest.

    Raises UserError where WORLD_SIZE is no number, or of several processes that are not told how to meet.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"WORLD_SIZE={text}: expected the number of processes; unset it, or start with torchrun")
    if world_size() == 1:
        _refuse_others()
        return
    if lacking := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise UserError(
            f"WORLD_SIZE={world_size()}: {lacking[0]} is not set beside it; start the processes with torchrun or "
            "accelerate launch, or unset WORLD_SIZE"
        )
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=_timeout_s()))
        global _heart
        _ended.clear()
        _heart = threading.Thread(target=_beat, daemon=True)
        _heart.start()


def _refuse_others() -> None:
    """Raises UserError for processes that another launcher started, which accelerate would look for in vain."""
    for name in OTHERS:
        if os.environ.get(name, "1") != "1":
            raise UserError(f"{name}={os.environ[name]}: processes of MPI are not joined; start them with torchrun")
    alone = "ACCELERATE_USE_CPU" in os.environ and "WORLD_SIZE" not in os.environ
    if alone and os.environ.get("MASTER_ADDR"):  # which it sets for several processes, also where it starts one
        raise UserError(
            "accelerate launch was asked for several processes and has started one, as it does without several GPUs; "
            "take --multi_gpu instead of --cpu (CPUs are used where there are no GPUs), or torchrun"
        )
    if "LOCAL_RANK" in os.environ and "WORLD_SIZE" not in os.environ:
        raise UserError(f"LOCAL_RANK={os.environ['LOCAL_RANK']}: is set without WORLD_SIZE; unset it, or use torchrun")


def repeated_by_srun() -> str:
    """What a task of srun says that is not its first and, without torchrun, runs the whole command once more; or ""."""
    task = os.environ.get("SLURM_PROCID") or "0"
    if world_size() > 1 or task == "0":
        return ""
    return f"task {task} of srun runs the whole command once more; for one job of all tasks: srun torchrun ..."


def _timeout_s() -> float:
    text = os.environ.get(TIMEOUT, str(_TIMEOUT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 10**6:
        raise UserError(f"{TIMEOUT}={text}: expected seconds, from 1 to a million")
    return seconds


def _store() -> Any:
    import torch.distributed as dist

    return dist.distributed_c10d._get_default_store()


def _beat() -> None:
    """Count up in the store while this process lives; end with it, or where the store cannot be reached any more."""
    store, key = _store(), f"toolkit/alive/{rank()}"
    with contextlib.suppress(RuntimeError):
        while not _ended.wait(_BEAT_S):
            store.add(key, 1)


def _meet() -> None:
    """Wait until every rank has come this far, however long it takes, as long as they live.

    Raises LostProcess where one that has not come has not been heard of for the timeout.
    """
    global _met
    _met += 1
    store, key, pause_s = _store(), f"toolkit/met/{_met}", 0.001
    heard = {
        number: (-1, time.monotonic()) for number in range(world_size()) if number != rank()
    }  # beats, and when they were last more
    come = store.add(key, 1)
    while come < world_size():
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        for number, (beats, when) in heard.items():
            now = store.add(f"toolkit/alive/{number}", 0)
            if now != beats:
                heard[number] = (now, time.monotonic())
            elif time.monotonic() - when > _timeout_s():
                raise LostProcess(_lost(f"did not answer for {_timeout_s():.0f} s ({TIMEOUT})", f"process {number}"))
        come = store.add(key, 0)


def _lost(how: str, who: str = "another process") -> str:
    return f"process {rank()}: {who} of this job {how}; the same command goes on from the checkpoint"


@contextlib.contextmanager
def losses_named() -> Iterator[None]:
    """Turn what torch raises where another rank is gone or silent into LostProcess, one line."""
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not _is_loss(error):
            raise
        silent = any(sign in str(error).lower() for sign in ("timed out", "timeout"))
        how = f"did not answer for {_timeout_s():.0f} s ({TIMEOUT})" if silent else "ended, or cannot be reached"
        raise LostProcess(_lost(how)) from error


def _is_loss(error: RuntimeError) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in ("gloo/", "NCCL", "ProcessGroup"))


def stop() -> None:
    """Leave the process group."""
    if world_size() > 1:
        import torch.distributed as dist

        _ended.set()
        if _heart is not None:
            _heart.join(_timeout_s())
        if dist.is_initialized():
            dist.destroy_process_group()


def from_rank_zero(make: Callable[[], T]) -> T:
    """The value of ``make()`` on rank 0, on every rank; its UserError or JobError is raised on every rank too."""
    if world_size() == 1:
        return make()
    import torch.distributed as dist

    _meet()
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

        _meet()
        dist.barrier()


def gather(value: T) -> list[T]:
    """The values of all ranks, in rank order, on every rank. They must be within one step of each other."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]
