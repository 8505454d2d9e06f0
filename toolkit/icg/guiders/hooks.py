"""Change what some modules of a network put out during one call of it, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import UserError


@dataclass(frozen=True)
class OutputChange:
    """``change`` is applied to the output (rows, width) of every module that ``find`` names in a network.

    A module whose name is in ``once`` is changed at its first call of a pass only.
    """

    find: Callable[[nn.Module], Sequence[tuple[str, nn.Module]]]
    change: Callable[[Tensor], Tensor]
    once: Callable[[nn.Module], set[str]] = lambda _: set()


class Attached:
    """Changes attached to a network for its next call.

    The hooks are PyTorch's own: they come off when that call ends, with an exception as well, or at ``detach``.
    Raises UserError for changes to a compiled network.
    """

    def __init__(self, network: nn.Module, changes: Sequence[tuple[OutputChange, slice | None]]) -> None:
        self.handles: list[Any] = []
        if changes and (hasattr(network, "_orig_mod") or getattr(network, "_compiled_call_impl", None)):
            # compiled code would go on without the hooks, and say nothing
            raise UserError("guidance that perturbs embeddings needs the network itself, not its compiled form")
        for change, rows in changes:
            once = change.once(network)
            for name, module in change.find(network):
                self.handles.append(module.register_forward_hook(_hook(change.change, rows, name in once)))
        if self.handles:
            self.handles.append(network.register_forward_hook(lambda *_: self.detach(), always_call=True))

    def detach(self) -> None:
        """Take the hooks off; harmless when they are off already."""
        for handle in self.handles:
            handle.remove()
        self.handles = []


def _hook(change: Callable[[Tensor], Tensor], rows: slice | None, once: bool) -> Callable[..., Tensor | None]:
    calls = 0

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        nonlocal calls
        calls += 1
        if once and calls > 1:
            return None
        if rows is None:
            return change(output)
        return torch.cat([output[: rows.start], change(output[rows]), output[rows.stop :]])

    return hook
