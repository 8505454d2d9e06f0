"""Real steps of a stage on this machine: how much longer they take than the model says."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch

from toolkit.errors import UserError
from toolkit.plan.devices import Cluster, Device
from toolkit.plan.estimate import Tracer, largest_micro_batch, modelled_step_s
from toolkit.runs.device import keep_freed_memory
from toolkit.runs.stage_shape import StageShape

NUM_STEPS = 3  # that are timed, after one that is not
MOST_MODELLED_S = 2.0  # of a step that is measured; a larger batch is cut
ROOM = 0.25  # of this machine's memory

Step = Callable[[], None]


def slowdown(stage: StageShape, narrow: StageShape, device: Device, tracer: Tracer) -> tuple[float, str]:
    """(measured time / modelled time of a step, what was measured).

    ``stage`` itself in as large a micro-batch as this machine takes in a few seconds; ``narrow``, of the command's
    default preset, where not even one item of it does. Raises UserError where neither can run here.
    """
    small = Cluster(Device(**{**vars(device), "memory_gib": ROOM * device.memory_gib}), 1)
    for shape in (stage, narrow):
        micro = largest_micro_batch(shape, small, tracer)
        if micro is None:
            continue
        while micro > 1 and modelled_step_s(shape, micro, small, tracer) > MOST_MODELLED_S:
            micro = max(1, micro // 2)
        took = measure(shape, micro)
        which = "" if shape is stage else " of the default preset"
        how = f"measured here: {took:.3g} s a step of {micro} {shape.item}{which}, median of {NUM_STEPS}"
        return took / modelled_step_s(shape, micro, small, tracer), how
    raise UserError(f"--measure: not one item of {stage.name} fits into {small.device.memory_gib:.3g} GiB here")


def measure(shape: StageShape, micro: int) -> float:
    """Median seconds of a training step of ``micro`` items: both passes, clipping, AdamW, averages."""
    keep_freed_memory()
    step = real_step(shape, micro)
    step()
    return statistics.median(_seconds(step) for _ in range(NUM_STEPS))


def _seconds(step: Step) -> float:
    started = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def real_step(shape: StageShape, micro: int) -> Step:
    """A function that trains the stage's networks by one step on made-up items, on the GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = shape.build()
    for part in (networks.trained, *networks.frozen, *networks.averaged):
        part.to(device)
    if shape.checkpointing and networks.recompute:
        networks.recompute()
    parameters = [one for one in networks.trained.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    current = [one for part in networks.averaged for one in part.parameters()]
    averages = [copy.deepcopy(one).detach() for one in current]

    def step() -> None:
        with device, torch.autocast(device.type, torch.bfloat16, enabled=shape.precision == "bf16"):
            loss = networks.loss(micro)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if averages:
            torch._foreach_lerp_(averages, [one.detach() for one in current], 0.01)

    return step
