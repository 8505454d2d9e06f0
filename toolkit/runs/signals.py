"""Signals that ask a run to stop: training stops at a checkpoint, anything else stops at once; never with a traceback.

They are Ctrl-C, kill, a terminal that closes, and what clusters send before a time limit. The handlers that were there
before, such as submitit's for SIGUSR2, which raises wherever it finds the job, are called when the run is closed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from toolkit.errors import Interrupted, JobError, UserError

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
EXIT_CODES = tuple(128 + number for number in STOPS)
PATIENCE_S = 1.0  # signals this close to the one before are the same wish: a terminal and a launcher both send it
GRACE_S = 600.0  # Slurm's GraceTime is seldom longer; another signal ends the wait
_asked: list[tuple[int, float]] = []  # (signal, when) of each wish to stop
_before: dict[int, Any] = {}  # the handlers outside of the outermost raising()


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Turn the signals into :class:`Interrupted` while a job runs; repeats of one do not disturb its end."""

    def handler(number: int, _frame: FrameType | None) -> None:
        if _is_new(number):
            raise Interrupted(128 + number)

    if _before or threading.current_thread() is not threading.main_thread():
        yield  # the outer one's handlers do the same; only the main thread may set any
        return
    _before.update(_replaceable())
    try:
        for number in _before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in _before.items():
            signal.signal(number, _again_after(_asked[-1][1] + PATIENCE_S, old) if _asked else old)
        _before.clear()
        _asked.clear()


@contextlib.contextmanager
def deferred() -> Iterator[list[int]]:
    """Collect signals in the yielded list instead, so that a step can finish; another wish to stop raises at once.

    The list begins with a signal that came before, if nobody obeyed it: a library's bare ``except`` swallows any.
    """
    caught = [number for number, _ in _asked]

    def handler(number: int, _frame: FrameType | None) -> None:
        if _is_new(number):
            if caught:
                raise Interrupted(128 + number)
            caught.append(number)

    with _handlers(handler):
        yield caught


@contextlib.contextmanager
def unhidden() -> Iterator[None]:
    """Raise the :class:`Interrupted` again that a library lost: one whose own cleaning up failed on the way out, or
    that swallowed it while it was imported."""
    try:
        yield
    except (UserError, JobError, OSError, MemoryError):
        raise  # what went wrong while a run was stopped is said
    except Exception as error:
        behind: BaseException | None = error
        while behind is not None and not isinstance(behind, Interrupted):
            behind = behind.__cause__ or behind.__context__
        if behind is None and _asked and isinstance(error, ImportError):  # of a module that the signal left half made
            behind = Interrupted(128 + _asked[-1][0])
        if behind is None:
            raise
        raise behind from None


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """No signal disturbs the few writes that close a run."""
    with _handlers(lambda number, frame: None):
        yield


def hand_on(exit_code: int) -> None:
    """Call the handler that the signal of ``exit_code`` had before: submitit's requeues the job, exits or raises.

    Where it leaves the job alone, on SIGTERM, Slurm may be about to queue it again itself: it does so with a job that
    is there at the end of the time of grace, and takes one that ends before for a failed one. So this waits for that.
    """
    old = _before.get(exit_code - 128)
    if callable(old) and old is not signal.default_int_handler:
        old(exit_code - 128, None)
        if "SLURM_JOB_ID" in os.environ and (getattr(old, "__module__", None) or "").startswith("submitit."):
            time.sleep(GRACE_S)


def _is_new(number: int) -> bool:
    now = time.monotonic()
    new = not _asked or now - _asked[-1][1] > PATIENCE_S
    if new:
        _asked.append((number, now))
    return new


def _again_after(moment_s: float, old: Any) -> Any:
    """A handler that swallows the last repeats of a signal, and then gives way to ``old``."""

    def handler(number: int, _frame: FrameType | None) -> None:
        if time.monotonic() > moment_s:
            signal.signal(number, old)
            signal.raise_signal(number)

    handler.old = old  # type: ignore[attr-defined]
    return handler


@contextlib.contextmanager
def _handlers(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _replaceable()
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _replaceable() -> dict[int, Any]:
    """The handlers that we may replace: not what nohup ignores, nor one that Python cannot put back (None)."""
    found = {number: signal.getsignal(number) for number in STOPS}
    found = {number: getattr(old, "old", old) for number, old in found.items()}  # of the run before in this process
    always = (signal.SIGINT, signal.SIGTERM)
    kept = {number for number, old in found.items() if old is None or (old == signal.SIG_IGN and number not in always)}
    return {number: old for number, old in found.items() if number not in kept}
