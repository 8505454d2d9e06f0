"""What Hydra does not tell about a launch: which folders it makes, how each job of a sweep ended."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from toolkit.runs.distributed import rank
from toolkit.runs.files import missing, remove_empty

directory: Path | None = None  # of the sweep that runs in this process
_before: dict[Path, bytes | None] = {}  # what its files held when it started
new_folders: list[Path] = []  # the folders that this launch makes, the innermost first


class SweepCallback(Callback):
    """Registered in conf/job.yaml: notes where a launch writes."""

    def on_run_start(self, config: Any, **_: Any) -> None:
        """Note which folders a single run makes; Hydra makes them before the job is asked."""
        new_folders[:] = missing(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Start a fresh list of how the jobs ended."""
        global directory
        directory = Path(config.hydra.sweep.dir)
        new_folders[:] = missing(directory)
        if rank() == 0:
            for path in (directory / "jobs.jsonl", directory / "multirun.yaml"):
                _before[path] = path.read_bytes() if path.exists() else None
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "jobs.jsonl").write_text("", encoding="utf-8")


def forget() -> None:
    """Forget the sweep before this one (several launches may share a process)."""
    global directory
    directory = None
    _before.clear()
    new_folders.clear()


def take_back() -> None:
    """Undo what a sweep wrote that was refused before its first job."""
    if directory and rank() == 0 and not (directory / "jobs.jsonl").read_text(encoding="utf-8"):
        for path, content in _before.items():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)
        remove_empty(new_folders)


def note_job(sweep_dir: Path, number: int, folder: Path, exit_code: int, message: str) -> None:
    """Add how a job ended to the sweep's list."""
    line = json.dumps({"job": number, "dir": str(folder), "exit_code": exit_code, "message": message})
    if rank() == 0:
        with open(
            sweep_dir / "jobs.jsonl", "a", encoding="utf-8"
        ) as file:  # one short write: whole lines even from parallel jobs
            file.write(line + "\n")


def report(lost: bool = False) -> int:
    """Print how each job ended; 0 when all are done, 1 when any failed.

    lost: the launcher gave up, as when a worker was killed; then jobs that began and did not end are named too.
    """
    assert directory
    lines = (directory / "jobs.jsonl").read_text(encoding="utf-8").splitlines()
    ended = {job["job"]: job for job in map(json.loads, lines)}  # the last word on a job that was queued again
    jobs = [ended[number] for number in sorted(ended)]
    failed = [job for job in jobs if job["exit_code"]]
    begun = [path.parent for path in directory.glob("*/run.json") if path.parent.name.isdigit()] if lost else []
    cut_off = sorted((path for path in begun if int(path.name) not in ended), key=lambda path: int(path.name))
    if rank() == 0:
        remove_empty([directory / ".submitit" / "%j"])  # submitit_local makes it and does not use it
        print(f"{len(jobs) - len(failed)} of {len(jobs) + len(cut_off)} jobs done in {directory}")
        for job in failed:
            print(f"  job {job['job']} failed ({job['dir']}): {job['message']}")
        for path in cut_off:
            print(f"  job {path.name} did not end ({path})")
        if failed or lost:
            print(f"repeat what is missing with: toolkit runs resume {shlex.quote(str(directory))}")
    return 1 if failed or lost else 0
