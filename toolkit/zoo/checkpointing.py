"""Activation checkpointing: blocks keep their inputs alone and compute the rest again in the backward pass.

Chen et al. 2016 (Training deep nets with sublinear memory cost). Gradients are the same to the bit: a block draws the
same dropout again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from toolkit.errors import UserError

recomputed = functools.partial(checkpoint, use_reentrant=False)


class CheckpointedBlock(nn.Module):
    """A block of a network that is computed again in the backward pass while ``gradient_checkpointing`` is set."""

    gradient_checkpointing = False

    def __call__(self, *args: Any, **keys: Any) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return recomputed(super().__call__, *args, **keys)
        return super().__call__(*args, **keys)


def called(function: Callable[..., Any], module: nn.Module, *arguments: Any) -> Any:
    """``function(module, *arguments)`` as a forward call of ``module``, for who gathers its weights around those."""
    through = getattr(module, "forward_through", None)
    return function(module, *arguments) if through is None else through(function, *arguments)


def checkpointed_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of ours in a network: what is computed again, and what is gathered at a time."""
    return [module for module in network.modules() if isinstance(module, CheckpointedBlock)]


def checkpoint_activations(network: nn.Module, key: str = "optim.gradient_checkpointing") -> None:
    """Set it in every block of ours, of diffusers and of transformers. Raises UserError naming ``key`` where a network
    has none."""
    found = _blocks(network)
    if not found:
        raise UserError(f"{key}=true: {type(network).__name__} has no blocks that could be computed again; use false")
    for module in found:
        module.gradient_checkpointing = True
        module._gradient_checkpointing_func = recomputed  # what transformers' layers call


def checkpointing_of(network: nn.Module) -> Callable[[], None] | None:
    """``checkpoint_activations`` of ``network``; None where it has no blocks for it."""
    return functools.partial(checkpoint_activations, network) if _blocks(network) else None


def _blocks(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if hasattr(module, "gradient_checkpointing")]
