"""Change the outputs of some modules of a network during one call, by hooks that are removed afterwards."""

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
    module whose name is in ``once`` is changed at its first call of a pass only. ``late`` names modules whose argument
    ``temb`` is changed by ``change_late``, with rows as the embedding has them. ``skips(module, args, kwargs, output)``
    takes the place of ``change`` where the modules are to be left out.
    """

    find: Callable[[nn.Module], Sequence[tuple[str, nn.Module]]]
    change: Callable[[Tensor, int], Tensor] = lambda output, _: output
    once: Callable[[nn.Module], set[str]] = lambda _: set()
    late: Callable[[nn.Module], Sequence[tuple[str, nn.Module]]] = lambda _: ()
    change_late: Callable[[Tensor, int], Tensor] = lambda temb, _: temb
    skips: Callable[..., Any] | None = None


class Attached:
    """Changes attached to a network for its next call.

    The hooks are PyTorch's own: they come off when that call ends, with an exception as well, or at ``detach``.
    Raises UserError for changes to a compiled network.
    """

    def __init__(
        self, network: nn.Module, changes: Sequence[tuple[OutputChange, slice | None]], num_samples: int = 1
    ) -> None:
        self.handles: list[Any] = []
        self.num_samples = num_samples  # of a call that has already begun; ``_count`` sets it at the next one
        if changes and (hasattr(network, "_orig_mod") or getattr(network, "_compiled_call_impl", None)):
            # compiled code would silently skip the hooks
            raise UserError("guidance that perturbs embeddings needs the network itself, not its compiled form")
        for change, rows in changes:
            once = change.once(network)
            if change.skips is not None:
                for _, module in change.find(network):
                    hook = self._skip_hook(change.skips, rows)
                    self.handles.append(module.register_forward_hook(hook, with_kwargs=True))
                continue
            for name, module in change.find(network):
                self.handles.append(module.register_forward_hook(self._hook(change.change, rows, name in once)))
            for _, module in change.late(network):
                hook = self._late_hook(change.change_late, rows)
                self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
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
            return self._changed(output, change, rows)

        return hook

    def _skip_hook(self, skips: Callable[..., Any], rows: slice | None) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            skipped = skips(module, args, kwargs, output)
            if isinstance(output, Tensor):
                return self._mixed(output, skipped, rows)
            return type(output)(self._mixed(*pair, rows) for pair in zip(output, skipped, strict=True))

        return hook

    def _mixed(self, values: Any, other: Any, rows: slice | None) -> Any:
        """``values`` with ``other``'s rows of those samples; None stays None."""
        if values is None or rows is None:
            return None if values is None else other
        each = len(values) // self.num_samples
        mixed = values.clone()
        mixed[each * rows.start : each * rows.stop] = other[each * rows.start : each * rows.stop]
        return mixed

    def _late_hook(self, change: Callable[[Tensor, int], Tensor], rows: slice | None) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if "temb" in kwargs:
                return args, {**kwargs, "temb": self._changed(kwargs["temb"], change, rows)}
            return (args[0], self._changed(args[1], change, rows), *args[2:]), kwargs

        return hook

    def _changed(self, values: Tensor, change: Callable[[Tensor, int], Tensor], rows: slice | None) -> Tensor:
        """values with ``rows`` of the samples changed."""
        if rows is None:
            return change(values, self.num_samples)
        each = len(values) // self.num_samples
        start, stop = each * rows.start, each * rows.stop
        changed = change(values[start:stop], rows.stop - rows.start)
        return torch.cat([values[:start], changed, values[stop:]])
