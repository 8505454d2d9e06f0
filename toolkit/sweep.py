"""What Hydra does not tell about a sweep: how each job ended; and how to take one up again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import OmegaConf
from yaml import YAMLError

from toolkit.commands import COMMANDS
from toolkit.runs.distributed import rank
from toolkit.runs.files import remove_empty
from toolkit.runs.record import read_record
from toolkit.schema import UserError

directory: Path | None = None  # of the sweep that runs in this process
_before: dict[Path, bytes | None] = {}  # what its files held when it started


class SweepCallback(Callback):
    """Registered in conf/job.yaml: notes where the sweep writes."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Start a fresh list of how the jobs ended."""
        global directory
        directory = Path(config.hydra.sweep.dir)
        if rank() == 0:
            for path in (directory / "jobs.jsonl", directory / "multirun.yaml"):
                _before[path] = path.read_bytes() if path.exists() else None
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "jobs.jsonl").write_text("")


def forget() -> None:
    """Forget the sweep before this one (several launches may share a process)."""
    global directory
    directory = None
    _before.clear()


def take_back() -> None:
    """Undo what a sweep wrote that was refused before its first job."""
    if directory and not (directory / "jobs.jsonl").read_text():
        for path, content in _before.items():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)
        remove_empty(directory)


def note_job(sweep_dir: Path, number: int, folder: Path, exit_code: int, message: str) -> None:
    """Add how a job ended to the sweep's list."""
    line = json.dumps({"job": number, "dir": str(folder), "exit_code": exit_code, "message": message})
    if rank() == 0:
        with open(sweep_dir / "jobs.jsonl", "a") as file:  # one short write: whole lines even from parallel jobs
            file.write(line + "\n")


def report() -> int:
    """Print how each job ended; 0 when all are done, 1 when any failed."""
    assert directory
    lines = (directory / "jobs.jsonl").read_text().splitlines()
    jobs = sorted((json.loads(line) for line in lines), key=lambda job: job["job"])
    failed = [job for job in jobs if job["exit_code"]]
    if rank() == 0:
        print(f"{len(jobs) - len(failed)} of {len(jobs)} jobs done in {directory}")
        for job in failed:
            print(f"  job {job['job']} failed ({job['dir']}): {job['message']}")
        if failed:
            print(f"repeat what is missing with: toolkit runs resume {shlex.quote(str(directory))}")
    return 1 if failed else 0


def resume(folder: Path) -> int:
    """Continue a run or a sweep from what its folder says; returns the exit code.

    Raises UserError when the folder holds neither, or one of a command that is not there.
    """
    from toolkit.launch import launch

    if (folder / "multirun.yaml").exists():
        saved = _saved(folder / "multirun.yaml")
        kept = [word for word in saved.hydra.overrides.hydra if not word.startswith(("hydra.sweep.dir", "hydra.mode"))]
        overrides = OmegaConf.to_container(saved.hydra.overrides.task)  # as typed: ${...} is left alone
        assert isinstance(overrides, list)
        words = ["-m", *_flags(saved.hydra), *overrides, *kept, f"hydra.sweep.dir={_quoted(folder)}"]
        return launch(_known(folder, saved.command), words)
    record = read_record(folder)
    if record is None:
        raise UserError(f"{folder}: neither a run (no run.json) nor a sweep (no multirun.yaml)")
    flags = (
        _flags(_saved(folder / ".hydra" / "hydra.yaml").hydra) if (folder / ".hydra" / "hydra.yaml").exists() else []
    )
    return launch(_known(folder, record["command"]), [*flags, *record["overrides"], f"hydra.run.dir={_quoted(folder)}"])


def _saved(path: Path) -> Any:
    try:
        return OmegaConf.load(path)
    except (YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _known(folder: Path, command: str) -> str:
    if command not in COMMANDS:
        raise UserError(f"{folder}: a run of {command}, which is not a command of this version")
    return command


def _flags(hydra: Any) -> list[str]:
    """The flags that a user's own folder of configs came with."""
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return [word for folder in folders for word in ("--config-dir", folder)]


def _quoted(path: Path) -> str:
    """A path as a value in Hydra's grammar."""
    return "'" + str(path).replace("'", "\\'") + "'"
