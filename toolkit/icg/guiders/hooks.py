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
    """``change(output, num_samples)`` is applied to the output of every module that ``find`` names in a network.

    An output has a row per sample, several in turn where the network has a time per token, or one for all samples. A
    module whose name is in ``once`` is changed at its first call of a pass only.
    """

    find: Callable[[nn.Module], Sequence[tuple[str, nn.Module]]]
    change: Callable[[Tensor, int], Tensor]
    once: Callable[[nn.Module], set[str]] = lambda _: set()


class Attached:
    """Changes attached to a network for its next call.

    The hooks are PyTorch's own: they come off when that call ends, with an exception as well, or at ``detach``.
    Raises UserError for changes to a compiled network.
    """

    def __init__(
        self, network: nn.Module, changes: Sequence[tuple[OutputChange, slice | None]], num_samples: int = 1
    ) -> None:
        self.handles: list[Any] = []
        self.num_samples = num_samples  # of a call that is under way already; of others, the call tells
        if changes and (hasattr(network, "_orig_mod") or getattr(network, "_compiled_call_impl", None)):
            # compiled code would go on without the hooks, and say nothing
            raise UserError("guidance that perturbs embeddings needs the network itself, not its compiled form")
        for change, rows in changes:
            once = change.once(network)
            for name, module in change.find(network):
                self.handles.append(module.register_forward_hook(self._hook(change.change, rows, name in once)))
        if self.handles:
            self.handles.append(network.register_forward_pre_hook(self._count, with_kwargs=True))
            self.handles.append(network.register_forward_hook(lambda *_: self.detach(), always_call=True))

    def detach(self) -> None:
        """Take the hooks off; harmless when they are off already."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _count(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.num_samples = len(args[0] if args else next(iter(kwargs.values())))

    def _hook(
        self, change: Callable[[Tensor, int], Tensor], rows: slice | None, once: bool
    ) -> Callable[..., Tensor | None]:
        """rows: the samples to change, None for all."""
        calls = 0

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            nonlocal calls
            calls += 1
            if once and calls > 1:
                return None
            if rows is None:
                return change(output, self.num_samples)
            each = len(output) // self.num_samples
            start, stop = each * rows.start, each * rows.stop
            changed = change(output[start:stop], rows.stop - rows.start)
            return torch.cat([output[:start], changed, output[stop:]])

        return hook
