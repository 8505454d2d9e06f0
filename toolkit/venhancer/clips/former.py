"""What a run has finished before: which clips, and where their frames are, to be written once more in another way."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from toolkit.data.video.write import identity
from toolkit.errors import UserError
from toolkit.runs.record import Run
from toolkit.venhancer.clips.inputs import Task
from toolkit.venhancer.config import EnhanceVideo


def is_done(run: Run, task: Task, config: EnhanceVideo) -> bool:
    """Whether the clip is made, and written to where and as the config says now."""
    entry = _entry(run, task)
    if entry is None:
        return False
    return entry["output"] == str(task.output) and entry.get("written", asdict(config.encode)) == asdict(config.encode)


def former_of(run: Run, task: Task) -> Path | None:
    """The file of a clip that is done, None of one that is not. Raises UserError where it is no longer there."""
    entry = _entry(run, task)
    if entry is None or "identity" not in entry:
        return None
    path = Path(entry["output"])
    if not path.exists() or identity(path) != entry["identity"]:
        what = "is not what the run wrote there" if path.exists() else "is no longer there"
        raise UserError(f"output={task.output}: {path}, of which it is to be written, {what}; begin another run")
    return path


def _entry(run: Run, task: Task) -> dict[str, Any] | None:
    entry = run.record.get("clips", {}).get(task.name)
    return entry if entry is not None and entry.get("status") == "done" else None
