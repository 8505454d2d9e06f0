"""Plans against what training steps on this machine really took: peak memory and time. Not collected: minutes.

    python tests/plan/check.py [RECORD.json]

Each stage kind, in a process of its own, in two sizes. Memory: what torch's allocator gave out at the most, beside
weights, moments and averages; the plan's is not calibrated. Time: medians of steps whose sizes alternate, so that
another load of the machine falls on both; the plan's time of the second size is the first one's measured time, scaled
by the model: the calibrating step.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.plan.command import shapes_of
from toolkit.plan.devices import parse
from toolkit.plan.estimate import Tracer, modelled_step_s
from toolkit.plan.measured import real_step
from toolkit.runs.device import keep_freed_memory

WIDE = ["network.hidden_size=128", "network.intermediate_size=352"]
CASES = {  # command, settings, stage, items of a step: one to calibrate by, one to predict
    "denoiser": ("train-disco", ["data=mnist16", "network=adm_small"], "denoiser", (32, 96)),
    "tokenizer": ("train-ivideogpt", [], "tokenizer", (8, 24)),
    "transformer": ("train-ivideogpt", [], "transformer", (16, 48)),
    "language model": ("grow-llm", WIDE, "scratch", (16, 48)),
    "video": ("enhance-video", ["experiment=enhance_train_small"], "train", (4, 12)),
}
ROUNDS = 4
MIB = 2**20


def shape_of(case):
    command, settings, stage, _ = CASES[case]
    shapes = shapes_of(COMMANDS[command], compose(COMMANDS[command], settings))
    return next(shape for shape in shapes if shape.name == stage)


def allocated(step):
    """Bytes: the most that a step has taken of torch's allocator at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def measured(shape, sizes):
    """Bytes at the peak, and seconds of each round's steps, by size."""
    keep_freed_memory()
    steps = {size: real_step(shape, size) for size in sizes}
    for step in steps.values():
        step()  # makes the moments
    peaks = {size: allocated(step) for size, step in steps.items()}
    times = {size: [] for size in sizes}
    for _ in range(ROUNDS):
        for size, step in steps.items():
            start = time.perf_counter()
            step()
            times[size].append(time.perf_counter() - start)
    return peaks, times


def check(case):
    """Rows of one case: what was planned and what was measured, in MiB and seconds."""
    shape, tracer, cluster, sizes = shape_of(case), Tracer(fused=False), parse("here"), CASES[case][3]
    peaks, times = measured(shape, sizes)
    modelled = {size: modelled_step_s(shape, size, cluster, tracer) for size in sizes}
    rows = []
    for size in sizes:
        seen = tracer(shape, size, False, False)
        kept = seen.weights + 8 * seen.trained + seen.averages
        planned, peak = (kept + max(seen.passing, seen.gradients)) / MIB, (kept + peaks[size]) / MIB
        took, first = statistics.median(times[size]), statistics.median(times[sizes[0]])
        expected = first * modelled[size] / modelled[sizes[0]]
        rows.append({
            "stage": case, "items": size,
            "memory_planned_mib": round(planned, 1), "memory_measured_mib": round(peak, 1),
            "memory_error_percent": round(100 * (planned / peak - 1), 1),
            "time_planned_s": round(expected, 4), "time_measured_s": round(took, 4),
            "time_error_percent": round(100 * (expected / took - 1), 1),
            "load_average": round(os.getloadavg()[0], 1),
        })  # fmt: skip
    return rows


def main():
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(check(sys.argv[2])))
        return
    found = {}
    for case in CASES:
        done = subprocess.run([sys.executable, __file__, "--one", case], stdout=subprocess.PIPE, text=True, check=True)
        for row in json.loads(done.stdout.splitlines()[-1]):
            print(json.dumps(row), flush=True)
            found[f"{row['stage']} {row['items']}"] = row
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
