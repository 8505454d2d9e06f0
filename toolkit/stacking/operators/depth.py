"""Growth in depth (appendix A.3-A.5): a target layer is a copy, a copy with zeroed outputs, or newly initialised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import BinaryIO

import torch
from torch import Tensor

from toolkit.stacking.operators.architecture import Architecture
from toolkit.stacking.operators.patterns import Layer
from toolkit.stacking.operators.tensors import Info, Tensors, draw


class Deeper(Tensors):
    """The tensors of a deeper network.

    Copies are bit-equal to their source (G_direct, algorithm 1); zeroed layers have attention output and MLP output
    zero (G_zero, appendix A.4), fresh layers are initialised anew (G_random, appendix A.5). Embedding, final norm and
    head are copied once.
    """

    def __init__(
        self,
        source: Tensors,
        architecture: Architecture,
        plan: Sequence[Layer],
        shapes: Mapping[str, tuple[int, ...]],
        seed: int = 0,
    ) -> None:
        self.source, self.architecture, self.plan, self.seed = source, architecture, plan, seed
        self.infos = {name: Info(shape, source.infos[self.origin(name)].dtype) for name, shape in shapes.items()}

    def origin(self, name: str) -> str:
        """The source tensor that ``name`` is copied from."""
        layer, _ = self.architecture.locate(name)
        return name if layer is None else self.architecture.rename(name, self.plan[layer].source)

    def read(self, name: str) -> Tensor:
        spec, info = self.architecture.spec(name), self.infos[name]
        assert spec is not None
        if self._is_copy(name):
            return self.source.read(self.origin(name))
        if spec.writes and not self._layer(name).fresh:
            return torch.zeros(info.shape, dtype=info.dtype)
        return draw(spec, name, info, len(self.plan), self.seed).to(info.dtype)

    def write(self, name: str, file: BinaryIO) -> None:
        if self._is_copy(name):
            self.source.write(self.origin(name), file)
        else:
            super().write(name, file)

    def _layer(self, name: str) -> Layer:
        number, _ = self.architecture.locate(name)
        return _OUTSIDE if number is None else self.plan[number]

    def _is_copy(self, name: str) -> bool:
        layer, spec = self._layer(name), self.architecture.spec(name)
        return not layer.fresh and not (layer.zeroed and spec is not None and spec.writes)


_OUTSIDE = Layer(0)  # embedding, final norm and head: copied once
