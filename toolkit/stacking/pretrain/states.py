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
from toolkit.runs.states.sharding import full, is_spread, kept, like

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class NetworkState:
    """Weights of a network, sharded or not, as plain tensors (a tied head once). rank 0's are stored."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def state_dict(self) -> dict[str, Any]:
        return dict(kept(whole(self.network)))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(like(parameter, state[name]))


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
        return dict(kept((name, _whole(tensor)) for name, tensor in parts.items()))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, parameter in self.network.named_parameters():
            if f"{name}/step" in state:
                self.optimizer.state[parameter] = {
                    "step": state[f"{name}/step"].to(parameter.device, copy=True),
                    "exp_avg": like(parameter, state[f"{name}/exp_avg"]).clone(),
                    "exp_avg_sq": like(parameter, state[f"{name}/exp_avg_sq"]).clone(),
                }


def whole(network: Any) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name, gathered from its shards; all ranks must take every step of this iterator."""
    for name, parameter in network.named_parameters():
        yield name, _whole(parameter.detach())


def _whole(tensor: Any) -> Tensor:
    return full(tensor).cpu() if is_spread(tensor) else tensor


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
