"""Feeding damaged and hostile input, with a seed: every end must be a good one, or one line that says what is wrong.

An attempt may succeed or raise UserError or JobError. Anything else is a finding, as are more than ``MOST_S`` seconds,
more than ``MOST_MIB`` of new memory, and a file outside of the folder that the attempt may write.
"""

from __future__ import annotations

import random
import resource
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.box import MOST_MIB, MOST_S, Outcome, boxed
from toolkit.errors import JobError, UserError

FINDINGS = ("traceback", "crash", "hang", "memory", "escape", "other refusal")
COLUMNS = ("tried", "accepted", "refused in one line", *FINDINGS)
SHOWN = 5  # findings of a kind, in full
_table: list[tuple[str, Counter]] = []


@dataclass
class Fuzz:
    """Counts the ends of the attempts on one kind of input and keeps what must not happen."""

    name: str
    seed: int = 0
    counts: Counter = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(f"{self.name} {self.seed}")
        _table.append((self.name, self.counts))

    def attempt(self, what: Any, act: Callable[[], Any]) -> None:
        """Call ``act`` on the input that ``what`` describes, and judge how it ends."""
        self.counts["tried"] += 1
        before, started = _memory_mib(), time.monotonic()
        try:
            act()
            self.counts["accepted"] += 1
        except (UserError, JobError) as error:
            self.counts["refused in one line"] += 1
            if len(str(error)) > 2000:
                self._found("other refusal", what, str(error)[:200])
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self._found("traceback", what, "".join(traceback.format_exception(error)[-3:]))
        if time.monotonic() - started > MOST_S:
            self._found("hang", what, f"{time.monotonic() - started:.0f} s")
        if _memory_mib() - before > MOST_MIB:
            self._found("memory", what, f"{_memory_mib() - before:.0f} MiB")

    def boxed(
        self, what: Any, act: Callable[[], Any], folder: Path, names: str = "", most_s: float = MOST_S
    ) -> Outcome:
        """:meth:`attempt` in a process with limits, which may write below ``folder`` only.

        A refusal must have ``names`` in it: the file or key at fault. A command refuses with one line and exit code 2,
        or 1 once there is work in its run folder.
        """
        self.counts["tried"] += 1
        outcome = boxed(act, folder, most_s)
        if outcome.kind in ("traceback", "hang", "crash"):
            self._found(outcome.kind, what, f"{outcome.said}\n{outcome.printed[-1500:]}")
        elif outcome.kind == "accepted" or (outcome.kind == "ended" and outcome.exit_code == 0):
            self.counts["accepted"] += 1
        else:
            self.counts["refused in one line"] += 1
            problem = _wrong_in_refusal(outcome, folder, names)
            if problem:
                self._found("other refusal", what, f"{problem}\n{outcome.said}\n{outcome.printed[-1500:]}")
        if outcome.new_mib > MOST_MIB:
            self._found("memory", what, f"{outcome.new_mib:.0f} MiB")
        if outcome.escapes:
            self._found("escape", what, "; ".join(outcome.escapes))
        return outcome

    def _found(self, kind: str, what: Any, said: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= SHOWN:
            print(f"{self.name}: {kind}: {str(what)[:300]}\n{said}\n", flush=True)  # at once, with pytest -s
            self.findings.append(f"{kind}: {str(what)[:300]}\n{said}")

    def check(self, least: int) -> None:
        """Fail with the first findings, or when fewer than ``least`` attempts were made."""
        assert not self.findings, "\n\n".join(self.findings)
        assert self.counts["tried"] >= least and self.counts["refused in one line"] > 0, self.counts


def _wrong_in_refusal(outcome: Outcome, folder: Path, names: str) -> str:
    """What a user would complain about in how an attempt was refused; empty where nothing."""
    said = outcome.said
    if outcome.kind == "ended":  # a command: judged by what a terminal shows
        if "Traceback" in outcome.printed:
            return "a traceback"
        lines = [line for line in outcome.printed.splitlines() if line.startswith("toolkit: error:")]
        if len(lines) != 1:
            return f"{len(lines)} lines of errors"
        if outcome.exit_code not in (1, 2):
            return f"exit code {outcome.exit_code}"
        if outcome.exit_code == 1 and not any(folder.rglob("run.json")):
            return "exit code 1, and nothing was started"
        said = lines[0]
    if len(said) > 2000:
        return "a long message"
    return f"does not name {names}" if names and names not in said else ""


def rows() -> list[list[str]]:
    """How the attempts of this session ended: of each kind of input its name and its counts, as in ``COLUMNS``."""
    return [[name, *(str(counts[one]) for one in COLUMNS)] for name, counts in _table]


def table() -> str:
    """The same for reading."""
    lines = [["input", *COLUMNS], ["---"] * (len(COLUMNS) + 1), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# -- damage -----------------------------------------------------------------------------------------------------------

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**18, 10**400, -0.5, 0.5, 1e308, float("nan"), float("inf"), "", "x",
    "None", "../../x", "/etc/passwd", "\x00", "\x1b[2J", "\ud800", "é" * 50, "a" * 5000, [], [1], [[1]], ["a"], {},
    {"a": 1}, {"_target_": "os.system"}, "${oc.env:HOME}", "${x}", [None],
]  # fmt: skip


def damaged_bytes(content: bytes, dice: random.Random) -> bytes:
    """``content`` cut, emptied, overwritten, repeated, or with bits that flipped."""
    data = bytearray(content)
    how = dice.choice(["cut", "flip", "flip", "overwrite", "insert", "delete", "zeros", "empty", "repeat"])
    at = dice.randrange(len(data) + 1)
    end = min(len(data), at + dice.choice([1, 4, 16, 256]))
    if how == "cut":
        return bytes(data[:at])
    if how == "empty":
        return b""
    if how == "flip":
        for _ in range(dice.choice([1, 1, 8])):
            if data:
                data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    elif how == "delete":
        del data[at:end]
    elif how == "repeat":
        data[at:at] = data[at:end] * 3
    else:
        junk = bytes(end - at) if how == "zeros" else dice.randbytes(dice.choice([1, 4, 64]))
        data[at : end if how != "insert" else at] = junk
    return bytes(data)


def damaged_value(value: Any, dice: random.Random) -> Any:
    """A tree of plain values with one node replaced, removed, renamed or added."""
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key = dice.choice(list(value))
        how = dice.choice(["inside", "inside", "inside", "replace", "remove", "rename", "add"])
        changed = dict(value)
        if how == "inside":
            changed[key] = damaged_value(value[key], dice)
        elif how == "remove":
            del changed[key]
        elif how == "rename":
            changed[dice.choice(["", "x", f"{key}.x", "_target_"])] = changed.pop(key)
        elif how == "add":
            changed[dice.choice(["", "x", "steps", "_target_"])] = dice.choice(VALUES)
        else:
            changed[key] = dice.choice(VALUES)
        return changed
    if isinstance(value, list) and value and dice.random() < 0.7:
        index = dice.randrange(len(value))
        return [*value[:index], damaged_value(value[index], dice), *value[index + 1 :]]
    return dice.choice(VALUES)


def files_below(root: Path) -> set[Path]:
    """Everything that lies below ``root``."""
    return set(root.rglob("*"))
