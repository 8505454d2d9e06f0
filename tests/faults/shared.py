"""What the trials share: how they are told, disks that are small or read-only, commands of the toolkit."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.toyroom.harness import finish, result, start

WORDS = ["optim.num_steps=40", "checkpoint_every_steps=5", "log_every_steps=5", "step_time_s=0.02"]
SLOW = [*WORDS[:3], "step_time_s=0.1"]  # a fault has time to strike
ENDINGS = {0: "done", 1: "exit 1", 2: "refused", -9: "killed"}
TRIALS: dict[str, Callable[[], Told]] = {}
IS_ROOT = os.geteuid() == 0


@dataclass
class Told:
    """What happened, in a few words; what was lost: "nothing", or what."""

    happened: str
    lost: str = "nothing"
    tried: int = 1


class LeftOut(Exception):
    """Not possible here; the message says why."""


def trial(name: str) -> Callable[[Callable[[], Told]], Callable[[], Told]]:
    """Register a fault under the name that the table shows."""

    def take(function: Callable[[], Told]) -> Callable[[], Told]:
        TRIALS[name] = function
        return function

    return take


def run(*words: str, folder: str = "one", prepare: Callable[[], None] | None = None) -> int:
    """A whole run in a process of its own; its exit code."""
    return finish(start(*words, f"hydra.run.dir='{folder}'", prepare=prepare), timeout_s=600)[0] or 0


def wait_for(path: str, timeout_s: float = 300) -> None:
    end = time.monotonic() + timeout_s
    while not Path(path).exists():
        if time.monotonic() > end:
            raise TimeoutError(path)
        time.sleep(0.005)


def said() -> str:
    """The last line that the run printed, and whether there was a traceback."""
    text = Path("output.txt").read_text(errors="replace") if Path("output.txt").exists() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    return ("TRACEBACK: " if "Traceback" in text else "") + (lines[-1] if lines else "")


def lost(words: list[str] = WORDS, folder: str = "one") -> str:
    """Go on until the run is done, and compare with one that nobody touched."""
    if run(*words, folder=folder) != 0:
        return f"it does not go on: {said()}"
    if not Path("whole").exists():
        assert run(*words, folder="whole") == 0
    (weights, metrics), expected = result(folder), result("whole")
    different = ["weights"] * (weights != expected[0]) + ["metrics"] * (metrics != expected[1])
    return " and ".join(different) or "nothing"


def ending(code: int) -> str:
    return ENDINGS.get(code, f"exit {code}")


@contextlib.contextmanager
def mounted(folder: str, size: str) -> Iterator[None]:
    """A small disk in memory."""
    if not IS_ROOT:
        raise LeftOut("needs root")
    Path(folder).mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def read_only(folder: str) -> Iterator[None]:
    if not IS_ROOT:
        raise LeftOut("needs root")
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def toolkit(*words: str) -> tuple[int, str]:
    """Another command, in a process of its own: (exit code, what it printed)."""
    done = subprocess.run(
        [sys.executable, "-m", "toolkit.cli", *words],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=600,
    )
    return done.returncode, done.stdout + done.stderr
