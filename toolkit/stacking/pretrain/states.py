"""What a checkpoint of the pre-training loop holds: weights and Adam's moments by the names of the tensors.

By name, so that moments can follow their tensors through growth, and whole, so that a run may go on with another
number of processes or without FSDP.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import JobError, UserError
from toolkit.runs.distributed import rank, world_size

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class NetworkState:
    """Weights of a network, sharded or not, as plain tensors (a tied head once). rank 0's are stored."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def state_dict(self) -> dict[str, Any]:
        return dict(_kept(whole(self.network)))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(_like(parameter, state[name]))


class OptimizerState:
    """Adam's moments and step count of every parameter, by name."""

    def __init__(self, optimizer: torch.optim.Optimizer, network: Any) -> None:
        self.optimizer, self.network = optimizer, network

    def state_dict(self) -> dict[str, Any]:
        parts = {
            f"{name}/{part}": self.optimizer.state[parameter][part]
            for name, parameter in self.network.named_parameters()
            if parameter in self.optimizer.state
            for part in MOMENTS
        }
        return dict(_kept((name, _whole(tensor)) for name, tensor in parts.items()))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, parameter in self.network.named_parameters():
            if f"{name}/step" in state:
                self.optimizer.state[parameter] = {
                    "step": state[f"{name}/step"].to(parameter.device, copy=True),
                    "exp_avg": _like(parameter, state[f"{name}/exp_avg"]).clone(),
                    "exp_avg_sq": _like(parameter, state[f"{name}/exp_avg_sq"]).clone(),
                }


def whole(network: Any) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name, gathered from its shards; all ranks must take every step of this iterator."""
    for name, parameter in network.named_parameters():
        yield name, _whole(parameter.detach())


def _whole(tensor: Any) -> Tensor:
    return tensor.full_tensor().cpu() if hasattr(tensor, "full_tensor") else tensor


def _kept(tensors: Any) -> Iterator[tuple[str, Tensor]]:
    """Only rank 0 writes; the others take part in the gathering and keep nothing."""
    for name, tensor in tensors:
        if rank() == 0:
            yield name, tensor


def _like(parameter: Any, value: Tensor) -> Any:
    """A whole tensor on the device of ``parameter``, sharded as it is."""
    value = value.to(parameter.device)
    if not hasattr(parameter, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def shard(module: Any, precision: str) -> Any:
    """FSDP: weights, gradients and moments of ``module`` (a LanguageModelLoss) are spread over all processes.

    Each layer is gathered only while it computes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    kind = next(module.parameters()).device.type
    mesh = init_device_mesh(kind, (world_size(),))
    half = torch.bfloat16 if precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
    for layer in module.network.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    return fully_shard(module, mesh=mesh, mp_policy=policy)


def check_moments(state: dict[str, Any] | None, source: str) -> dict[str, Any]:
    """The moments of a checkpoint. Raises UserError where there are none."""
    if not state:
        raise UserError(
            f"optim.after_growth=tile: {source} has no optimizer state; start from a run that keeps its checkpoints"
        )
    return state


def tiled_moments(state: dict[str, Any], plan: Any, architecture: Any, shapes: Any) -> dict[str, Any]:
    """Moments of the grown network: each tensor's are those of the tensor it was copied from.

    state: ``{name/part: tensor}`` of the base. Fresh layers have none. Raises JobError where one is missing.
    """
    tiled = {}
    for name in shapes:
        layer, _ = architecture.locate(name)
        if layer is not None and plan[layer].fresh:
            continue
        origin = name if layer is None else architecture.rename(name, plan[layer].source)
        for part in MOMENTS:
            if f"{origin}/{part}" not in state:
                raise JobError(f"the base's optimizer state lacks {origin}")
            tiled[f"{name}/{part}"] = state[f"{origin}/{part}"].clone()
    return tiled
