"""Runs the rows of rows.py, each within its own limit, and prints one table: `python -m tests.device.table`.

A row that fails or takes too long stops no other. The exit code is 0 only where every row passed. With --out the table
is written as JSON, with the name of the device that computed it. --device cpu is a rehearsal of the script.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.device.rows import Row, rows

ROOT = Path(__file__).parents[2]
LIMIT_S = 480.0  # of a GPU run; a row that cannot begin before has not passed
REHEARSAL_S = 7200.0
WIDTH = 100  # of what is said of a row


@dataclass(frozen=True)
class Result:
    """How a row ended. ``said``: its last line, or the ratio to its peer."""

    name: str
    group: str
    passed: bool
    seconds: float
    limit_s: float
    said: str


def attempt(row: Row, deadline: float, folder: Path) -> Result:
    """Run one row; its output stays in ``folder``. ``deadline``: as time.monotonic gives it."""
    started = time.monotonic()
    limit_s = min(row.limit_s, deadline - started)
    if limit_s <= 0:
        return Result(row.name, row.group, False, 0.0, row.limit_s, "not run: the time was spent")
    log = folder / (row.name.replace(" ", "_").replace("/", "per") + ".log")
    with log.open("w") as file:
        process = subprocess.Popen(
            row.command, cwd=ROOT, env=_environment(row), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
            said = f"exit code {code}: " if code else ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code, said = process.wait(), f"stopped after {limit_s:.0f} s: "
    passed = code == 0
    said += "done" if passed and row.group != "parity" else _last_line(log)
    if passed and row.out:
        said = _ratios(row)
    return Result(row.name, row.group, passed, round(time.monotonic() - started, 1), row.limit_s, said[:WIDTH])


def _environment(row: Row) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "120"} | row.environment


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if any(map(str.isalnum, line))), "said nothing")


def _ratios(row: Row) -> str:
    """Ours over the peer's speed, task by task."""
    assert row.out is not None
    found = json.loads(row.out.read_text())["results"][row.peer]
    end = "_ratio_to_ours"
    return ", ".join(f"{key.removesuffix(end)} {value:.2f}" for key, value in found.items() if key.endswith(end))


def run(asked: list[Row], limit_s: float, jobs: int, folder: Path) -> list[Result]:
    """All results in the rows' order; ``jobs`` at a time, those to be alone one after another at the end."""
    deadline = time.monotonic() + limit_s

    def one(row: Row) -> Result:
        result = attempt(row, deadline, folder)
        print(f"{'pass' if result.passed else 'FAIL'}  {result.name}: {result.said}", file=sys.stderr, flush=True)
        return result

    together = [row for row in asked if not row.alone]
    with ThreadPoolExecutor(jobs) as pool:
        found = dict(zip((row.name for row in together), pool.map(one, together), strict=True))
    found |= {row.name: one(row) for row in asked if row.alone}
    return [found[row.name] for row in asked]


def device_name(device: str) -> str:
    """The card's name, or the processor's. Raises SystemExit where there is no such device."""
    if device == "cpu":
        from toolkit.runs.machine import processor

        return processor()
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("--device cuda: no CUDA device here; --device cpu rehearses the script")
    return torch.cuda.get_device_name()


def page(results: list[Result], title: str) -> str:
    """The table as text."""
    width = max(len(one.name) for one in results)
    lines = [title, f"{'':4}  {'row':{width}}  {'seconds':>7}  said"]
    lines += [
        f"{'pass' if one.passed else 'FAIL':4}  {one.name:{width}}  {one.seconds:7.1f}  {one.said}" for one in results
    ]
    return "\n".join([*lines, f"{sum(one.passed for one in results)} of {len(results)} rows passed"])


def record(results: list[Result], device: str, name: str) -> dict[str, Any]:
    """What --out writes."""
    from toolkit.runs.machine import git_commit, package_versions

    kind = "rehearsal on a processor: no GPU was there" if device == "cpu" else "GPU"
    about = {"kind": kind, "device": name, "versions": package_versions(), "git_commit": git_commit()}
    return about | {"rows": [asdict(one) for one in results]}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    parser.add_argument("--only", action="append", default=[], help="rows whose name or group holds this word")
    parser.add_argument(
        "--limit", type=float, help=f"seconds for all rows ({LIMIT_S:.0f}; rehearsal {REHEARSAL_S:.0f})"
    )
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 4), help="rows at a time")
    asked = parser.parse_args(words)
    name = device_name(asked.device)
    limit_s = asked.limit or (REHEARSAL_S if asked.device == "cpu" else LIMIT_S)
    folder = Path(tempfile.mkdtemp(prefix="device-"))
    chosen = [
        row
        for row in rows(asked.device, folder)
        if not asked.only or any(word in (row.group, *row.name.replace(",", "").split()) for word in asked.only)
    ]
    if not chosen:
        raise SystemExit(f"--only {' '.join(asked.only)}: no such row")
    results = run(chosen, limit_s, asked.jobs, folder)
    print(page(results, f"{name}; outputs in {folder}"))
    if asked.out:
        asked.out.write_text(json.dumps(record(results, asked.device, name), indent=1) + "\n")
    return 0 if all(one.passed for one in results) else 1


if __name__ == "__main__":
    sys.exit(main())
