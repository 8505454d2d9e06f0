"""One attempt in a process of its own: with little memory, little time, and every way out of its folder watched.

The process is a fork of the test's, so that it costs milliseconds. What it does is told by Python's audit events: files
opened for writing outside of the folder, programs started, connections made. What the libraries below Python write is
seen by who looks at the folders afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import JobError, UserError

MOST_S = 20.0  # of a processor; a machine with other work takes longer
PATIENCE = 10  # times as long on the clock: for what only waits
MOST_MIB = 1024  # of new memory that is used
ADDRESSES_MIB = 3072  # of new memory that is asked for: threads reserve more than they use
PROGRAMS = {"git", "uname", "lscpu"}  # that tell where a run computed
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
MAKING = {"os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
STARTING = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn"}


@dataclass
class Outcome:
    """How it ended: ``accepted``, ``refused`` (with what was ``said``), ``traceback``, ``hang`` or ``crash``.

    exit_code: of a command. escapes: what it did outside of its folder. printed: stdout and stderr.
    """

    kind: str
    said: str = ""
    exit_code: int = 0
    escapes: list[str] = field(default_factory=list)
    printed: str = ""
    new_mib: float = 0.0
    seconds: float = 0.0


def boxed(act: Callable[[], Any], folder: Path, most_s: float = MOST_S) -> Outcome:
    """Call ``act`` in a fork that may write below ``folder`` only. UserError and JobError are refusals.

    A SystemExit is a command's, whose last line of stderr is what it said.
    """
    before_mib, started = _resident_mib(), time.monotonic()
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as printed:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads of libraries do not hold locks of ours
            child = os.fork()
        if child == 0:
            os.close(reading)
            _live(act, folder, writing, printed.fileno(), most_s)
        os.close(writing)
        told = _read_all(reading, started + PATIENCE * most_s)
        late = told is None
        if late:
            os.killpg(child, signal.SIGKILL)
        _, status, used = os.wait4(child, 0)
        printed.seek(0)
        text = printed.read(200_000).decode(errors="replace")
    new_mib = max(0.0, used.ru_maxrss / 1024 - before_mib)
    took = time.monotonic() - started
    if told:
        return Outcome(**json.loads(told), printed=text, new_mib=new_mib, seconds=took)
    kind = "hang" if late or os.WTERMSIG(status) == signal.SIGXCPU else "crash"
    return Outcome(kind, f"wait status {status}", printed=text, new_mib=new_mib, seconds=took)


def cli(*words: str) -> Callable[[], None]:
    """``toolkit WORDS`` as an attempt."""

    def act() -> None:
        from toolkit.cli import main

        sys.argv = ["toolkit", *words]
        main()

    return act


def _read_all(descriptor: int, until: float) -> bytes | None:
    """What the child tells before it ends; None where that takes too long."""
    found = b""
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        while True:
            ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            part = pipe.read(65536)
            if not part:
                return found
            found += part


def _live(act: Callable[[], Any], folder: Path, told: int, printed: int, most_s: float) -> None:
    """The child's life; does not return."""
    try:
        os.setpgid(0, 0)
        for stream in (1, 2):
            os.dup2(printed, stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, errors="replace") for stream in (1, 2))
        _limit(most_s)
        escapes: list[str] = []
        sys.addaudithook(_watch(folder, escapes))
        outcome = _try(act)
        outcome["escapes"] = escapes[:10]
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(told, json.dumps(outcome).encode())
    finally:
        os._exit(0)


def _try(act: Callable[[], Any]) -> dict[str, Any]:
    try:
        act()
        return {"kind": "accepted"}
    except (UserError, JobError) as error:
        return {"kind": "refused", "said": str(error), "exit_code": 2 if isinstance(error, UserError) else 1}
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return {"kind": "ended", "exit_code": code}
    except BaseException as error:
        return {"kind": "traceback", "said": "".join(traceback.format_exception(error)[-4:])[-3000:]}


def _limit(most_s: float) -> None:
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    most = now + ADDRESSES_MIB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + most_s) + 1, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))


def _watch(folder: Path, escapes: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
    scratch = os.path.realpath(tempfile.gettempdir())
    own = (os.path.realpath(folder), f"{scratch}/tmp", f"{scratch}/toolkit-", "/dev/", "/proc/self/")
    own = (*own, *(os.path.realpath(one) for one in (os.environ.get("TOOLKIT_CACHE"),) if one))

    def is_own(path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return True
        where = os.path.realpath(os.fsdecode(path))
        return where.startswith(own) or "__pycache__" in where

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else flags & WRITING
            if writes and not is_own(path):
                escapes.append(f"writes {path}")
        elif event in MAKING:
            paths = [one for one in arguments if isinstance(one, (str, bytes, os.PathLike))]
            escapes.extend(f"{event} {path}" for path in paths if event != "os.symlink" and not is_own(path))
        elif event in STARTING:
            program = os.path.basename(str(arguments[0] if isinstance(arguments[0], str) else arguments[1][0]))
            if program not in PROGRAMS:
                escapes.append(f"starts {arguments[:2]!r}")
        elif event == "socket.connect":
            with contextlib.suppress(Exception):
                if arguments[1][0] not in ("127.0.0.1", "localhost", "::1"):
                    escapes.append(f"connects to {arguments[1]!r}")

    return hook


def _resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20
