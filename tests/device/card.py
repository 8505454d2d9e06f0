"""A device that is not the processor, where there is none: fake tensors on a pretended card.

Tensors have shapes, types and a device, and no numbers. An operation among tensors of the card and of the processor is
an error, as it is on a GPU; so is a generator of the other device. Python sees every number of a tensor as 1,
and of truths those of ``all`` alone as true. Autocast is not known here.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from torch.utils.weak import WeakIdKeyDictionary

CARD = "card"


@functools.cache
def _register() -> None:
    """Make ``card`` a device of torch, for this process: its name and its guards, no kernels."""
    _setup_privateuseone_for_python_backend(CARD)
    torch.get_device_module(CARD).get_amp_supported_dtype = lambda: [
        torch.bfloat16
    ]  # asked where autocast is turned off


@contextmanager
def pretended_card(has_float64: bool = True) -> Iterator[None]:
    """In it tensors are fake, and ``device="card"`` is one to compute on. has_float64: MPS has none."""
    _register()
    with FakeTensorMode(allow_non_fake_inputs=True), _AsOnAGPU(has_float64), _Made():
        yield


class _AsOnAGPU(TorchDispatchMode):
    """What fake tensors let pass and a GPU does not; and scalars, which they refuse."""

    def __init__(self, has_float64: bool) -> None:
        super().__init__()
        self.has_float64 = has_float64
        self.all = WeakIdKeyDictionary()  # what says that all of a tensor is true

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            return args[0] in self.all if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        if func is torch.ops.aten._to_copy.default and isinstance(args[0], FakeTensor):
            args[0].constant = None  # of a tensor written out: its numbers would be moved in earnest
        out = func(*args, **kwargs)
        if func.overloadpacket is torch.ops.aten.all:
            self.all[out] = True
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not self.has_float64 and any(one.dtype == torch.float64 and one.device.type == CARD for one in made):
            raise TypeError(f"{func}: float64 on a device that has none")
        generators = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Generator)]
        for generator in generators:
            for tensor in made:
                if generator.device.type != tensor.device.type:
                    raise RuntimeError(f"{func}: a generator of {generator.device} for a tensor of {tensor.device}")
        return out


class _Made(TorchFunctionMode):
    """Tensors written out in Python are moved to the card, and made there where a footprint calls for them.

    A footprint's inputs stand for data that training has moved. Any other tensor is where its own call says.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.rand, torch.randn, torch.randint, torch.ones):
            caller = sys._getframe(1).f_code.co_filename
            return func(*args, **({"device": CARD} if caller.endswith("footprint.py") else {}) | kwargs)
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == CARD:
            return func(*args, **kwargs | {"device": "cpu"}).to(CARD)
        if func is Tensor.new_tensor and args[0].device.type == CARD:
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(CARD)
        return func(*args, **kwargs)


def to_card(*networks: nn.Module) -> None:
    """Move parameters and buffers as ``Module.to`` does; tied ones stay tied. What is no buffer stays behind."""
    moved: dict[int, Tensor] = {}
    for module in (module for network in networks for module in network.modules()):
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is not None and old.device.type != CARD:
                    tensors[name] = moved.setdefault(id(old), _moved(old))  # type: ignore[assignment]


def _moved(old: Tensor) -> Tensor:
    new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=CARD)
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
