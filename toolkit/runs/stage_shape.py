"""What one stage of a training is, for who wants to know its cost before it runs: networks, a step, how often.

Each training room has a ``footprint.py`` that says it of its stages, with the classes and the loss that training uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # configs are checked before torch is loaded
    from torch import Tensor, nn


@dataclass(frozen=True)
class Networks:
    """The networks of a stage as training has them, on the CPU in float32.

    Attributes:
        trained: what the optimiser changes; its parameters that need no gradient are only carried.
        loss: the mean loss of one forward pass over so many made-up items, as training calls it, from inputs to number.
        frozen: networks beside it that are only computed with.
        averaged: networks of which a moving average is kept.
        units: the parts that FSDP gathers one at a time.
        recompute: turns activation checkpointing on; None where training has none.
        moments: numbers that the optimisers keep; None: AdamW's two for each that is trained.
    """

    trained: nn.Module
    loss: Callable[[int], Tensor]
    frozen: Sequence[nn.Module] = ()
    averaged: Sequence[nn.Module] = ()
    units: Sequence[nn.Module] = ()
    recompute: Callable[[], None] | None = None
    moments: int | None = None


@dataclass(frozen=True)
class StageShape:
    """One stage of a training.

    Attributes:
        name: as in the config's ``stages()``.
        item: what a batch is made of: an image, a clip, a sequence.
        num_steps: optimiser steps. batch_size: items of one step, of all processes together.
        build: makes the networks anew, in training mode.
        precision: ``fp32``, or ``bf16``: autocast around the forward pass.
        micro_batch_size: items of a forward pass and process, where the config says it.
        checkpointing: whether the config asks for activation checkpointing.
        sharded: whether weights, gradients and moments are spread over the processes (FSDP).
        half: whether weights are gathered in bfloat16 then.
        repeats: how often it is trained, as at several learning rates.
        replicated: whether every process computes the same steps.
        cache_bytes: files that are made once and read in every epoch.
        notes: what was assumed because only the data would tell.
    """

    name: str
    item: str
    num_steps: int
    batch_size: int
    build: Callable[[], Networks]
    precision: str = "fp32"
    micro_batch_size: int | None = None
    checkpointing: bool = False
    sharded: bool = False
    half: bool = False
    repeats: int = 1
    replicated: bool = False
    cache_bytes: int = 0
    notes: tuple[str, ...] = ()
