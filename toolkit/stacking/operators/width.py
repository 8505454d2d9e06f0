"""Growth in width (appendix A.3-A.5): direct, zero and random, one rule each for every kind of tensor.

The old part always comes first. Whole heads are added, so that rotary embeddings and the softmax scale stay
as they are, and every query head keeps its place in its key/value group.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.stacking.operators.architecture import Architecture, Spaces, Spec
from toolkit.stacking.operators.tensors import Info, Tensors, draw, precise


def wider_spaces(spaces: Spaces, factor: float, intermediate_size: int | None = None) -> Spaces:
    """Sizes after growing the hidden size by ``factor``: heads, key/value heads and MLP grow alike, head size stays.

    Raises UserError where one of them is not a whole number.
    """
    if factor <= 1:
        raise UserError(f"factor={factor:g}: must be greater than 1 to grow the width")

    def whole(what: str, size: int) -> int:
        if not math.isclose(size * factor, round(size * factor)):
            raise UserError(f"factor={factor:g}: {size} {what} times it is {size * factor:g}, not a whole number")
        return round(size * factor)

    heads = whole(f"attention heads (of {spaces.head_size} features)", spaces.heads)
    kv_heads, residual = whole("key/value heads", spaces.kv_heads), whole("hidden features", spaces.residual)
    mlp = intermediate_size or whole("MLP features", spaces.mlp)
    if mlp < spaces.mlp:
        raise UserError(f"intermediate_size={mlp}: the source's is {spaces.mlp} already")
    return Spaces(residual, heads, kv_heads, spaces.head_size, mlp)


def segments(old: Spaces, new: Spaces, space: str) -> list[tuple[int, int]]:
    """(old, new) number of features of every part of a space that grows by itself: q, k and v, or all of it."""
    parts = ("query", "key", "value") if space == "qkv" else (space,)
    return [(old.size(part), new.size(part)) for part in parts]


def copies(parts: list[tuple[int, int]]) -> Tensor:
    """Source feature of every target feature: each part's old features again and again."""
    starts = itertools.accumulate((old for old, _ in parts), initial=0)
    return torch.cat([torch.arange(new) % old + start for (old, new), start in zip(parts, starts, strict=False)])


def pieces(tensor: Tensor, axis: int, parts: list[tuple[int, int]]) -> list[Tensor]:
    """Views whose concatenation along ``axis`` is ``tensor`` with its features in the order of ``copies``."""
    found: list[Tensor] = []
    for (old, new), part in zip(parts, tensor.split([old for old, _ in parts], axis), strict=True):
        found += [part] * (new // old) + ([part.narrow(axis, 0, new % old)] if new % old else [])
    return found


def column_weights(index: Tensor, split: float) -> Tensor:
    """How much of its source column each copy keeps; the copies of one column sum to 1 (alpha + beta = 1).

    The first copy keeps ``split``, the next ``split`` of what is left, and so on; the last takes the rest. 0.5 means
    even: 1 / number of copies.
    """
    total = torch.bincount(index)[index]
    if split == 0.5:
        return 1 / total.double()
    order = torch.argsort(index, stable=True)
    position = torch.empty_like(index)  # 0 for the first copy of a column, 1 for the second, ...
    position[order] = torch.arange(len(index)) - torch.searchsorted(index[order], index[order])
    left = (1 - split) ** position.double()
    return torch.where(position == total - 1, left, split * left)


class Wider(Tensors):
    """The tensors of a wider network, by operator ``direct``, ``zero`` or ``random``.

    tied: the embedding is the output head too; ``direct`` then divides the final gain by the number of copies, because
    the head has no columns of its own to weigh. eps_factor: factor by which the norms' epsilon was scaled.
    """

    def __init__(
        self,
        source: Tensors,
        architecture: Architecture,
        operator: str,
        old: Spaces,
        new: Spaces,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        tied: bool,
        num_layers: int,
        split: float = 0.5,
        eps_factor: float = 1.0,
        seed: int = 0,
    ) -> None:
        if architecture.layer_norm and operator in ("zero", "random"):
            raise UserError(
                f"operator={operator} direction=width: appended features change the mean that LayerNorm subtracts; "
                f"networks with LayerNorm grow in width by direct or learn"
            )
        self.source, self.architecture, self.old, self.new = source, architecture, old, new
        self.operator, self.tied, self.num_layers, self.split = operator, tied, num_layers, split
        self.eps_factor, self.seed = eps_factor, seed
        self.infos = {name: Info(shape, source.infos[name].dtype) for name, shape in shapes.items()}

    def read(self, name: str) -> Tensor:
        tensor, spec, info = self.source.read(name), self.architecture.spec(name), self.infos[name]
        assert spec is not None
        if self.operator == "direct":
            return self._direct(name, tensor, spec)
        return self._appended(name, precise(tensor), spec).to(info.dtype)

    def _direct(self, name: str, tensor: Tensor, spec: Spec) -> Tensor:
        """Columns copied and weighed, rows and gains copied (appendix A.3).

        A tied head is not stored and the embedding keeps its columns; the final norm is divided by how many there are.
        """
        if self.tied and name == self.architecture.final_norm:
            tensor = (precise(tensor) / self._counts("residual")).to(tensor.dtype)
        if spec.reads is not None:
            tensor = self._weighed(tensor, spec.reads, segments(self.old, self.new, spec.axes[spec.reads]))
        for axis, space in enumerate(spec.axes):
            if space and tensor.shape[axis] != self.new.size(space):
                tensor = torch.cat(pieces(tensor, axis, segments(self.old, self.new, space)), axis)
        return tensor

    def _weighed(self, tensor: Tensor, axis: int, parts: list[tuple[int, int]]) -> Tensor:
        """The copies along the axis that is read, each with its weights, in the type of ``tensor``."""
        weights = column_weights(copies(parts), self.split).to(precise(tensor).dtype)
        views = pieces(precise(tensor), axis, parts)
        shape = [-1 if i == axis else 1 for i in range(tensor.dim())]
        shares = weights.split([view.shape[axis] for view in views])
        return torch.cat([(v * w.view(shape)).to(tensor.dtype) for v, w in zip(views, shares, strict=True)], axis)

    def _counts(self, space: str) -> Tensor:
        """How often each source feature of a space is copied."""
        return torch.bincount(copies(segments(self.old, self.new, space)))

    def _appended(self, name: str, tensor: Tensor, spec: Spec) -> Tensor:
        """[(W, A), (B, C)] with A, C drawn anew, and B zero (zero, appendix A.4) or drawn as well (random, A.5)."""
        info = self.infos[name]
        if self.operator == "zero" and spec.kind == "embedding":
            grown = torch.zeros(info.shape, dtype=tensor.dtype)
        else:
            grown = draw(spec, name, info, self.num_layers, self.seed).to(tensor.dtype)
        if self.operator == "zero":
            if spec.kind == "gain" and spec.axes == ("residual",):
                tensor = tensor * math.sqrt(self.old.residual / self.new.residual)
            elif spec.kind == "linear":
                grown[:, : tensor.shape[1]] = 0
            tensor = tensor * self._head_norm_factor(name, spec)
        grown[tuple(slice(size) for size in tensor.shape)] = tensor
        return grown

    def _head_norm_factor(self, name: str, spec: Spec) -> float:
        """sqrt of the epsilon's factor for queries and keys that are normalised (Qwen3), else 1.

        The norm of a head has the same epsilon as the others: with both scaled alike its output is unchanged.
        """
        part = {"query": "self_attn.q_norm.weight", "key": "self_attn.k_norm.weight"}.get(spec.axes[0], "")
        layer, _ = self.architecture.locate(name)
        normed = layer is not None and f"{self.architecture.layer_prefix}{layer}.{part}" in self.source.infos
        return math.sqrt(self.eps_factor) if normed else 1.0
