"""Reading run folders back: ``toolkit runs list | show | compare``.

Damaged records are reported in one line and never stop the rest. Nothing heavy is imported.
"""

from __future__ import annotations

import dataclasses
import glob
import math
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import UserError
from toolkit.runs.reading import is_locked, read_record
from toolkit.schema import Job
from toolkit.show.table import Cell, Spread, Table, format_cell

COSMETIC = frozenset(item.name for item in dataclasses.fields(Job) if not item.metadata.get("computes", True))
# Words in a metric's name that say "more is better"; everything else is a loss, a distance or a cost.
HIGHER_IS_BETTER = ("accuracy", "precision", "recall", "information", "nmi", "psnr", "ssim", "agreement", "coverage")
NAMED_DIFFERENCES = 2  # groups that differ in at most so many keys are named by them


@dataclass
class RunInfo:
    """One run folder as it stands; ``problem`` is empty unless the record could not be read."""

    dir: Path
    record: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def status(self) -> str:
        """running, done, failed, interrupted, or damaged; a running run that nobody holds was interrupted."""
        if self.problem:
            return "damaged"
        status = str(self.record.get("status", "unknown"))
        return "interrupted" if status == "running" and not is_locked(self.dir) else status

    @property
    def command(self) -> str:
        return str(self.record.get("command", ""))

    @property
    def config(self) -> dict[str, Any]:
        """The config with dotted keys."""
        return flatten(self.record.get("config", {}))

    @property
    def metrics(self) -> dict[str, float]:
        items = _mapping(self.record.get("metrics")).items()
        return {key: float(value) for key, value in items if isinstance(value, (int, float))}


@dataclass
class Group:
    """Runs of one command whose configs differ only in the key that is averaged over."""

    config: dict[str, Any]
    runs: list[RunInfo]
    name: str = ""


def read_run(folder: str | Path) -> RunInfo:
    """The run in ``folder``; a missing or damaged record is told in ``problem``."""
    folder = Path(folder)
    try:
        record = read_record(folder)
    except (UserError, OSError) as error:
        return RunInfo(folder, problem=str(error))
    return RunInfo(folder, record) if record else RunInfo(folder, problem=f"{folder}: no run.json here")


def find_runs(root: str | Path, command: str | None = None) -> list[RunInfo]:
    """Every run below ``root`` (or ``root`` itself), single runs and sweeps alike, oldest folder name first."""
    found = []
    for folder, subfolders, files in os.walk(root):
        if "run.json" in files:
            subfolders.clear()  # a run holds no other runs
            found.append(read_run(folder))
    chosen = [run for run in found if command is None or run.problem or run.command == command]
    return sorted(chosen, key=lambda run: _natural(run.dir))


def resolve_runs(dirs_or_globs: Iterable[str | Path]) -> list[RunInfo]:
    """The runs that folders or patterns name, each once. Raises UserError for one that names none."""
    found: dict[Path, RunInfo] = {}
    for item in dirs_or_globs:
        matches = [str(item)] if Path(item).is_dir() else sorted(glob.glob(str(item), recursive=True))
        runs = [run for match in matches if Path(match).is_dir() for run in find_runs(match)]
        if not runs:
            raise UserError(f"{item}: no run there (a run folder holds run.json); see `toolkit runs list`")
        found.update({run.dir.resolve(): run for run in runs})
    return list(found.values())


def list_runs(root: str | Path = "runs", command: str | None = None) -> Table:
    """One row per run below ``root``: where, status and how far, seed, wall time, overrides or the error.

    Raises UserError for a ``root`` that is no folder, but for ``runs``, which is there after the first run.
    """
    runs = _runs_below(root, command)
    rows: list[list[Cell]] = []
    statuses = [run.status for run in runs]
    for run, status in zip(runs, statuses, strict=True):
        record = run.record
        problem = run.problem.removeprefix(f"{run.dir}{os.sep}")
        said = problem or _first_line(record.get("error")) or " ".join(map(str, record.get("overrides") or []))
        seed = None if record.get("seed") is None else str(record["seed"])
        time = duration(record.get("wall_time_s"))
        rows.append([os.path.relpath(run.dir, root), _how_far(run, status), seed, time, said])
    columns = ["run", "status", "seed", "wall time", "overrides or error"]
    counts = Counter(statuses)
    note = ", ".join(f"{counts[status]} {status}" for status in sorted(counts))
    return Table(f"Runs in {root}", columns, rows, note or "no runs here yet", single_line=True)


def listed_runs(root: str | Path = "runs", command: str | None = None) -> list[dict[str, Any]]:
    """:func:`list_runs` as plain values, for programs; the objective is what a sweeper minimises."""
    same = ("command", "seed", "overrides", "started", "ended", "wall_time_s", "objective")
    return [
        {"run": str(run.dir), "status": run.status, **{key: run.record.get(key) for key in same}}
        | {"stages": _mapping(run.record.get("stages")), "error": run.problem or run.record.get("error")}
        for run in _runs_below(root, command)
    ]


def shown_record(folder: str | Path) -> dict[str, Any]:
    """The record of a run, with its status as it is now. Raises UserError if damaged."""
    run = _whole_run(folder)
    return run.record | {"status": run.status}


def _whole_run(folder: str | Path) -> RunInfo:
    run = read_run(folder)
    if run.problem:
        raise UserError(run.problem)
    return run


def _runs_below(root: str | Path, command: str | None) -> list[RunInfo]:
    if str(root) != "runs" and not Path(root).is_dir():
        raise UserError(f"{root}: no such folder; runs are listed below one")
    return find_runs(root, command)


def show_run(folder: str | Path) -> list[Table]:
    """What ``toolkit runs show`` prints: facts, stages, metrics, config and files. Raises UserError if damaged."""
    run = _whole_run(folder)
    metrics: list[list[Cell]] = [[key, value] for key, value in run.metrics.items()]
    config: list[list[Cell]] = [[key, show_value(value)] for key, value in run.config.items()]
    tables = [
        Table(str(run.dir), ["fact", "value"], facts(run)),
        Table("Stages", ["stage", "status", "step", "wall time"], _stages(run)),
        Table("Metrics", ["metric", "value"], metrics),
        Table("Config", ["key", "value"], config),
        Table("Files", ["folder", "files"], _files(run.dir)),
    ]
    return [table for table in tables if table.rows]


def compare_runs(dirs_or_globs: Sequence[str | Path], over: str = "seed") -> list[Table]:
    """Metrics as mean, sd and n over runs that differ only in ``over``, the best run of each, and what differs.

    Only finished runs count; the others are named in the note. Raises UserError when no finished run is left.
    """
    return compare(resolve_runs(dirs_or_globs), over)


def compare(runs: Sequence[RunInfo], over: str = "seed") -> list[Table]:
    """:func:`compare_runs` for runs already read."""
    finished = [run for run in runs if run.status == "done"]
    left_out = [f"{run.dir} ({run.status})" for run in runs if run.status != "done"]
    if not finished:
        raise UserError(f"no finished run to compare: {'; '.join(left_out) or 'none given'}")
    groups = group_runs(finished, over)
    tables = [_metric_table(groups, over, left_out)]
    return tables + ([_difference_table(groups)] if len(groups) > 1 else [])


def group_runs(runs: Sequence[RunInfo], over: str = "seed") -> list[Group]:
    """Group by command and config, leaving out ``over`` and keys that do not change what is computed."""
    groups: dict[tuple[str, str], Group] = {}
    for run in runs:
        config = {key: value for key, value in run.config.items() if key != over and key not in COSMETIC}
        key = (run.command, repr(sorted(config.items())))
        groups.setdefault(key, Group({"command": run.command, **config}, [])).runs.append(run)
    _name_groups(list(groups.values()))
    return list(groups.values())


def differing_keys(configs: Sequence[dict[str, Any]]) -> list[str]:
    """The keys that do not have one value in all ``configs``, in order of appearance; last those that some lack and
    that have one value in the others."""
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differing = [key for key in keys if len({repr(config.get(key, ABSENT)) for config in configs}) > 1]
    return sorted(differing, key=lambda key: not _is_contrast(key, configs))


def _is_contrast(key: str, configs: Sequence[dict[str, Any]]) -> bool:
    """Whether two of ``configs`` have the key with different values."""
    return len({repr(config[key]) for config in configs if key in config}) > 1


def facts(run: RunInfo) -> list[list[Cell]]:
    """What one wants to know first about a run: status, times, machine, versions."""
    record = run.record
    machine, versions = _mapping(record.get("machine")), _mapping(record.get("versions"))
    values = {
        "command": shlex.join(["toolkit", run.command, *map(str, record.get("overrides") or [])]),
        "status": run.status,
        "error": record.get("error"),
        "seed": record.get("seed"),
        "started": record.get("started"),
        "ended": record.get("ended"),
        "wall time": duration(record.get("wall_time_s")),
        "peak memory": f"{record['peak_memory_mib']:.0f} MiB" if record.get("peak_memory_mib") else None,
        "device": record.get("device"),
        "config hash": record.get("config_hash"),
        "git commit": record.get("git_commit"),
        **{str(key): value for key, value in machine.items()},
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return [[key, str(value)] for key, value in values.items() if value not in (None, "")]


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A nested dictionary with dotted keys."""
    if not isinstance(config, dict):
        return {}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, dict) and value
        flat.update(flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return flat


def show_value(value: Any) -> str:
    """A config value as one would type it."""
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(show_value, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return format_cell(value)


def duration(seconds: Any) -> str:
    """Seconds as ``12.3 s``, ``4 min 05 s`` or ``2 h 07 min``; empty when unknown."""
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


ABSENT = "–"
ABOUT_ABSENT = f"{ABSENT}: no key of that run; an older version, or another choice of method or network, lacks it"


def _name_groups(groups: list[Group]) -> None:
    """By the keys that differ, those that some lack only where no other tells the groups apart; else by letters."""
    configs = [group.config for group in groups]
    keys = differing_keys(configs)
    contrasts = [key for key in keys if _is_contrast(key, configs)]
    if len({repr([config.get(key, ABSENT) for key in contrasts]) for config in configs}) == len(groups):
        keys = contrasts
    for index, group in enumerate(groups):
        named = ", ".join(f"{key}={show_value(group.config.get(key, ABSENT))}" for key in keys)
        letter = chr(ord("A") + index) if index < 26 else f"group {index + 1}"
        group.name = named if keys and len(keys) <= NAMED_DIFFERENCES else letter
    if len(groups) == 1:
        groups[0].name = "value"


def _metric_table(groups: list[Group], over: str, left_out: list[str]) -> Table:
    keys = dict.fromkeys(key for group in groups for run in group.runs for key in run.metrics)
    rows: list[list[Cell]] = []
    for key in keys:
        spreads: list[Cell] = []
        for group in groups:
            values = [run.metrics[key] for run in group.runs if key in run.metrics]
            spreads.append(Spread.of(values) if values else None)
        rows.append([key, *spreads, _best(key, groups, over)])
    note = f"mean ± sample standard deviation over {over}, n runs"
    note = note if rows else "these runs recorded no metrics"
    note += f"; not counted: {'; '.join(left_out)}" if left_out else ""
    return Table("Comparison", ["metric", *(group.name for group in groups), "best run"], rows, note)


def _best(key: str, groups: list[Group], over: str) -> str:
    """The best run, and whether best means lowest or highest: the reader sees what was assumed."""
    highest = any(word in key.lower() for word in HIGHER_IS_BETTER)
    found = [
        (run.metrics[key], g, run) for g in groups for run in g.runs if math.isfinite(run.metrics.get(key, math.nan))
    ]
    if not found:
        return ABSENT
    value, group, run = (max if highest else min)(found, key=lambda item: item[0])
    which = f"{over}={show_value(run.config.get(over, ABSENT))}"
    where = which if len(groups) == 1 else f"{group.name}, {which}"
    return f"{where}: {format_cell(value)} ({'highest' if highest else 'lowest'})"


def _difference_table(groups: list[Group]) -> Table:
    rows: list[list[Cell]] = []
    for key in differing_keys([group.config for group in groups]):
        rows.append([key, *(show_value(group.config.get(key, ABSENT)) for group in groups)])
    note = ABOUT_ABSENT if any(ABSENT in row for row in rows) else ""
    return Table("What differs", ["key", *(group.name for group in groups)], rows, note)


def _how_far(run: RunInfo, status: str) -> str:
    """The status, and for a run that has not finished how far it came."""
    stages = list(_mapping(run.record.get("stages")).items())
    if status in ("done", "damaged") or not stages:
        return status
    name, entry = stages[-1]
    return f"{status} ({name} {entry.get('step') or ''}".rstrip() + ")"


def _stages(run: RunInfo) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for name, entry in _mapping(run.record.get("stages")).items():
        rows.append([name, entry.get("status"), entry.get("step"), duration(entry.get("wall_time_s"))])
    return rows


def _files(folder: Path) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for item in sorted(folder.iterdir()):
        if item.name.startswith(".") or item.name == "run.lock":
            continue
        inside = (
            [str(path.relative_to(item)) for path in sorted(item.rglob("*")) if path.is_file()] if item.is_dir() else []
        )
        said = ", ".join(inside[:8]) + (f" and {len(inside) - 8} more" if len(inside) > 8 else "")
        rows.append([item.name, said if item.is_dir() else f"{item.stat().st_size} bytes"])
    return rows


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _first_line(text: Any) -> str:
    return str(text).strip().splitlines()[0] if text else ""


def _natural(path: Path) -> list[Any]:
    """Sort key under which ``sweeps/x/10`` follows ``sweeps/x/9``."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.parts]
