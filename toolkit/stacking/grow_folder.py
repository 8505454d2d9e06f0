"""Growing a checkpoint folder into a checkpoint folder, and what is told about it."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.runs.files import write_json
from toolkit.schema import check
from toolkit.stacking.checkpoints.load import REPORT_FILE, num_ids
from toolkit.stacking.checkpoints.open import Checkpoint, open_checkpoint, open_weights
from toolkit.stacking.checkpoints.probe import preservation
from toolkit.stacking.checkpoints.safetensors_io import total_bytes
from toolkit.stacking.checkpoints.write import (
    MAX_SHARD_BYTES,
    carried_bytes,
    refuse_used,
    whole_or_nothing,
    write_checkpoint,
)
from toolkit.stacking.config import Growth
from toolkit.stacking.measure.flops import cost
from toolkit.stacking.operators.grow import Grown, grow
from toolkit.stacking.operators.learn import GrowthMap
from toolkit.stacking.operators.tensors import Watched

_MEASURED_ON = {
    "text": "text",
    "random ids": "random token ids, not on text: the source has no tokenizer that fits its vocabulary",
}
_UNPACKED = "the source's values were unpacked to float32 as a whole, which took memory for that model"


def grow_checkpoint(
    source: str | Path | Checkpoint,
    out: str | Path,
    growth: Growth,
    *,
    seed: int = 0,
    growth_map: GrowthMap | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Grow a checkpoint into the new folder ``out`` and return the report, which is also ``out/growth.json``.

    source: folder, hub id, ``.gguf`` file, an opened Checkpoint, or with ``operator="slices"`` a file of mergekit's.
    growth_map: G_learn's trained matrices. The rest as in ``write_grown``.

    Raises UserError where source, operator or ``out`` do not fit; JobError where the disk fails. Then ``out`` is not
    there.
    """
    refuse_used(Path(out))  # before a source is fetched or unpacked
    checkpoint, grown = open_grown(source, growth, seed, growth_map)
    return write_grown(checkpoint, grown, out, growth, seed=seed, **settings)


def open_grown(
    source: str | Path | Checkpoint, growth: Growth, seed: int = 0, growth_map: GrowthMap | None = None
) -> tuple[Checkpoint, Grown]:
    """The source and how it grows; its weights are read when they are asked for. Raises UserError."""
    if growth.operator == "slices":
        from toolkit.stacking.slices import open_slices

        check(growth)
        return open_slices(str(source))
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    return checkpoint, grow(checkpoint.architecture, checkpoint.config, checkpoint.tensors, growth, seed, growth_map)


def write_grown(
    checkpoint: Checkpoint,
    grown: Grown,
    out: str | Path,
    growth: Growth,
    *,
    seed: int = 0,
    text: str | None = None,
    measure: bool = True,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    on_tensor: Callable[[], None] = lambda: None,
    run_id: str = "",
) -> dict[str, Any]:
    """Write what grew from ``checkpoint`` into the new folder ``out``; returns the report, also ``out/growth.json``.

    text: what preservation is measured on; ``measure=False`` skips that. on_tensor: called after each tensor written.
    run_id: kept in the report, to tell whose work ``out`` is.
    Weights stream through: memory is needed for one tensor at a time, not for the model (for measuring, a network of up
    to 1 GiB as a whole, one layer of a larger one); ``growth_memory_mib`` in the report is what growing took above what
    the process held before, ``peak_memory_mib`` all of it. Types of tensors are kept.

    Raises UserError where ``out`` is in use, JobError where the disk fails. Then ``out`` is not there.
    """
    held = _reset_peak()
    start, num_bytes = time.perf_counter(), total_bytes(grown.tensors.infos)
    with whole_or_nothing(Path(out), num_bytes + carried_bytes(checkpoint)) as folder:
        watched = Watched(grown.tensors, on_tensor)
        shards = write_checkpoint(folder, checkpoint, grown.config, watched, max_shard_bytes)
        report = describe(checkpoint, grown, growth) | {
            "seed": seed,
            "run": run_id,
            "bytes": num_bytes,
            "shards": shards,
            "grow_time_s": round(time.perf_counter() - start, 3),
            "peak_memory_mib": (peak := _peak_mib()),
            "growth_memory_mib": round(peak - held, 1),
        }
        if measure:
            measured = preservation(checkpoint, folder, open_weights(folder), text, seed)
            report["function"] = measured.as_dict()
            report["notes"].insert(0, f"the function was compared on {_MEASURED_ON[measured.measured_on]}")
        write_json(folder / REPORT_FILE, report)
    return report


def describe(source: Checkpoint, grown: Grown, growth: Growth) -> dict[str, Any]:
    """What growth does, known before any weight is read: layers, connection rate, parameters, FLOPs per token."""
    before, after = cost(source.architecture, source.config), cost(source.architecture, grown.config)
    numbered = list(enumerate(grown.plan))
    return {
        "source": source.source,
        "growth": dataclasses.asdict(growth),
        "source_layers": grown.sources,
        "new_layers": [i for i, layer in numbered if layer.new],
        "zeroed_layers": [i for i, layer in numbered if layer.zeroed],
        "fresh_layers": [i for i, layer in numbered if layer.fresh],
        "connection_rate": grown.connection_rate,
        "growth_factor": after.non_embedding / before.non_embedding,  # the paper's g
        "dtypes": sorted({str(info.dtype).removeprefix("torch.") for info in grown.tensors.infos.values()}),
        "tied": source.architecture.tied(grown.config),
        "cost": {"source": before.as_dict(), "target": after.as_dict()},
        "notes": [*_source_notes(source), *grown.notes, *operator_notes(growth, grown)],
    }


def _source_notes(source: Checkpoint) -> list[str]:
    """What a reader of the report should know about the source."""
    notes = [_UNPACKED] if source.folder is None else []
    beyond = num_ids(source.tokenizer) - source.config.vocab_size if source.tokenizer is not None else 0
    if beyond > 0:
        notes.append(f"the tokenizer knows {beyond} more tokens than the network, in source and target alike")
    return notes


def operator_notes(growth: Growth, grown: Grown) -> list[str]:
    """What a reader of the report should know about this operator."""
    if growth.operator == "random":
        return ["G_random keeps the function while its masks are at 0; a stored model has them at 1"]
    if growth.operator == "learn" and grown.growth_map is not None:
        losses = grown.growth_map.losses
        if losses:
            course = f"loss {losses[0]:.3f} -> {losses[-1]:.3f}"
            return [f"G_learn's matrices were trained for {len(losses)} steps, {course}"]
        start = "the identity on top of noise" if growth.direction == "width" else "G_stack's copies"
        return [f"G_learn's matrices were not trained: they are {start}"]
    return []


def _reset_peak() -> float:
    """Start the kernel's high-water mark of resident memory anew (Linux; elsewhere it covers the whole process).

    Returns the MiB held now.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _status_mib("VmRSS")


def _peak_mib() -> float:
    return _status_mib("VmHWM")


def _status_mib(field: str) -> float:
    """Resident memory now (VmRSS) or at its highest (VmHWM); elsewhere than on Linux the highest for both."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return round(next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024, 1)
    except (OSError, StopIteration):
        scale = 1024**2 if platform.system() == "Darwin" else 1024
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale, 1)
