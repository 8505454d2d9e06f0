"""Taking up a run or a sweep again, from what its folder says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from toolkit import renamed
from toolkit.commands import COMMANDS
from toolkit.errors import UserError
from toolkit.runs.record import read_record
from toolkit.spelling import spelled


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
        words = ["-m", *_flags(saved.hydra), *overrides, *kept, f"hydra.sweep.dir={spelled(folder)}"]
        return launch(_known(folder, saved.command), words)
    record = read_record(folder)
    if record is None:
        raise UserError(f"{folder}: neither a run (no run.json) nor a sweep (no multirun.yaml)")
    flags = (
        _flags(_saved(folder / ".hydra" / "hydra.yaml").hydra) if (folder / ".hydra" / "hydra.yaml").exists() else []
    )
    command, overrides = _known(folder, record["command"]), record["overrides"]
    pins = renamed.pinned(command, overrides, record["config"])
    return launch(command, [*flags, *overrides, *pins, f"hydra.run.dir={spelled(folder)}"])


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
