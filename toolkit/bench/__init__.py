"""What every benchmark shares: options from the command line, paired rounds, peak memory, the table and the JSON.

A room's ``bench.py`` names its contenders and what each of them does; here they are timed side by side in one process:
one round of every contender, then the next, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from toolkit.errors import JobError, UserError, did_you_mean
from toolkit.plain_files import check_writable
from toolkit.runs.device import keep_freed_memory
from toolkit.runs.files import write_json
from toolkit.runs.machine import machine, package_versions
from toolkit.schema import Job, check, choice, number
from toolkit.show.table import Table
from toolkit.show.terminal import show

if TYPE_CHECKING:
    from toolkit.runs.loop import Loop

OURS = "ours"  # the contender that ratios are taken to


@dataclass
class BenchOptions:
    """key=value options that every benchmark has; a room's own come in a subclass."""

    num_rounds: int = number(7, least=1)
    threads: int | None = number(None, least=1)
    device: str = choice("cpu", "cpu", "cuda")
    allocator: str = choice("tuned", "tuned", "default")
    clock: str = choice("wall", "wall", "cpu")  # cpu: processor time of one thread, for a machine that others use too
    out: str | None = None
    only: str | None = None
    memory: str = choice("true", "true", "false")  # false: peak memory, a process for each contender, is left out


@dataclass
class Contender:
    """``tasks``: name -> an action that does one piece of work and returns how many items (images, tokens) that was.

    Peak memory is taken over the first task.
    """

    tasks: Mapping[str, Callable[[], float]]
    parameters: int = 0


Makers = Mapping[str, Callable[[], Contender]]
Rounds = dict[str, dict[str, list[float]]]  # contender -> task -> items per second in each round
O = TypeVar("O", bound=BenchOptions)  # noqa: E741


def parse_options(kind: type[O], words: Sequence[str]) -> O:
    """Options from ``key=value`` words. Raises UserError naming the key."""
    options = kind()
    types = {item.name: getattr(item.type, "__name__", str(item.type)) for item in dataclasses.fields(kind)}
    for word in words:
        key, _, value = word.partition("=")
        if key not in types or not value:
            raise UserError(f"{word}: {did_you_mean(key, types)}options are {', '.join(f'{name}=' for name in types)}")
        setattr(options, key, _convert(word, value, types[key]))
    check(options)
    return options


def _convert(word: str, value: str, kind: str) -> Any:
    try:
        return int(value) if kind.startswith("int") else float(value) if kind.startswith("float") else value
    except ValueError:
        raise UserError(f"{word}: must be a {'whole ' if kind.startswith('int') else ''}number") from None


def run_bench(name: str, options: BenchOptions, makers: Makers, unit: str, note: str = "") -> int:
    """Time every contender of ``toolkit bench NAME``, print the table and write ``options.out``; returns the exit code.

    Args:
        name: of the benchmark, as on the command line.
        options: parsed; with ``only`` one contender's peak memory is measured and nothing is timed.
        makers: contender -> function that builds it; one is called "ours".
        unit: what the tasks count, such as "images".
        note: under the table: shapes and sizes.

    Raises UserError for an ``only`` that is no contender.
    """
    check_writable(options.out, "out")
    prepare(options)
    if options.only:  # the child process that measures one contender's peak memory
        if options.only not in makers:
            raise UserError(
                f"only={options.only}: {did_you_mean(options.only, makers)}contenders are {', '.join(makers)}"
            )
        rise = _peak_memory(makers[options.only], options.device)
        print(json.dumps({"peak_memory_mib": rise, "peak_resident_mib": _most_resident_bytes() / 2**20}))
        return 0
    contenders = {key: make() for key, make in makers.items()}
    rounds = time_rounds(contenders, options.num_rounds, CLOCKS[options.clock])
    results = summary(contenders, rounds, unit)
    for key in makers if options.memory == "true" else ():
        results[key] |= _child_memory(name, options, key)
    how = f"medians of {options.num_rounds} rounds, {options.clock} time"
    show(_table(name, results, f"{unit} per second, {how}; {note}"))
    if options.out:
        made_by = {"command": f"toolkit bench {name}", "machine": machine(), "versions": package_versions()}
        found = {"options": dataclasses.asdict(options), "results": results, "rounds": rounds}
        write_json(options.out, made_by | found)
    return 0


def prepare(options: BenchOptions) -> None:
    """Threads and allocator, for every contender alike: our jobs tune glibc's, which helps their peers too."""
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: no CUDA device here")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.clock == "cpu" and (options.device != "cpu" or torch.get_num_threads() != 1):
        raise UserError("clock=cpu: processor time is comparable on one thread of a CPU only; add threads=1 device=cpu")
    if options.allocator == "tuned":
        keep_freed_memory()


def endless_loop(config: Job, stage: str, state: Mapping[str, Any]) -> tuple[Loop, Iterator[int]]:
    """A job's loop over ``stage``, and its steps, in a run folder of its own that goes away when the process ends."""
    from toolkit.runs.loop import Loop
    from toolkit.runs.record import Run

    kept = contextlib.ExitStack()
    atexit.register(kept.close)
    run = Run(tempfile.mkdtemp(prefix="bench-"), config)
    kept.callback(shutil.rmtree, run.dir)
    run.open([])
    kept.callback(run.close, "interrupted")
    kept.enter_context(run.stage(stage))
    loop = Loop(run, stage, 10**9, state=dict(state))
    return loop, kept.enter_context(contextlib.closing(iter(loop)))


def processor_time() -> float:
    """Seconds that this process and those it has waited for spent on processors."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


CLOCKS: dict[str, Callable[[], float]] = {"wall": lambda: time.perf_counter(), "cpu": processor_time}


def time_rounds(
    contenders: Mapping[str, Contender], num_rounds: int, clock: Callable[[], float] = CLOCKS["wall"]
) -> Rounds:
    """Items per second of every task of every contender, round by round: a round of all of them, then the next."""
    tasks = list(dict.fromkeys(task for contender in contenders.values() for task in contender.tasks))
    for contender in contenders.values():  # warm-up
        for action in contender.tasks.values():
            action()
    rounds: Rounds = {name: {task: [] for task in contender.tasks} for name, contender in contenders.items()}
    for _ in range(num_rounds):
        for task in tasks:
            for name, contender in contenders.items():
                if task in contender.tasks:
                    rounds[name][task].append(_speed(contender.tasks[task], clock))
    return rounds


def summary(contenders: Mapping[str, Contender], rounds: Rounds, unit: str) -> dict[str, dict[str, float]]:
    """Per contender: parameters, and per task the median speed and the median of ours over it, round by round."""
    results: dict[str, dict[str, float]] = {}
    for name, contender in contenders.items():
        results[name] = {"parameters": contender.parameters}
        for task, speeds in rounds[name].items():
            results[name][f"{task}_{unit}_per_s"] = statistics.median(speeds)
            if task in rounds.get(OURS, {}):
                results[name][f"{task}_ratio_to_ours"] = statistics.median(paired_ratios(rounds[OURS][task], speeds))
    return results


def paired_ratios(ours: Sequence[float], peer: Sequence[float]) -> list[float]:
    """Speeds of ours over the peer's, round by round."""
    return [one / it for one, it in zip(ours, peer, strict=True)]


def _speed(action: Callable[[], float], clock: Callable[[], float]) -> float:
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = clock()
    num_items = action()
    wait()
    return num_items / (clock() - start)


def _child_memory(name: str, options: BenchOptions, contender: str) -> dict[str, float]:
    """Peak memory of one contender alone, in a process of its own: what the first task adds, and all in all."""
    asked = dataclasses.replace(options, only=contender, out=None)
    words = [f"{key}={value}" for key, value in dataclasses.asdict(asked).items() if value is not None]
    command = [sys.executable, "-m", "toolkit.cli", "bench", name, *words]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise JobError(f"bench {name}: peak memory of {contender} was not measured: {said[-1]} (memory=false: without)")
    return json.loads(done.stdout.splitlines()[-1])


def _peak_memory(make: Callable[[], Contender], device: str) -> float:
    """MiB by which the first task raises the memory above what the contender took before it."""
    contender = make()
    action = next(iter(contender.tasks.values()))
    if device == "cuda":
        import torch

        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        action()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before, peak, done = _resident_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        action()
    finally:  # a thread that watches on would keep the process from ending
        done.set()
        watcher.join()
    return (peak - before) / 2**20


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _most_resident_bytes() -> int:
    """Since the process started; ``getrusage`` would count the process that started it."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def _table(name: str, results: dict[str, dict[str, float]], note: str) -> Table:
    """One row for every task of a contender; what belongs to the contender stands in its first row."""
    rows: list[list[float | str]] = []
    for contender, found in results.items():
        speeds = [key for key in found if key.endswith("_per_s")]
        for row, key in enumerate(speeds):
            task = key.split("_")[0]
            ratio = found.get(f"{task}_ratio_to_ours", "–")
            shared = [found.get("peak_memory_mib"), found.get("peak_resident_mib")]
            rows.append([contender, task, found[key], ratio, *(shared if row == 0 else ["", ""])])
    heads = ["contender", "task", "per second", "ours / it", "MiB added", "MiB in all"]
    return Table(f"bench {name}", heads, rows, note)
