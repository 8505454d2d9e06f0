"""Plans against what training steps on this machine really took: peak memory and time. Not collected: minutes.

    OMP_NUM_THREADS=1 python tests/plan/check.py [RECORD.json] [--repeats 3]

Each repeat of each stage is a process of its own. Memory: what torch's allocator gave out at the most, beside weights,
moments and averages; the plan's is not calibrated. Time: the plan knows steps of some items and of a quarter as many,
as `toolkit plan --measure` does, and predicts one of three times as many; the sizes take turns and the shortest step of
each counts. With one thread it is processor time, which other work on the machine does not lengthen. A row is the
repeat with the median error; the least and the greatest stand beside it.
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.plan.command import shapes_of
from toolkit.plan.devices import parse
from toolkit.plan.estimate import Tracer, modelled_step_s
from toolkit.plan.measured import RealStep, clock_name, measure, pace_of, sizes_for
from toolkit.runs.device import keep_freed_memory
from toolkit.runs.machine import processor

WIDE = ["network.hidden_size=128", "network.intermediate_size=352"]
CASES = {  # command, settings, stage, items of a step: one to calibrate by, one to predict
    "denoiser": ("train-disco", ["data=mnist16", "network=adm_small"], "denoiser", (32, 96)),
    "tokenizer": ("train-ivideogpt", [], "tokenizer", (8, 24)),
    "transformer": ("train-ivideogpt", [], "transformer", (16, 48)),
    "language_model": ("grow-llm", WIDE, "scratch", (16, 48)),
    "video": ("enhance-video", ["experiment=enhance_train_small"], "train", (4, 12)),
}
REPEATS = 3
MIB = 2**20


def shape_of(case):
    command, settings, stage, _ = CASES[case]
    shapes = shapes_of(COMMANDS[command], compose(COMMANDS[command], settings))
    return next(shape for shape in shapes if shape.name == stage)


def allocated(step, size):
    """Bytes: the most that a step has taken of torch's allocator at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step(size)
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def resident():
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def memory_row(shape, tracer, sizes):
    """MiB at the peak of a step of either size, planned and allocated; how much the process grew for the first."""
    before, step = resident(), RealStep(shape)
    step(sizes[0])  # makes the moments
    step(sizes[0])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    row = {"resident_growth_mib": round(grown / MIB, 1)}
    for which, size in zip(("memory", "larger_memory"), sizes, strict=True):
        seen = tracer(shape, size, False, False)
        kept = seen.weights + 8 * seen.trained + seen.averages
        planned, taken = kept + max(seen.passing, seen.gradients), kept + allocated(step, size)
        row |= {
            f"{which}_planned_mib": round(planned / MIB, 1),
            f"{which}_allocated_mib": round(taken / MIB, 1),
            f"{which}_error_percent": round(100 * (planned / taken - 1), 1),
        }
    return row


def time_row(shape, tracer, sizes):
    """Seconds of a step of the second size, planned from the first and measured."""
    cluster, known = parse("here"), sizes_for(sizes[0])
    took = measure(shape, [*known, sizes[1]])
    pace = pace_of(shape, {size: took[size] for size in known}, cluster, tracer)
    planned = modelled_step_s(shape, sizes[1], cluster, tracer, pace)
    seconds = took[sizes[1]].passes + took[sizes[1]].update
    return {
        "time_planned_s": round(planned, 4),
        "time_measured_s": round(seconds, 4),
        "time_error_percent": round(100 * (planned / seconds - 1), 1),
        "load_average": round(os.getloadavg()[0], 1),
    }


def check(case):
    """One repeat of one case."""
    shape, tracer, sizes = shape_of(case), Tracer(fused=False), CASES[case][3]
    keep_freed_memory()
    rows = memory_row(shape, tracer, sizes) | time_row(shape, tracer, sizes)
    return {"items": sizes[0], "larger_items": sizes[1]} | rows


def median_row(rows):
    """The row with the median error of time, and the range of the errors."""
    errors = sorted(row["time_error_percent"] for row in rows)
    row = next(row for row in rows if row["time_error_percent"] == errors[len(errors) // 2])
    loads = [one["load_average"] for one in rows]
    beside = {"time_error_least_percent": errors[0], "time_error_greatest_percent": errors[-1], "repeats": len(rows)}
    return row | beside | {"load_average": max(loads)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, nargs="?")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(check(asked.one) | {"clock": clock_name()}))
        return
    found = {case: [] for case in CASES}
    for _, case in itertools.product(range(asked.repeats), CASES):
        line = [sys.executable, __file__, "--one", case]
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
        found[case].append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps({case: found[case][-1]}), flush=True)
    machine = {"processor": processor(), "cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS")}
    record = {"machine": machine} | {case: median_row(rows) for case, rows in found.items()}
    if asked.record:
        asked.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
