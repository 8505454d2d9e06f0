"""Real steps of a stage on this machine: how much longer they take than the model says."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.plan.devices import Cluster, Device
from toolkit.plan.estimate import Pace, Tracer, largest_micro_batch, modelled_step_s, pass_parts_s, update_s
from toolkit.runs.device import keep_freed_memory
from toolkit.runs.stage_shape import StageShape

NUM_STEPS = 4  # of each size that are timed, after one that is not; the shortest counts: other work only adds
SMALLER = 4  # the second size is so many times smaller: what does not grow with a batch shows in it
MOST_MODELLED_S = 2.0  # of a step that is measured; a larger batch is cut
ROOM = 0.25  # of this machine's memory


@dataclass(frozen=True)
class Took:
    """Seconds of the two passes, and of clipping, AdamW and averages after them."""

    passes: float
    update: float


def pace_here(stage: StageShape, narrow: StageShape, device: Device, tracer: Tracer) -> tuple[Pace, str]:
    """(this machine's pace, what was measured).

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
        took = measure(shape, sizes_for(micro))
        which = "" if shape is stage else " of the default preset"
        step_s = took[micro].passes + took[micro].update
        sizes = " and of ".join(map(str, took))
        how = f"measured here: {step_s:.3g} s a step of {micro}; steps of {sizes} {shape.item}{which}, {clock_name()}"
        return pace_of(shape, took, small, tracer), how
    raise UserError(f"--measure: not one item of {stage.name} fits into {small.device.memory_gib:.3g} GiB here")


def sizes_for(micro: int) -> list[int]:
    """The sizes of the steps that are measured to know those of ``micro`` items and more, ascending."""
    return sorted({max(1, micro // SMALLER), micro})


def pace_of(shape: StageShape, took: dict[int, Took], cluster: Cluster, tracer: Tracer) -> Pace:
    """The pace from steps of one or two sizes: launches and work are what explains both."""
    parts = {size: pass_parts_s(tracer(shape, size, shape.checkpointing, False).work, cluster.device) for size in took}
    small, large = min(took), max(took)
    (launches, less), (_, more) = parts[small], parts[large]
    update = took[large].update / update_s(tracer(shape, large, shape.checkpointing, False), shape, cluster)
    work = (took[large].passes - took[small].passes) / (more - less) if more > less else 0.0
    started = (took[large].passes - work * more) / launches
    if work > 0 and started >= 0:
        return Pace(started, work, update)
    share = took[large].passes / (launches + more)  # nothing tells the two apart
    return Pace(share, share, update)


def measure(shape: StageShape, sizes: Sequence[int]) -> dict[int, Took]:
    """By number of items, the shortest of several training steps; the sizes take turns."""
    keep_freed_memory()
    step = RealStep(shape)
    for size in sizes:
        step(size)
    times = {size: [step(size) for _ in range(NUM_STEPS)] for size in sizes}
    return {size: Took(min(t.passes for t in took), min(t.update for t in took)) for size, took in times.items()}


def clock_name() -> str:
    """How ``RealStep`` measures."""
    return f"the shortest of {NUM_STEPS}, {'processor' if _one_thread() else 'wall'} time"


def _one_thread() -> bool:
    return torch.get_num_threads() == 1 and not torch.cuda.is_available()


def _now() -> float:
    """Seconds: of the processor where torch has one thread, so that other work on the machine does not count."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.thread_time() if _one_thread() else time.perf_counter()


class RealStep:
    """Trains a stage's networks by one step on made-up items at each call, on the GPU where there is one."""

    def __init__(self, shape: StageShape) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.networks, self.half = shape.build(), shape.precision == "bf16"
        for part in (self.networks.trained, *self.networks.frozen, *self.networks.averaged):
            part.to(self.device)
        if shape.checkpointing and self.networks.recompute:
            self.networks.recompute()
        self.parameters = [one for one in self.networks.trained.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, fused=True)
        self.current = [one for part in self.networks.averaged for one in part.parameters()]
        self.averages: list[Tensor] = [copy.deepcopy(one).detach() for one in self.current]

    def __call__(self, micro: int) -> Took:
        """One step of ``micro`` items, in a single pass."""
        started = _now()
        with self.device, torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            loss = self.networks.loss(micro)
        loss.backward()
        del loss
        passed = _now()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.averages:
            torch._foreach_lerp_(self.averages, [one.detach() for one in self.current], 0.01)
        return Took(passed - started, _now() - passed)
