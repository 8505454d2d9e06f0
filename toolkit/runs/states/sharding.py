"""FSDP (Zhao et al. 2023, by torch's ``fully_shard``): weights, gradients and moments are spread over the processes.

The weights of a unit are whole only while it computes. States are whole in a checkpoint and have the names that they
have without sharding, so that a run goes on with another number of processes, or without FSDP.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.runs.distributed import rank, world_size
from toolkit.runs.states.writing import rebuilt


def check_sharding(sharding: str, precision: str, key: str = "optim.sharding") -> None:
    """Raise UserError where ``sharding`` cannot be: with one process, or with fp16."""
    if sharding != "fsdp":
        return
    if precision == "fp16":
        raise UserError(f"precision=fp16: its loss scaling does not know {key}=fsdp; use precision=bf16")
    if world_size() == 1:
        raise UserError(f"{key}=fsdp: needs several processes, as in torchrun --nproc_per_node 8 -m toolkit")


def shard(module: Any, units: Iterable[nn.Module], half: bool = False, compiled: bool = False) -> Any:
    """Spread ``module`` over all processes, in place; each of ``units``, parts of it, is gathered by itself.

    half: gather weights in bfloat16, for networks that have no float32 parts; what each process keeps, gradients and
    moments are float32 all the same. compiled: put each unit through torch.compile, which makes one graph of units that
    are alike; what lies between them is not compiled. A function that computes with a unit without calling it goes
    through ``zoo.checkpointing.called``, and is not compiled.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    # of layers whose output is a view: nothing of ours writes into one
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(next(module.parameters()).device.type, (world_size(),))
    kind = torch.bfloat16 if half else None
    policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)
    units = list(units)
    for part in units if compiled else ():
        part.compile()
    for part in (*units, module):
        fully_shard(part, mesh=mesh, mp_policy=policy)
        part.forward_through = MethodType(_through, part)
        register_fsdp_forward_method(part, "forward_through")
    return module


def _through(module: nn.Module, function: Any, *arguments: Any) -> Any:
    return function(module, *arguments)


def reshard(trained: Any) -> None:
    """After a forward pass without a backward one: FSDP leaves the outermost weights whole until the next of those."""
    if hasattr(trained, "reshard"):
        trained.reshard()


def plain_copy(module: Any, sharding: str) -> Any:
    """Before ``shard``: what ``fill`` puts the trained weights into. ``module`` itself where nothing is sharded."""
    return copy.deepcopy(module).cpu() if sharding == "fsdp" and module is not None else module


def fill(plain: Any, module: nn.Module) -> Any:
    """``plain``, with the weights and buffers of ``module``, gathered. Every process calls it."""
    if plain is not module:
        plain.load_state_dict({name: full(tensor) for name, tensor in module.state_dict().items()})
    return plain


def spread_like(average: nn.Module, module: nn.Module) -> None:
    """Spread the parameters of ``average``, a copy of ``module`` from before ``shard``, as those of ``module`` are."""
    for name, parameter in module.named_parameters():
        _replace(average, name, like(parameter, average.get_parameter(name).detach()))


def gather(module: nn.Module) -> None:
    """Undo ``spread_like``. Every process calls it."""
    for name, parameter in list(module.named_parameters()):
        _replace(module, name, full(parameter.detach()))


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    path, _, last = name.rpartition(".")
    setattr(module.get_submodule(path), last, nn.Parameter(value, requires_grad=False))


def is_spread(tensor: Any) -> bool:
    """Whether each process has a part of ``tensor``."""
    return hasattr(tensor, "full_tensor")


def full(tensor: Any) -> Tensor:
    """The whole of a tensor that may be spread; every process takes part."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def like(parameter: Any, value: Tensor) -> Any:
    """A whole ``value`` on the device of ``parameter``, spread as it is."""
    value = value.to(parameter.device)
    if not is_spread(parameter):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def whole(state: Any) -> Any:
    """A ``state_dict`` whose spread tensors are whole, in rank 0's memory; None in their place on the other ranks."""
    if is_spread(state):
        tensor = full(state)
        return tensor.cpu() if rank() == 0 else None
    return rebuilt(state, whole)


def spread(item: Any, state: dict[str, Any]) -> dict[str, Any]:
    """A whole ``state`` as ``item.load_state_dict`` takes it: tensors spread as those of ``item`` are."""
    if not torch.distributed.is_initialized():
        return state
    if not isinstance(item, torch.optim.Optimizer):
        return _spread_like(item.state_dict(), state)
    parameters = [one for group in item.param_groups for one in group["params"]]
    moments = {
        number: {name: _as_moment(parameters[number], one) for name, one in held.items()}
        for number, held in state["state"].items()
    }
    return state | {"state": moments}


def _as_moment(parameter: Any, value: Any) -> Any:
    is_moment = torch.is_tensor(value) and value.shape == parameter.shape
    return like(parameter, value) if is_moment and is_spread(parameter) else value


def _spread_like(template: Any, state: Any) -> Any:
    if is_spread(template):
        return like(template, state)
    if isinstance(template, dict) and isinstance(state, dict):
        made = {name: _spread_like(template.get(name), one) for name, one in state.items()}
        return made if any(made[name] is not state[name] for name in state) else state
    return state


def kept(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Only rank 0 writes; the others take part in the gathering and keep nothing."""
    for name, tensor in tensors:
        if rank() == 0:
            yield name, tensor
