"""SIGINT and SIGTERM: training stops at a checkpoint, anything else stops at once; never with a traceback."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from toolkit.errors import Interrupted

_EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
_asked: list[int] = []  # signals whose exception was raised: a library's bare ``except`` may have swallowed it


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Turn both signals into :class:`Interrupted` while a job runs."""

    def handler(number: int, _frame: FrameType | None) -> None:
        _asked.append(number)
        raise Interrupted(_EXIT_CODES[signal.Signals(number)])

    try:
        with _handlers(handler):
            yield
    finally:
        _asked.clear()


@contextlib.contextmanager
def deferred() -> Iterator[list[int]]:
    """Collect signals in the yielded list instead, so that a step can finish; a second one raises at once.

    The list begins with a signal that came before, if nobody obeyed it.
    """
    caught = list(_asked)

    def handler(number: int, _frame: FrameType | None) -> None:
        if caught:
            raise Interrupted(_EXIT_CODES[signal.Signals(number)])
        caught.append(number)

    with _handlers(handler):
        yield caught


@contextlib.contextmanager
def _handlers(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = {number: signal.signal(number, handler) for number in _EXIT_CODES}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
