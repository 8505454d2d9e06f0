"""What growth must know of a network: which space each axis of each tensor lives in.

With that, every operator is a rule about axes, written once, and holds for Llama-style and zoo Transformers alike.

Spaces: ``residual`` the stream between blocks, ``query`` / ``key`` / ``value`` the heads' features, ``attended`` the
input of the attention output (features of the query heads), ``qkv`` query, key and value one after the other, ``mlp``
the hidden features; "" an axis that does not grow (vocabulary, inside of a head).
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from toolkit.stacking.config import ANY_DIRECTION
from toolkit.stacking.operators.patterns import Layer

Kind = Literal["embedding", "linear", "bias", "gain", "head"]


@dataclass(frozen=True)
class Spec:
    """A tensor's axes.

    reads: the axis that is summed over with the input (the columns of a linear map).
    writes: the tensor adds to the residual stream (attention output, MLP output and their biases): zero it and its
        branch is silent.
    neutral: of a gain, the value that changes nothing.
    """

    kind: Kind
    axes: tuple[str, ...]
    reads: int | None = None
    writes: bool = False
    neutral: float = 1.0

    def fan_in(self, shape: tuple[int, ...]) -> int:
        """Inputs of each output: the axis that is read; of a table the last one, of a convolution all but the first."""
        if self.reads is not None:
            return shape[self.reads]
        return shape[-1] if self.axes[-1] else math.prod(shape[1:])


@dataclass(frozen=True)
class Spaces:
    """Sizes of the spaces; every attention space is a whole number of heads."""

    residual: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int

    def size(self, space: str) -> int:
        """Features of a space."""
        query, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        sizes = {"residual": self.residual, "mlp": self.mlp, "query": query, "attended": query, "key": kv, "value": kv}
        return query + 2 * kv if space == "qkv" else sizes[space]


class Architecture(ABC):
    """A family of networks that can grow. ``config`` is whatever the family builds from."""

    width_operators: ClassVar[tuple[str, ...]] = ANY_DIRECTION  # by which it grows in width
    prefix: ClassVar[str] = "model."  # which files that hold the network without its head leave out
    layer_norm: ClassVar[bool] = False  # LayerNorm instead of RMSNorm: its mean rules out appended zero features
    tensors: ClassVar[Mapping[str, Spec]]  # by full name outside of the layers
    layer_tensors: ClassVar[Mapping[str, Spec]]  # by the name inside of a layer
    layer_prefix: str  # as "model.layers."
    final_norm: str  # name of the gain before the output head
    embedding: str  # name of the tokens' table, which is the output head too where the two are tied
    head: str  # name of the output head

    def locate(self, name: str) -> tuple[int | None, str]:
        """Layer number and name inside of the layer; (None, name) outside of the layers."""
        match = re.match(rf"{re.escape(self.layer_prefix)}(\d+)\.", name)
        return (int(match[1]), name[match.end() :]) if match else (None, name)

    def rename(self, name: str, layer: int) -> str:
        """The same tensor of another layer."""
        return f"{self.layer_prefix}{layer}.{self.locate(name)[1]}"

    def spec(self, name: str) -> Spec | None:
        """Axes of a tensor; None for one this family does not have."""
        layer, rest = self.locate(name)
        return self.tensors.get(rest) if layer is None else self.layer_tensors.get(rest)

    def active_share(self, config: Any, name: str) -> float:
        """The share of a tensor that one token meets; under 1 for experts."""
        return 1.0

    @abstractmethod
    def spaces(self, config: Any) -> Spaces: ...

    @abstractmethod
    def num_layers(self, config: Any) -> int: ...

    @abstractmethod
    def tied(self, config: Any) -> bool:
        """Whether the output head is the embedding itself."""

    @abstractmethod
    def context(self, config: Any) -> int:
        """The longest sequence it is made for, in tokens."""

    @abstractmethod
    def deepened(self, config: Any, plan: Sequence[Layer]) -> Any:
        """The config with the plan's layers; per-layer settings follow their source layer."""

    @abstractmethod
    def widened(self, config: Any, spaces: Spaces, norm_eps_factor: float = 1.0) -> Any: ...

    @abstractmethod
    def skeleton(self, config: Any) -> nn.Module:
        """The network on the meta device."""

    def shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every stored tensor, in the network's order; a tied head is not stored."""
        skeleton = self.skeleton(config)
        kept = {**dict(skeleton.named_parameters()), **_persistent_buffers(skeleton)}  # named_parameters: tied once
        return {name: tuple(kept[name].shape) for name in skeleton.state_dict() if name in kept}


def _persistent_buffers(network: nn.Module) -> dict[str, Any]:
    stored = network.state_dict()
    return {name: buffer for name, buffer in network.named_buffers() if name in stored}
