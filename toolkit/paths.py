"""Where the package's own files are (in a wheel or a checkout), whom files are for, what lies below the home folder."""

from __future__ import annotations

import functools
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from toolkit.errors import UserError

PACKAGE = Path(__file__).resolve().parent


def conf_dir() -> Path:
    """The Hydra configs: ``$TOOLKIT_CONF``, then beside the code, then in the checkout."""
    named = os.environ.get("TOOLKIT_CONF")
    if named and not Path(named).is_dir():
        raise UserError(f"TOOLKIT_CONF={named}: no such folder")
    return _first("conf", Path(named) if named else None)


def experiments_dir() -> Path:
    """The papers' claims: beside the code in a wheel, else in the checkout."""
    return _first("experiments", None)


def _first(name: str, preferred: Path | None) -> Path:
    checkout = PACKAGE.parent / name
    for folder in (preferred, PACKAGE / name, checkout):
        if folder and folder.is_dir():
            return folder.resolve()
    raise UserError(f"{name}/ is missing from the installation; reinstall toolkit")


def presets(command: str | None = None) -> dict[str, tuple[str, str]]:
    """``{preset: (command, first comment line)}`` of conf/experiment, read as text: no import of yaml or hydra."""
    paths = sorted((conf_dir() / "experiment").glob("*.yaml"))
    found = {path.stem: _said_by(path, path.stat().st_mtime_ns) for path in paths}
    return {name: said for name, said in found.items() if command in (None, said[0])}


@functools.cache
def _said_by(preset: Path, modified_ns: int) -> tuple[str, str]:
    """(command, first comment line) of a file as it was at that time: a page of help asks several times."""
    lines = preset.read_text(encoding="utf-8").splitlines()
    owner = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("command:")), "")
    about = next((line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line), "")
    return owner, about


def share(folder: Path) -> None:
    """Give weights under ``folder`` the permissions that a new file has here.

    The safetensors library writes them for their owner alone, so that colleagues could not read a shared model.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*.safetensors"):
        with suppress(OSError):  # a file of another user's
            path.chmod(0o666 & ~mask)


def at_home(value: Any) -> Any:
    """A text that begins with ``~/`` (also one of a list) with the home folder in its place; anything else as it is.

    Shells replace it at the beginning of a word only, not behind ``KEY=``.
    """
    if isinstance(value, list):
        return [at_home(one) for one in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value
