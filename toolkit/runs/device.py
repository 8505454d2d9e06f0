"""Where a job computes: one Accelerator per job, built from its config."""

from __future__ import annotations

import ctypes
import functools
import logging
import platform
from typing import TYPE_CHECKING

from toolkit.errors import UserError, first_line
from toolkit.runs import threads
from toolkit.runs.distributed import world_size
from toolkit.runs.machine import cores
from toolkit.schema import Job

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from accelerate import Accelerator

    from toolkit.runs.record import Run

log = logging.getLogger("toolkit")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def accelerator_of(run: Run) -> Accelerator:
    """The Accelerator of a run, which notes its device and its threads in the record, so that a run that is taken up
    again computes with as many as before. Raises UserError as ``make_accelerator``."""
    accelerator = make_accelerator(run.config, run.record.get("job_number", 0))
    if accelerator.device.type == "cpu":
        _set_threads(run)
    run.record["device"] = str(accelerator.device)
    return accelerator


def _set_threads(run: Run) -> None:
    """``num_threads``, or as many as this run had, or what is free."""
    import torch

    default = _threads_of_torch()
    chosen = threads.choose()
    if run.config.num_threads:
        count = run.config.num_threads
    elif "num_threads" in run.record or run.record.get("stages"):  # older records do not say: it was torch's number
        count = run.record.get("num_threads", default)
    elif chosen:
        count, why = chosen
        if count < cores():
            log.info("num_threads=%d: %s", count, why)
    else:
        count = default
    torch.set_num_threads(count)
    run.record["num_threads"] = count


@functools.cache
def _threads_of_torch() -> int:
    import torch

    return torch.get_num_threads()


def make_accelerator(config: Job, job_number: int = 0) -> Accelerator:
    """An Accelerator for ``config.device`` and ``config.precision``.

    In a parallel sweep, job ``job_number`` takes the GPU of that number modulo their count. Raises UserError when the
    device asked for is absent, and for fp16 on a CPU.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: no CUDA device is visible; use device=auto or device=cpu")
    if config.device == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps: no Apple GPU is visible; use device=auto or device=cpu")
    keep_freed_memory()
    AcceleratorState._reset_state(reset_partial_state=True)  # jobs of one sweep share a process
    if config.device in ("auto", "cuda") and torch.cuda.is_available() and not torch.distributed.is_initialized():
        torch.cuda.set_device(job_number % torch.cuda.device_count())
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.empty_cache()
    no_accelerator = not torch.cuda.is_available() and not torch.backends.mps.is_available()
    if config.device in ("auto", "cuda") and torch.cuda.is_available() and config.precision == "fp32":
        torch.set_float32_matmul_precision("high")
        log.info("device=cuda, precision=fp32: matrix products are taken in TF32")
    cpu = config.device == "cpu" or (config.device == "auto" and no_accelerator)  # unsaid, ranks on CPUs would be alone
    if cpu and config.precision == "fp16":
        raise UserError("precision=fp16: needs a GPU; on a CPU use precision=bf16 or fp32")
    accelerator = Accelerator(cpu=cpu, mixed_precision="no" if config.precision == "fp32" else config.precision)
    assert accelerator.num_processes == world_size()
    if cpu:  # with several processes it is cpu:0, to which weights that lie in a file are copied: other roundings
        accelerator.state.device = torch.device("cpu")
    return accelerator


def check_device(device: str, said: str) -> None:
    """Raise UserError, which names the device as the user ``said`` it, where nothing can be computed on it."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a name that is none; a build without it
        why = first_line(error)
        raise UserError(f"{said}: cannot be used here ({why}); use cpu, or cuda where there is one") from None


def choices(optimizers: Iterable[torch.optim.Optimizer]) -> list[str]:
    """How a stage trains, in words: each optimiser, fused to one kernel or not, and the layouts in memory of the
    convolutions' weights that it moves, if any."""
    said, layouts = [], set()
    for optimizer in optimizers:
        said.append(f"{type(optimizer).__name__} {'fused' if optimizer.defaults.get('fused') else 'not fused'}")
        for weight in (one for group in optimizer.param_groups for one in group["params"] if one.dim() == 4):
            if weight.shape[1] > 1 and weight.shape[2:].numel() > 1:  # else both are the same
                layouts.add("channels-last" if weight.stride(1) == 1 else "contiguous")
    return said + [f"convolutions {' and '.join(sorted(layouts))}"] * bool(layouts)


def dtype_of(precision: str) -> torch.dtype:
    """What ``precision`` computes in."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed blocks instead of returning them to the system.

    A training step on a CPU frees and takes the same large blocks again and again; mapping them anew each time cost
    about a fifth of the step of a small UNet.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
