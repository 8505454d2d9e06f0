"""How many threads a job on the CPU computes with, and how they wait for each other.

A training step of a small network meets a barrier every few microseconds. Threads that sleep at each one are woken too
late (half of the speed of one thread, measured on a virtual machine of two cores), threads that spin until they are
all there burn the cores of others and wait for whole time slices beside a busy process (a quarter of the speed of one
thread). So they spin for a moment only, and there are no more of them than cores that are free when the job starts.
``python tests/threads.py`` measures it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

from toolkit.runs.machine import cores

SPINS = 5_000  # some ten microseconds


class _Sample(NamedTuple):
    """Seconds since some start: of the clock, busy on the cores that we may use, and spent by this process."""

    clock: float
    busy: float
    own: float


_start: _Sample | None = None


def before_torch() -> None:
    """Choose how threads wait, unless the user did, and watch the cores. Before torch is loaded."""
    global _start
    if sys.platform == "linux" and not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT=str(SPINS))
    _start = _sample()


def choose() -> tuple[int, str] | None:
    """The number of threads and why, from what other processes used of the cores since the last look.

    None where the user set OMP_NUM_THREADS, or where it cannot be known: torch then decides.
    """
    global _start
    before, now = _start, _sample()
    _start = now
    if "OMP_NUM_THREADS" in os.environ or before is None or now is None or now.clock - before.clock < 0.2:
        return None
    others = max(0.0, (now.busy - before.busy) - (now.own - before.own)) / (now.clock - before.clock)
    count = max(1, int(cores() - others + 0.25))
    return count, f"{cores()} cores, of which other processes use {others:.1f}"


def _sample() -> _Sample | None:
    """None where the system does not tell (anything but Linux)."""
    with contextlib.suppress(OSError, ValueError):
        allowed = {f"cpu{core}" for core in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
        lines = [line.split() for line in Path("/proc/stat").read_text(encoding="ascii").splitlines()]
        ticks = os.sysconf("SC_CLK_TCK")
        rows = [[int(word) for word in line[1:9]] for line in lines if line[0] in allowed]
        busy = sum(sum(row) - row[3] - row[4] for row in rows) / ticks  # all but idle and waiting for disks
        return _Sample(time.monotonic(), busy, sum(os.times()[:4])) if rows else None
    return None
