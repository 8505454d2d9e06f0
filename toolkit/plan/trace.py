"""One training step without memory or arithmetic: the real modules on fake tensors, every operation watched.

What is live is followed storage by storage, as the allocator would see it: activations are what is live at the end of
the forward pass, the peak is the most that is live at any time. What kernels take inside (a convolution's workspace)
is not seen.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from toolkit.runs.stage_shape import Networks, StageShape

MOMENTS = 2  # of AdamW


@dataclass(frozen=True)
class Work:
    """Operations of one kind: floating-point operations and bytes of each (read and written), 0 FLOPs: no product.

    dtype: of the arithmetic; ``tf32`` are float32 convolutions, which torch gives to a GPU's tensor cores by default.
    """

    dtype: str
    flops: int
    bytes: int


@dataclass(frozen=True)
class Trace:
    """A forward and backward pass over one micro-batch. Bytes, but for the first three, ``flops`` and ``work``.

    Attributes:
        parameters, trained, moments: numbers; of all networks, those that the optimiser changes, those that it keeps.
        weights: parameters and buffers of all networks, in float32. stored: of what is trained, and in a checkpoint.
        gradients: after the pass; 0 where they are sharded as they come. averages: copies of weights.
        activations: what the forward pass keeps for the backward pass.
        passing: the most that is live at a time beyond weights, moments and averages, gradients of an earlier
            micro-batch included where there was one.
        flops: floating-point operations of matrix products, convolutions and attention, recomputing included.
        work: how many operations of each kind. unit: the largest unit's parameters; outside: those in no unit.
    """

    parameters: int
    trained: int
    moments: int
    weights: int
    stored: int
    gradients: int
    averages: int
    activations: int
    passing: int
    flops: int
    work: Counter[Work]
    unit: int
    outside: int


def trace(
    shape: StageShape, micro_batch: int, *, checkpointing: bool = False, accumulate: bool = False, fused: bool = True
) -> Trace:
    """Watch one micro-batch.

    Args:
        checkpointing: whether blocks keep only their inputs and are computed again.
        accumulate: whether gradients of earlier micro-batches of the step are there already.
        fused: as a GPU computes: attention's weights are never held, and nothing written for CPUs alone is used.
            False: as this CPU would.
    """
    with torch.device("meta"):
        networks = shape.build()
    with FakeTensorMode(allow_non_fake_inputs=True), ExitStack() as stack:
        _move_from_meta(networks, torch.bfloat16 if shape.sharded and shape.half else None)
        if shape.sharded:  # each unit's gradients are spread over the processes as they come
            for parameter in networks.trained.parameters():
                parameter.register_post_accumulate_grad_hook(_forget_gradient)
        if fused:
            stack.enter_context(_fused_attention())
            _leave_cpu_code(networks.trained)
        if checkpointing:
            assert networks.recompute is not None
            networks.recompute()
        if accumulate and not shape.sharded:
            for parameter in networks.trained.parameters():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        watch = stack.enter_context(_Watch())
        before = sum(_bytes(one) for one in _storages(_gradients(networks.trained)))
        loss = _forward(networks, shape.precision, micro_batch)
        activations = watch.live
        loss.backward()
        del loss
        return _traced(networks, watch, activations, before)


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _move_from_meta(networks: Networks, dtype: torch.dtype | None) -> None:
    """Fake tensors of the CPU in the place of those without a device, of ``dtype``; tied weights stay tied."""
    moved: dict[int, Any] = {}
    for part in (networks.trained, *networks.frozen, *networks.averaged):
        for module in part.modules():
            for tensors in (module._parameters, module._buffers):
                for name, old in tensors.items():
                    if old is None or old.device.type != "meta":
                        continue
                    is_parameter = isinstance(old, nn.Parameter)
                    kind = dtype if dtype and is_parameter else old.dtype
                    new = torch.empty_strided(old.shape, old.stride(), dtype=kind, device="cpu")
                    tensors[name] = moved.setdefault(
                        id(old), nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new
                    )


def _traced(networks: Networks, watch: _Watch, activations: int, before: int) -> Trace:
    parameters = [one for part in (networks.trained, *networks.frozen) for one in part.parameters()]
    units = [sum(one.numel() for one in unit.parameters()) for unit in networks.units]
    trained = sum(one.numel() for one in networks.trained.parameters() if one.requires_grad)
    return Trace(
        parameters=sum(one.numel() for one in parameters),
        trained=trained,
        moments=MOMENTS * trained if networks.moments is None else networks.moments,
        weights=_in_float32(networks.trained, *networks.frozen),
        stored=_in_float32(networks.trained),
        gradients=sum(map(_bytes, _storages(_gradients(networks.trained)))),
        averages=_in_float32(*networks.averaged),
        activations=activations,
        passing=before + watch.most,
        flops=sum(kind.flops * count for kind, count in watch.work.items()),
        work=watch.work,
        unit=max(units, default=0),
        outside=sum(one.numel() for one in networks.trained.parameters()) - sum(units),
    )


def _forward(networks: Networks, precision: str, micro_batch: int) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return networks.loss(micro_batch)


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention with dropout as a GPU computes it; a CPU would hold its weights."""
    attention = F.scaled_dot_product_attention

    def without_dropout(*inputs: Any, **named: Any) -> Tensor:
        return attention(*inputs, **named | {"dropout_p": 0.0})

    F.scaled_dot_product_attention = without_dropout
    try:
        yield
    finally:
        F.scaled_dot_product_attention = attention


def _leave_cpu_code(network: nn.Module) -> None:
    """Whoever watches a layer sees it computed as on any device (stacking/pretrain/cpu_blocks.py)."""
    for module in network.modules():
        module.register_forward_hook(lambda module, inputs, output: None)


class _Watch(TorchDispatchMode):
    """Counts operations, and bytes of storages from their making to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self.work: Counter[Work] = Counter()
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = _storages(_only_tensors((args, kwargs)))
        made = _storages(_only_tensors(out))
        for storage in given:  # weights and inputs from before are not of this pass
            if storage._cdata not in self._known:
                self._known[storage._cdata] = weakref.ref(storage, self._forgotten(storage._cdata, 0))
        fresh = [storage for storage in made if storage._cdata not in self._known]
        for storage in fresh:
            size = _bytes(storage)
            self.live += size
            self._known[storage._cdata] = weakref.ref(storage, self._forgotten(storage._cdata, size))
        self.most = max(self.most, self.live)
        if fresh or _writes(func):
            self.work[_work(func, args, kwargs, out)] += 1
        return out

    def _forgotten(self, key: int, size: int) -> Callable[[Any], None]:
        def forget(_: Any) -> None:
            self._known.pop(key, None)
            self.live -= size

        return forget


_FLOPS = dict(flop_registry)


def _work(func: Any, args: Any, kwargs: Any, out: Any) -> Work:
    inputs, outputs = _only_tensors((args, kwargs)), _only_tensors(out)
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *outputs))
    count = _flops_of(func, args, kwargs, out)
    first = next((tensor.dtype for tensor in inputs if tensor.is_floating_point()), torch.float32)
    kind = "bf16" if first == torch.bfloat16 else "tf32" if "convolution" in func.name() else "fp32"
    return Work(kind, count, size)


def _flops_of(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """As ``FlopCounterMode`` counts, and the CPU's attention and oneDNN's product, which it does not know."""
    name = func.name()
    if name == "aten::_scaled_dot_product_flash_attention_for_cpu":
        return sdpa_flop_count(*(one.shape for one in args[:3]))
    if name == "aten::_scaled_dot_product_flash_attention_for_cpu_backward":
        return 5 * sdpa_flop_count(*(one.shape for one in args[1:4])) // 2  # five products where the forward has two
    if name == "mkldnn::_linear_pointwise":
        return 2 * args[0].numel() * args[1].shape[0]
    counter = _FLOPS.get(func._overloadpacket)
    return counter(*args, **kwargs, out_val=out) if counter else 0


def _writes(func: Any) -> bool:
    return func._schema.is_mutable


def _only_tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _tensors(*networks: nn.Module) -> list[Tensor]:
    return [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]


def _gradients(network: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def _in_float32(*networks: nn.Module) -> int:
    """Bytes of all parameters and buffers, whatever type they are computed with."""
    tensors = {id(tensor): tensor for tensor in _tensors(*networks)}.values()
    return sum(tensor.numel() * (4 if tensor.is_floating_point() else tensor.element_size()) for tensor in tensors)


def _storages(tensors: list[Tensor]) -> list[Any]:
    """Each storage once."""
    return list({storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}.values())


def _bytes(storage: Any) -> int:
    return int(storage.nbytes())
