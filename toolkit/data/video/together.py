"""Work on several frames at once, handed out in their order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
Task = Callable[[], T]


class Once(Generic[T]):
    """A task that is done when it is first asked for, whoever asks; others wait for what it gave."""

    def __init__(self, task: Task[T]):
        self._task: Task[T] | None = task
        self._lock = threading.Lock()
        self._found: T

    def __call__(self) -> T:
        with self._lock:
            if self._task is not None:
                self._found = self._task()
                self._task = None  # and what only it holds
        return self._found


def in_order(tasks: Iterator[Task[T]], num_threads: int) -> Iterator[T]:
    """What ``tasks`` give, ``num_threads`` of them at once, each of which computes on one thread.

    No more results wait than there are threads; ``tasks`` itself is read in the caller's thread.
    """
    if num_threads == 1:
        for task in tasks:
            yield task()
        return
    begun: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for task in tasks:
            begun.append(pool.submit(task))
            if len(begun) > num_threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
