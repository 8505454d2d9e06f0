"""``toolkit bench all``: every benchmark in one run and one table, each ratio beside its goal; two records compared.

Every benchmark is a process of its own, so that one neither warms nor spoils the next; one that fails is a row that
says so. What is timed needs nothing fetched: peers come from installed packages, official code only from checkouts
that are named (edm=PATH, checkout=PATH, official=PATH, litgpt=PATH, nanochat=PATH).

A ratio is our speed over the peer's, round by round: the median, and the lower and upper quartile as its spread.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.bench import OURS, BenchOptions, paired_ratios, parse_options
from toolkit.errors import UserError, did_you_mean
from toolkit.plain_files import check_writable
from toolkit.runs.files import write_json
from toolkit.runs.machine import git_commit, machine, package_versions
from toolkit.runs.output import tell
from toolkit.schema import choice, number
from toolkit.show.table import Cell, Table
from toolkit.show.terminal import show


@dataclass(frozen=True)
class Goal:
    """A ratio of one benchmark: speed of ``ours`` over that of ``peer`` at ``task``, which should be ``least``.

    ``least`` is None where a ratio is shown without a goal.
    """

    task: str
    peer: str
    least: float | None = None
    ours: str = OURS


@dataclass(frozen=True)
class Benchmark:
    """``toolkit bench PAPER WORDS`` and its goals. ``takes``: options of the whole that are passed on where given."""

    name: str
    paper: str
    words: tuple[str, ...]
    goals: tuple[Goal, ...]
    takes: tuple[str, ...] = ()


TWO_CALLS = 1 / 1.02  # as fast as classifier-free guidance in the same loop, with 2 % to spare
NETWORKS = ("unet", "dit", "mmdit")
BENCHMARKS = (
    Benchmark(
        "disco",
        "disco",
        ("num_steps=3",),
        (
            Goal("train", "edm", 1.3),
            Goal("train", "diffusers"),
            Goal("sample", "diffusers"),
            Goal("train", "bare"),
            Goal("train", "convolutions"),
            Goal("sample", "bare", 1 / 1.02),
        ),
        ("edm",),
    ),
    Benchmark("disco_8px", "disco", ("size_px=8", "num_steps=5"), (Goal("train", "bare", 1 / 1.03),)),
    Benchmark(
        "icg",
        "icg",
        (),
        tuple(
            goal
            for network in NETWORKS
            for goal in (
                Goal(network, "cfg", TWO_CALLS),
                Goal(network, "cfg", TWO_CALLS, ours="tsg"),
                Goal(network, OURS, 1 / 0.75, ours="half"),
                Goal(network, "native", 1.0, ours="batched"),
            )
        ),
    ),
    Benchmark(
        "ivideogpt",
        "ivideogpt",
        ("tasks=rollout,generate", "num_future=4"),
        (Goal("rollout", "official", 5.0), Goal("generate", "full", 15.0), Goal("rollout", "in_turn")),
        ("checkout",),
    ),
    Benchmark(
        "stacking",
        "stacking",
        (),
        (
            Goal("train", "trainer", 1.25),
            Goal("train", "litgpt", 1.25),
            Goal("train", "nanochat", 1.25),
            Goal("train", "bare"),
            Goal("train", "products"),
        ),
        ("litgpt", "nanochat"),
    ),
    Benchmark(
        "stacking_512",
        "stacking",
        ("width=512", "mlp=1408", "heads=8", "layers=4", "batch_size=8", "num_steps=1"),
        (Goal("train", "trainer", 1.0), Goal("train", "gemm", 0.75), Goal("train", "products")),
    ),
    Benchmark(
        "growth",
        "stacking",
        ("measure=growth", "source_layers=2", "folder={tmp}"),
        (Goal("grow", "copy", 1.0), Goal("grow", "transformers")),
    ),
    Benchmark(
        "venhancer_step",
        "venhancer",
        ("frames=4", "rows=26", "columns=40"),
        (Goal("step", "official"), Goal("step", "one_by_one")),
        ("official",),
    ),
    Benchmark(
        "venhancer_classic",
        "venhancer",
        ("what=classic",),
        (Goal("enhance", "ffmpeg", 1.3), Goal("enhance", "ffmpeg_blend", 1.0, ours="blend")),
    ),
)


@dataclass
class AllOptions(BenchOptions):
    """key=value options of ``bench all``; ``only`` names benchmarks, timeout_s bounds each of them."""

    num_rounds: int = number(5, least=1)
    memory: str = choice("false", "true", "false")
    timeout_s: float = number(300.0, above=0)
    edm: str | None = None
    checkout: str | None = None
    official: str | None = None
    litgpt: str | None = None
    nanochat: str | None = None


def main(words: Sequence[str]) -> int:
    """Run the benchmarks, print the table, write ``out``; 1 where one of them failed, whatever became of the goals."""
    options = parse_options(AllOptions, words)
    check_writable(options.out, "out")
    chosen = _chosen(options.only)
    record: dict[str, Any] = {
        "command": " ".join(["toolkit bench all", *words]),
        "commit": git_commit(),
        "machine": machine(),
        "versions": package_versions(),
        "options": dataclasses.asdict(options),
        "benchmarks": {},
    }
    for benchmark in chosen:
        record["benchmarks"][benchmark.name] = found = _run(benchmark, options)
        tell(f"{benchmark.name}: {found['problem'] or 'done'}, {found['time_s']:.0f} s")
        if options.out:  # after each, so that what is done is there whatever comes
            write_json(options.out, record)
    show(all_table(record))
    return 1 if any(found["problem"] for found in record["benchmarks"].values()) else 0


def _chosen(only: str | None) -> list[Benchmark]:
    known = {one.name: one for one in BENCHMARKS}
    names = only.split(",") if only else list(known)
    for name in names:
        if name not in known:
            raise UserError(f"only={name}: no such benchmark; {did_you_mean(name, known)}choose of {', '.join(known)}")
    return [known[name] for name in names]


def _run(benchmark: Benchmark, options: AllOptions) -> dict[str, Any]:
    """One benchmark in a process of its own: its words, seconds, rows, rounds, and the problem where it failed."""
    passed = [f"{name}={value}" for name in benchmark.takes if (value := getattr(options, name))]
    shared = [f"{name}={getattr(options, name)}" for name in ("num_rounds", "device", "allocator", "clock", "memory")]
    shared += [f"threads={options.threads}"] if options.threads else []
    words = [*shared, *benchmark.words, *passed]
    started, problem = time.perf_counter(), ""
    rounds: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-all-") as folder:
        out = Path(folder) / "bench.json"
        filled = [word.format(tmp=folder) if word.startswith("folder=") else word for word in words]
        command = [sys.executable, "-m", "toolkit.cli", "bench", benchmark.paper, *filled, f"out={out}"]
        try:
            done = subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", timeout=options.timeout_s
            )
            rounds = json.loads(out.read_text(encoding="utf-8"))["rounds"] if done.returncode == 0 else {}
            problem = "" if done.returncode == 0 else _last_line(done.stderr) or f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            problem = f"took more than {options.timeout_s:g} s"
        except (OSError, ValueError, KeyError) as error:
            problem = f"no record: {error}"
    rows = [row for goal in benchmark.goals if (row := _row(goal, rounds))]
    took = round(time.perf_counter() - started, 1)
    return {"words": words, "time_s": took, "problem": problem, "rows": rows, "rounds": rounds}


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def _row(goal: Goal, rounds: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Any] | None:
    """None where one of the two was not timed: a checkout that was not named."""
    ours, peer = (rounds.get(name, {}).get(goal.task) for name in (goal.ours, goal.peer))
    if not ours or not peer:
        return None
    ratios = paired_ratios(ours, peer)
    low, high = _quartiles(ratios)
    ratio = statistics.median(ratios)
    return {
        **dataclasses.asdict(goal),
        "ours_per_s": statistics.median(ours),
        "peer_per_s": statistics.median(peer),
        "ratio": ratio,
        "low": low,
        "high": high,
        "holds": None if goal.least is None else ratio >= goal.least,
    }


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def all_table(record: Mapping[str, Any]) -> Table:
    """The table of one record: a row for every ratio, one for every benchmark that failed."""
    rows: list[list[Cell]] = []
    for name, found in record["benchmarks"].items():
        for row in found["rows"]:
            holds = "–" if row["holds"] is None else "holds" if row["holds"] else "does not hold"
            pair = f"{row['ours']} / {row['peer']}"
            speeds = [row["ours_per_s"], row["peer_per_s"], round(row["ratio"], 3)]
            rows.append([name, row["task"], pair, *speeds, _rounded(row["least"]), holds])
        if found["problem"]:
            rows.append([name, "", found["problem"], None, None, None, None, "failed"])
    options, took = record["options"], sum(found["time_s"] for found in record["benchmarks"].values())
    where = f"{record['machine']['processor']}, {record['machine']['cores']} cores, commit {record['commit']}"
    how = f"{options['num_rounds']} rounds, {options['clock']} time, threads {options['threads'] or 'as torch chooses'}"
    heads = ["benchmark", "task", "ours / peer", "ours per s", "peer per s", "ratio", "goal", "holds"]
    return Table("bench all", heads, rows, f"medians of {how}; {took:.0f} s; {where}")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def compare(words: Sequence[str]) -> int:
    """``toolkit bench compare BEFORE AFTER``: print every ratio of two records; 1 where one got worse, else 0.

    A ratio got worse where its upper quartile lies below the lower one of before: beyond the spread of both.
    """
    if len(words) != 2:
        raise UserError("bench compare: takes two records of toolkit bench all, the earlier one first")
    before, after = (_load(Path(word)) for word in words)
    rows: list[list[Cell]] = []
    old, new = (_rows_of(record) for record in (before, after))
    for key in dict.fromkeys([*old, *new]):
        values = [None if row is None else round(row["ratio"], 3) for row in (old.get(key), new.get(key))]
        rows.append([*key, *values, _verdict(old.get(key), new.get(key))])
    heads = ["benchmark", "task", "ours / peer", "before", "after", "now"]
    show(Table(f"bench compare: {words[0]}, {words[1]}", heads, rows, _differences(before, after)))
    return 1 if any(row[-1] == "slower" for row in rows) else 0


def _load(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        _rows_of(record), record["machine"]["processor"], record["versions"].items()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: no record of toolkit bench all") from None
    return record


def _rows_of(record: Mapping[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {
        (name, row["task"], f"{row['ours']} / {row['peer']}"): {key: row[key] for key in ("ratio", "low", "high")}
        for name, found in record["benchmarks"].items()
        for row in found["rows"]
    }


def _verdict(before: Mapping[str, float] | None, after: Mapping[str, float] | None) -> str:
    if before is None or after is None:
        return "new" if before is None else "not timed"
    if after["high"] < before["low"]:
        return "slower"
    return "faster" if after["low"] > before["high"] else "as before"


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What else may be behind a change: another machine, other versions of peers."""
    pairs = {"processor": [record["machine"]["processor"] for record in (before, after)]}
    for name in dict.fromkeys([*before["versions"], *after["versions"]]):
        pairs[name] = [record["versions"].get(name, "none") for record in (before, after)]
    told = [f"{name} {old} -> {new}" for name, (old, new) in pairs.items() if old != new]
    return "ratios of speed, slower and faster beyond the quartiles of both" + "".join(f"; {one}" for one in told)
