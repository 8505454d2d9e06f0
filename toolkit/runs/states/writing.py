"""Writing what a checkpoint holds: while training waits, or from a copy in memory while it goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Writer:
    """Writes one thing at a time. in_background: in a thread, from a copy in the memory of the CPU."""

    def __init__(self, in_background: bool) -> None:
        self.in_background = in_background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, write: Callable[[Any], Any], content: Any) -> None:
        """``write(content)``, once what was submitted before is written. Raises what either raised."""
        self.wait()
        if not self.in_background:
            write(content)
            return
        self._thread = threading.Thread(target=self._run, args=(write, copied(content)))
        self._thread.start()

    def wait(self) -> None:
        """Until everything is written. Raises what ``write`` raised, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, write: Callable[[Any], Any], content: Any) -> None:
        try:
            write(content)
        except BaseException as error:
            self._error = error


def copied(content: Any, made: dict[Any, Tensor] | None = None) -> Any:
    """Plain values and tensors in dictionaries and lists, tensors copied to the CPU; one that stands twice, once."""
    made = {} if made is None else made
    if torch.is_tensor(content):
        key = (content.data_ptr(), content.device, content.dtype, content.shape, content.stride())
        if key not in made:
            made[key] = content.detach().to("cpu", copy=True)
        return made[key]
    return rebuilt(content, lambda one: copied(one, made))


def rebuilt(container: Any, change: Callable[[Any], Any]) -> Any:
    """The same dictionary, list or tuple of what ``change`` makes of its items; anything else as it is."""
    if isinstance(container, dict):
        made = type(container)((name, change(one)) for name, one in container.items())
        if hasattr(container, "_metadata"):  # versions of modules, which torch reads
            made._metadata = container._metadata  # type: ignore[attr-defined]
        return made
    if isinstance(container, (list, tuple)):
        return type(container)(change(one) for one in container)
    return container
