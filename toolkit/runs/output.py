"""What a run says must not end it: a closed pipe, a full disk, a terminal that is gone, an encoding without dashes.

stdout and stderr are replaced by streams that drop what cannot be written and remember why. A command whose result is
what it prints asks :func:`check_written` afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from toolkit.errors import LostProcess, UserError, brief
from toolkit.runs.distributed import rank

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Lossy:
    """Stands for ``stream``; after the first write that fails everything is dropped, and ``error`` says why."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or drop, ``text``; its length."""
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush as far as it goes."""
        self._try(self.stream.flush)

    def _try(self, act: Any) -> None:
        if self.error is None:
            try:
                act()
            except OSError as error:
                self.error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def lossy() -> Iterator[None]:
    """Make stdout and stderr lossy; within another ``lossy()`` nothing changes."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_made_lossy, before)
    try:
        yield
    finally:
        for stream, old in zip((sys.stdout, sys.stderr), before, strict=True):
            if isinstance(stream, Lossy) and stream is not old:
                _finish(stream)
        sys.stdout, sys.stderr = before


def check_written() -> None:
    """Raise UserError when stdout could not be written, unless its reader had read enough and left."""
    if sys.stdout is not None:
        sys.stdout.flush()
    error = getattr(sys.stdout, "error", None)
    if error is not None and error.errno != errno.EPIPE:
        raise UserError(f"standard output: {error.strerror}; what was asked for could not be printed")


def tell(line: str, everywhere: bool = False) -> None:
    """One line on stderr, from rank 0 or from every rank."""
    if rank() == 0 or everywhere:
        print(printable(line), file=sys.stderr)


def complain(error: Exception, exit_code: int) -> int:
    """Say what is wrong in one line; returns the exit code."""
    tell(f"toolkit: error: {brief(error, None)}", everywhere=isinstance(error, LostProcess))
    return exit_code


def printable(text: str) -> str:
    """``text`` without control characters: what files and folders hold must not steer a terminal."""
    return _CONTROLS.sub(lambda match: repr(match[0])[1:-1], text)


def _made_lossy(stream: Any) -> Any:
    if stream is None:  # it was closed (``>&-``): a place for what others would print to nothing
        return Lossy(open(os.devnull, "w", encoding="utf-8"))
    if isinstance(stream, Lossy):
        return stream
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # an ASCII terminal shows \u2013 for a dash
    return Lossy(stream)


def _finish(stream: Lossy) -> None:
    """Flush; what stays in the buffer of a dead stream goes nowhere, instead of failing again when Python ends."""
    stream.flush()
    if stream.error is not None:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            stream.stream.flush()
