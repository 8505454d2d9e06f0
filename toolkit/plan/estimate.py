"""From traces of a stage to what it needs on a cluster: memory by kind, the micro-batch, exchange, time, disk."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from toolkit.errors import UserError
from toolkit.plan.devices import Cluster, Device
from toolkit.plan.trace import Trace, Work, trace
from toolkit.runs.stage_shape import StageShape

GIB = 2**30
USABLE = 0.92  # of a device's memory; the rest is the driver's, and what the allocator leaves in pieces
BYTES = 4  # of a number in float32: weights, gradients, moments, averages
UNITS_AT_HAND = 2  # FSDP gathers the next one while one computes
MOST_TRACES = 4  # to find the largest micro-batch; memory is nearly a line, so that two are mostly enough


@dataclass(frozen=True)
class Pace:
    """What measured steps took, as multiples of what the model says, by what the time goes into.

    launches: starting operations, one after another. work: their arithmetic and traffic. update: clipping, AdamW and
    averages, which do not grow with the batch.
    """

    launches: float
    work: float
    update: float


class Tracer:
    """Traces, each taken once; stages that share their ``build`` share them."""

    def __init__(self, fused: bool) -> None:
        self.fused = fused
        self._seen: dict[Any, Trace] = {}

    def __call__(self, shape: StageShape, micro: int, checkpointing: bool, accumulating: bool) -> Trace:
        key = (shape.build, micro, checkpointing, accumulating)
        if key not in self._seen:
            self._seen[key] = trace(
                shape, micro, checkpointing=checkpointing, accumulate=accumulating, fused=self.fused
            )
        return self._seen[key]


@dataclass(frozen=True)
class Memory:
    """Of one device, in bytes. Activations leave as gradients come, so that the peak is less than the sum."""

    weights: int
    gradients: int
    moments: int
    averages: int
    activations: int
    exchange: int
    peak: int


@dataclass(frozen=True)
class StagePlan:
    """What one stage needs. Times in seconds, sizes in bytes, ``exchanged`` a step and device, each way."""

    name: str
    item: str
    parameters: int
    trained: int
    num_steps: int
    repeats: int
    batch_size: int
    micro_batch_size: int
    passes: int
    checkpointing: bool
    fits: bool
    largest_micro_batch: dict[str, int | None]
    activations: dict[str, int | None]
    flops_per_step: int
    memory: Memory
    exchanged: int
    step_s: float
    exposed_exchange_s: float
    total_s: float
    device_hours: float
    utilisation: float
    checkpoint_bytes: int
    disk_bytes: int
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def plan_stage(
    shape: StageShape, cluster: Cluster, tracer: Tracer, keep_checkpoints: int, pace: Pace | None = None
) -> StagePlan:
    """The plan of one stage.

    Args:
        keep_checkpoints: how many are kept; one more lies there while it is written.
        pace: of measured steps; None: as the device's assumptions say.

    Raises UserError where the batch does not divide among the devices.
    """
    share = _share(shape, cluster)
    ways = (False, True) if _can_recompute(shape) else (False,)
    largest = {way: largest_micro_batch(shape, cluster, tracer, way) for way in ways}
    micro, checkpointing = _choice(shape, share, largest)
    passes = math.ceil(share / micro)
    seen = tracer(shape, micro, checkpointing, micro < share)
    memory = _memory(shape, seen, cluster.count, micro < share)
    step_s, exposed = _step_s(shape, seen, share / micro, cluster, pace)
    total_s = step_s * shape.num_steps * shape.repeats
    checkpoint = seen.stored + BYTES * seen.moments + seen.averages
    flops = round(seen.flops * share / micro) * (1 if shape.replicated else cluster.count)
    peak_rate = cluster.device.tflops[shape.precision] * 1e12 * (1 if shape.replicated else cluster.count)
    return StagePlan(
        shape.name, shape.item, seen.parameters, seen.trained, shape.num_steps, shape.repeats, shape.batch_size,
        micro, passes, checkpointing, memory.peak <= _usable(cluster.device),
        {_word(way): found for way, found in largest.items()},
        {_word(way): tracer(shape, micro, way, micro < share).activations for way in ways},
        flops, memory, _exchanged(shape, seen, passes, cluster.count), step_s, exposed, total_s,
        total_s * cluster.count / 3600, flops / (step_s * peak_rate), checkpoint,
        (keep_checkpoints + 1) * checkpoint + seen.stored + shape.cache_bytes, shape.notes,
    )  # fmt: skip


def _word(checkpointing: bool) -> str:
    return "recomputed" if checkpointing else "kept"


def _share(shape: StageShape, cluster: Cluster) -> int:
    if shape.sharded and cluster.count == 1:
        raise UserError(f"{shape.name}: sharding=fsdp spreads weights over several devices, as in --devices 8xH100")
    if shape.replicated:
        return shape.batch_size
    if shape.batch_size % cluster.count:
        raise UserError(
            f"{shape.name}: a batch of {shape.batch_size} {shape.item} must be divisible by {cluster.count} devices"
        )
    return shape.batch_size // cluster.count


def _can_recompute(shape: StageShape) -> bool:
    import torch

    with torch.device("meta"):
        return shape.build().recompute is not None


def _usable(device: Device) -> float:
    return USABLE * device.memory_gib * GIB


def largest_micro_batch(shape: StageShape, cluster: Cluster, tracer: Tracer, checkpointing: bool = False) -> int | None:
    """The largest micro-batch that fits, up to this device's share; None where not even one item does.

    The whole share is looked at first, for small networks fit with all of it. Then the line through two micro-batches
    says where to look; what is found is traced itself.
    """
    share, room = _share(shape, cluster), _usable(cluster.device)

    def peak(micro: int) -> int:
        return _memory(shape, tracer(shape, micro, checkpointing, micro < share), cluster.count, micro < share).peak

    if peak(share) <= room:
        return share
    if share == 1 or peak(1) > room:
        return None
    fits, too_large = 1, share
    guess = _where(1, peak(1), share, peak(share), room)
    for _ in range(MOST_TRACES):
        guess = min(max(guess, fits), too_large - 1)
        if guess == fits:
            break
        if peak(guess) <= room:
            fits, guess = guess, _where(1, peak(1), guess, peak(guess), room)
        else:
            too_large, guess = guess, _where(fits, peak(fits), guess, peak(guess), room)
    return fits


def _where(small: int, low: int, large: int, high: int, room: float) -> int:
    """The micro-batch at which the line through two others' peaks reaches ``room``."""
    return int(small + (room - low) * (large - small) / max(1, high - low))


def _choice(shape: StageShape, share: int, largest: dict[bool, int | None]) -> tuple[int, bool]:
    """The micro-batch and whether to checkpoint: the config's, else as few passes as fit, of equal size.

    Checkpointing is taken where nothing fits without it; one item where nothing fits at all.
    """
    checkpointing = shape.checkpointing or (not largest[False] and bool(largest.get(True)))
    if shape.micro_batch_size:
        return min(shape.micro_batch_size, share), checkpointing
    passes = math.ceil(share / (largest[checkpointing] or 1))
    return math.ceil(share / passes), checkpointing


def _memory(shape: StageShape, seen: Trace, count: int, accumulating: bool) -> Memory:
    """Of one device. Under FSDP what is accumulated over micro-batches is whole on every device until the last one."""
    moments = BYTES * seen.moments
    if not shape.sharded:
        exchange = 0 if count == 1 or shape.replicated else BYTES * seen.trained  # DDP's buckets
        resident = seen.weights + moments + seen.averages + exchange
        peak = resident + max(seen.passing, seen.gradients)
        return Memory(seen.weights, seen.gradients, moments, seen.averages, seen.activations, exchange, peak)
    size = 2 if shape.half else BYTES
    gathered = size * (seen.outside + UNITS_AT_HAND * seen.unit)
    gradients = BYTES * (seen.trained if accumulating else seen.trained // count + seen.unit)
    exchange = gathered + BYTES * seen.unit
    averages = seen.averages // count
    resident = (seen.weights + moments) // count + averages
    peak = resident + gradients + exchange + seen.passing
    return Memory(seen.weights // count, gradients, moments // count, averages, seen.activations, exchange, peak)


def _exchanged(shape: StageShape, seen: Trace, passes: int, count: int) -> int:
    """Bytes that a device sends in a step: DDP's ring all-reduce, or FSDP's gathers and its reduce-scatter."""
    if count == 1 or shape.replicated:
        return 0
    gradients = BYTES * seen.trained * (count - 1) // count
    if not shape.sharded:
        return 2 * gradients
    size = 2 if shape.half else BYTES
    return gradients + 2 * passes * size * seen.parameters * (count - 1) // count


def _step_s(shape: StageShape, seen: Trace, passes: float, cluster: Cluster, pace: Pace | None) -> tuple[float, float]:
    """Seconds of a step, and those in which devices only wait for the exchange: it hides behind the backward pass."""
    compute = passes * pass_s(seen.work, cluster.device, pace)
    compute += update_s(seen, shape, cluster) * (pace.update if pace else 1.0)
    exchange = _exchanged(shape, seen, math.ceil(passes), cluster.count) / (cluster.exchange_gb_s * 1e9)
    backward = compute * (2 / 3 if shape.sharded else 2 / 3 / passes)
    exposed = max(0.0, exchange - backward)
    return compute + exposed, exposed


def modelled_step_s(shape: StageShape, micro: int, cluster: Cluster, tracer: Tracer, pace: Pace | None = None) -> float:
    """Seconds of a step of a single pass."""
    return _step_s(shape, tracer(shape, micro, shape.checkpointing, False), 1, cluster, pace)[0]


def pass_s(work: dict[Work, int], device: Device, pace: Pace | None = None) -> float:
    """Seconds of a forward and backward pass.

    Each operation takes its arithmetic or its memory, whichever is more. Launches go beside it on a GPU that is kept
    busy, so that an operation takes no less than one; where steps were measured both have a share of their own.
    """
    if pace:
        launches, busy = pass_parts_s(work, device)
        return pace.launches * launches + pace.work * busy
    least = device.launch_us * 1e-6
    return sum(count * max(least, _operation_s(kind, device)) for kind, count in work.items())


def pass_parts_s(work: dict[Work, int], device: Device) -> tuple[float, float]:
    """Seconds of a pass's launches alone, and of its arithmetic and traffic alone."""
    launches = sum(work.values()) * device.launch_us * 1e-6
    return launches, sum(count * _operation_s(kind, device) for kind, count in work.items())


def _operation_s(kind: Work, device: Device) -> float:
    arithmetic = kind.flops / (device.tflops[kind.dtype] * 1e12 * device.product_efficiency)
    return max(arithmetic, kind.bytes / _bytes_a_second(device))


def _bytes_a_second(device: Device) -> float:
    return device.bandwidth_gb_s * 1e9 * device.memory_efficiency


def update_s(seen: Trace, shape: StageShape, cluster: Cluster) -> float:
    """Seconds of clipping, AdamW and averages, which are bound by memory: each number is read or written once."""
    parts = cluster.count if shape.sharded else 1
    trained, averages = BYTES * seen.trained / parts, seen.averages / parts
    clip, adam = 3 * trained, 7 * trained
    return (clip + adam + 3 * averages) / _bytes_a_second(cluster.device)
