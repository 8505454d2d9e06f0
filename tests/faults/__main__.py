"""Faults that happen to real runs, tried one after the other; then what was lost is looked up.

    python -m tests.faults [--write] [WORD ...]

The runs are those of ``train-toy``, a real loop with real checkpoints around a small network, and the smoke presets of
the five commands. After each fault the same command is given again until it is done, and its weights and metrics must
be, byte for byte, those of a run that nobody touched. WORDs choose faults by their names; --write puts the table into
docs/robustness.md. Exits with 1 where something was lost. Faults that need root are left out, and said, where one is
not.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.faults import papers, toy  # noqa: F401 (they fill TRIALS)
from tests.faults.shared import TRIALS, LeftOut, Told
from tests.robustness_page import put
from tests.toyroom.harness import make_conf


def tried(name: str, act: Callable[[], Told]) -> tuple[str, str, str, str]:
    """One row of the table, from a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="faults-") as home, contextlib.chdir(home):
        os.environ["TOOLKIT_CONF"] = str(make_conf(Path(home) / "conf"))
        try:
            told = act()
        except LeftOut as why:
            return name, "0", f"left out: {why}", ""
        except Exception as error:
            told = Told(f"{type(error).__name__}: {' '.join(str(error).split())[:100]}", "unknown")
        happened = told.happened.replace(home, "").replace("|", "/")
        return name, str(told.tried), happened, told.lost.replace("|", "/")


def main(words: list[str]) -> int:
    write = "--write" in words
    chosen = [word for word in words if word != "--write"]
    rows = []
    for name, act in TRIALS.items():
        if not chosen or any(word in name for word in chosen):
            rows.append(tried(name, act))
            print(" | ".join(rows[-1]), flush=True)
    if write:
        put("faults", ["fault", "tried", "what happened", "lost"], rows)
    return int(any(row[3] not in ("nothing", "") for row in rows))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
