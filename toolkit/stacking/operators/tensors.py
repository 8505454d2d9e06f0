"""Named tensors that are read one at a time, so that a model is never held whole while it grows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor

from toolkit.runs.seeds import generator
from toolkit.stacking.operators.architecture import Architecture, Spec


@dataclass(frozen=True)
class Info:
    """Shape and dtype of a tensor that has not been read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Tensors(ABC):
    """A set of tensors: ``infos`` says what there is, in order, ``read`` gets one."""

    infos: Mapping[str, Info]

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU; the caller may keep it but not change it."""

    def write(self, name: str, file: BinaryIO) -> None:
        """The tensor's bytes, appended to an open file."""
        file.write(self.read(name).contiguous().reshape(-1).view(torch.uint8).numpy().data)


class InMemory(Tensors):
    """A state dict."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = {name: tensor.detach().cpu() for name, tensor in state.items()}
        self.infos = {name: Info(tuple(tensor.shape), tensor.dtype) for name, tensor in self.state.items()}

    def read(self, name: str) -> Tensor:
        return self.state[name]


class Renamed(Tensors):
    """The same tensors under other names; ``stored``: name -> the name it has in ``source``."""

    def __init__(self, source: Tensors, stored: Mapping[str, str]) -> None:
        self.source, self.stored = source, stored
        self.infos = {name: source.infos[origin] for name, origin in stored.items()}

    def read(self, name: str) -> Tensor:
        return self.source.read(self.stored[name])

    def write(self, name: str, file: BinaryIO) -> None:
        self.source.write(self.stored[name], file)


class Watched(Tensors):
    """The same tensors; ``on_tensor()`` is called after each one that is written."""

    def __init__(self, source: Tensors, on_tensor: Callable[[], None]) -> None:
        self.source, self.on_tensor = source, on_tensor
        self.infos = source.infos

    def read(self, name: str) -> Tensor:
        return self.source.read(name)

    def write(self, name: str, file: BinaryIO) -> None:
        self.source.write(name, file)
        self.on_tensor()


def precise(tensor: Tensor) -> Tensor:
    """In float32 at least: weights split in bfloat16 no longer sum to one (cast back when stored)."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def init_std(spec: Spec, shape: tuple[int, ...], num_layers: int) -> float:
    """Standard deviation of the released initialisation: sqrt(2 / (5 fan_in)), for the MLP output 1 / sqrt(fan_in) / l.

    An embedding's fan-in is its last axis.
    """
    fan_in = spec.fan_in(shape)
    if spec.writes and "mlp" in spec.axes:
        return fan_in**-0.5 / num_layers
    return math.sqrt(2 / (5 * fan_in))


def draw(spec: Spec, name: str, info: Info, num_layers: int, seed: int) -> Tensor:
    """A freshly initialised tensor, the same whatever else is drawn: gains neutral, biases 0, the rest ``init_std``."""
    if spec.kind in ("gain", "bias"):
        return torch.full(info.shape, spec.neutral if spec.kind == "gain" else 0.0, dtype=info.dtype)
    dtype = torch.float64 if info.dtype == torch.float64 else torch.float32
    noise = torch.randn(info.shape, dtype=dtype, generator=generator(seed, "growth", name))
    return noise * init_std(spec, info.shape, num_layers)


class Noisy(Tensors):
    """W <- (1 - alpha) W + alpha eps on embeddings and linear maps (appendix I.2; gains and biases stay).

    eps ~ N(0, 1 / (d l^2)) for the two outputs of a block, N(0, 2 / (5 d)) for the rest; d fan-in, l number of layers.
    """

    def __init__(
        self, source: Tensors, architecture: Architecture, alpha: float, num_layers: int, seed: int = 0
    ) -> None:
        self.source, self.architecture = source, architecture
        self.alpha, self.num_layers, self.seed = alpha, num_layers, seed
        self.infos = source.infos

    def read(self, name: str) -> Tensor:
        tensor, spec = self.source.read(name), self.architecture.spec(name)
        if spec is None or spec.kind in ("gain", "bias"):
            return tensor
        fan_in = spec.fan_in(tensor.shape)
        std = fan_in**-0.5 / self.num_layers if spec.writes else math.sqrt(2 / (5 * fan_in))
        weights = precise(tensor)
        noise = torch.randn(weights.shape, dtype=weights.dtype, generator=generator(self.seed, "noise", name))
        return weights.mul(1 - self.alpha).add_(noise, alpha=self.alpha * std).to(tensor.dtype)
