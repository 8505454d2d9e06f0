"""Taking up a run or a sweep again, from what its folder says; nothing that the folder names is run."""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit import renamed
from toolkit.commands import COMMANDS
from toolkit.configs import SEARCHPATH, config_groups, known_keys
from toolkit.errors import UserError
from toolkit.paths import conf_dir
from toolkit.plain_files import read_yaml
from toolkit.runs.reading import read_record
from toolkit.runs.replay import check_replayed
from toolkit.spelling import spelled


def resume(folder: Path, config_dir: Path | None = None, changes: Sequence[str] = ()) -> int:
    """Continue a run or a sweep from what its folder says; returns the exit code.

    ``config_dir``: the user's own folder of configs, where the run was started with one. ``changes``: KEY=VALUE words
    of the user's in the place of those it was started with; the run says which may be changed. Raises UserError naming
    the file when the folder holds neither a run nor a sweep, when a file is damaged, and when it asks for more than
    the settings of a command.
    """
    for word in changes:
        if not re.match(r"[\w.]+=", word):
            raise UserError(f"{word}: is no KEY=VALUE")
    multirun = folder / "multirun.yaml"
    if multirun.exists():
        saved = _read_yaml(multirun)
        command, words = _sweep_words(multirun, saved)
        return _replay(multirun, command, words, _config_dirs(multirun, saved), config_dir, changes)
    record = read_record(folder)
    if record is None:
        raise UserError(f"{folder}: neither a run (no run.json) nor a sweep (no multirun.yaml)")
    hydra_yaml = folder / ".hydra" / "hydra.yaml"
    dirs = _config_dirs(hydra_yaml, _read_yaml(hydra_yaml)) if hydra_yaml.exists() else []
    command, overrides = record["command"], record["overrides"]
    pins = renamed.pinned(command, overrides, record["config"])
    return _replay(folder / "run.json", command, [*overrides, *pins], dirs, config_dir, changes)


def launch_replayed(command: str, words: list[str]) -> int:
    """``launch`` for a claim: its overrides, then its ``hydra.run.dir``. Raises UserError as :func:`resume` does."""
    from toolkit.launch import launch

    *from_file, own_folder = words
    check_words(command, from_file, Path("claims.yaml"))
    return launch(command, [*from_file, own_folder])


def check_words(command: str, words: list[str], source: Path, config_dir: Path | None = None) -> None:
    """Refuse overrides that ``source`` may not bring along; ``config_dir`` is the user's own. Raises UserError."""
    folders = [conf_dir(), *([config_dir] if config_dir else [])]
    groups = {path.relative_to(root).as_posix() for root in folders for path in root.rglob("*") if path.is_dir()}
    groups |= config_groups(COMMANDS[command])
    check_replayed(command, words, source, known_keys(COMMANDS[command]), groups)


def _replay(
    source: Path,
    command: str,
    words: list[str],
    started_with: list[str],
    config_dir: Path | None,
    changes: Sequence[str],
) -> int:
    from toolkit.launch import launch

    folder, sweeping = source.parent, source.name == "multirun.yaml"
    if command not in COMMANDS:
        raise UserError(f"{folder}: a run of {command}, which is not a command of this version")
    if started_with and config_dir is None:
        again = shlex.join(["toolkit", "runs", "resume", str(folder), "--config-dir", started_with[0]])
        raise UserError(f"{folder}: was started with a folder of configs of one's own; if it is yours: {again}")
    if config_dir:  # in the place of the folders that the file names
        words = [word for word in words if not word.startswith(SEARCHPATH)]
    check_words(command, words, source, config_dir)
    flags = ["-m"] if sweeping else []
    flags += ["--config-dir", str(config_dir)] if config_dir else []
    changed = {word.partition("=")[0] for word in changes}
    kept = [word for word in words if word.partition("=")[0].lstrip("+") not in changed]
    return launch(command, [*flags, *kept, *changes, *_own_words(folder, sweeping, words)])


def _own_words(folder: Path, sweeping: bool, words: list[str]) -> list[str]:
    """Where the run or the sweep lies; what launchers leave there is not read again."""
    if not sweeping:
        return [f"hydra.run.dir={spelled(folder)}"]
    own = [f"hydra.sweep.dir={spelled(folder)}"]
    if any(word.startswith("hydra/launcher=submitit") for word in words):
        # submitit unpickles what it finds under the names of its jobs: only where nobody could have put anything
        own.append(f"hydra.launcher.submitit_folder={spelled(folder / '.submitit' / secrets.token_hex(8) / '%j')}")
    return own


def _sweep_words(path: Path, saved: Any) -> tuple[str, list[str]]:
    """The sweep's command and its overrides, without those of Hydra's that name the folder and the mode."""
    command = saved.get("command")
    task, own = (_at(path, saved, "hydra", "overrides", kind) for kind in ("task", "hydra"))
    if not isinstance(command, str) or not all(isinstance(word, str) for word in [*task, *own]):
        raise _damaged(path)
    return command, [*task, *(word for word in own if not word.startswith(("hydra.sweep.dir=", "hydra.mode=")))]


def _config_dirs(path: Path, saved: Any) -> list[str]:
    """The folders of configs that the command was given (``--config-dir``, ``hydra.searchpath=``)."""
    sources = _at(path, saved, "hydra", "runtime", "config_sources")
    if not all(isinstance(source, dict) and isinstance(source.get("path"), str) for source in sources):
        raise _damaged(path)
    given = ("command-line", "hydra.searchpath in command-line")
    return [source["path"] for source in sources if source.get("provider") in given]


def _at(path: Path, saved: Any, *keys: str) -> list[Any]:
    """The list at ``keys``. Raises UserError where there is none."""
    for key in keys:
        saved = saved.get(key) if isinstance(saved, dict) else None
    if not isinstance(saved, list):
        raise _damaged(path)
    return saved


def _read_yaml(path: Path) -> dict[str, Any]:
    """A file that Hydra saved, as plain values: no resolver is called. Raises UserError."""
    try:
        saved = read_yaml(path) if path.is_file() else None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise _damaged(path) from None
    if not isinstance(saved, dict):
        raise _damaged(path)
    return saved


def _damaged(path: Path) -> UserError:
    advice = "type the command again with the same hydra.run.dir or hydra.sweep.dir"
    return UserError(f"{path}: not what Hydra saves, or damaged; {advice}")
