"""Layers that compute what those they replace compute, with less work. Parameters keep their names.

Linear           products by oneDNN where it is faster, see ``linear.py``
Pointwise        a 1x1 convolution as such a product
UpsampledConv    nearest-neighbour doubling and the 3x3 convolution after it, in one: 16 instead of 36 products a pixel
"""

from __future__ import annotations

import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.zoo.world.linear import linear


class Linear(nn.Linear):
    """``nn.Linear`` by ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution; on channels-last maps it is a product of their rows."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        return linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)


class UpsampledConv(nn.Module):
    """Maps (B, C, H, W) -> (B, C', 2H, 2W). Of 2x2 doubled pixels a 3x3 kernel sees only 2x2 different ones.

    So each of the four places of an output pixel has a 2x2 kernel of its own, sums of the 3x3 kernel's taps.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv
        self._kept: tuple[tuple[int, int], list[list[Tensor]]] | None = None

    def forward(self, maps: Tensor, output_size: int | None = None) -> Tensor:
        """``output_size`` is what diffusers' blocks pass; doubling is all they ask for."""
        num, _, height, width = maps.shape
        padded, kernels = F.pad(maps, (1, 1, 1, 1)), self._kernels()
        layout = (
            torch.channels_last if maps.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        )
        doubled: Tensor | None = None
        for i in (0, 1):
            for j in (0, 1):
                window = padded[:, :, i : i + height + 1, j : j + width + 1]
                found = F.conv2d(window, kernels[i][j], self.conv.bias)
                if doubled is None:
                    shape = (num, found.shape[1], 2 * height, 2 * width)
                    doubled = torch.empty(shape, dtype=found.dtype, device=found.device, memory_format=layout)
                doubled[:, :, i::2, j::2] = found
        assert doubled is not None
        return doubled

    def _kernels(self) -> list[list[Tensor]]:
        """Kernels (C', C, 2, 2) by row and column of the output place; kept between calls without gradient."""
        weight = self.conv.weight
        if torch.is_grad_enabled() and weight.requires_grad:
            return split_kernel(weight)
        stamp = (weight.data_ptr(), weight._version)
        if self._kept is None or self._kept[0] != stamp:
            self._kept = (stamp, split_kernel(weight))
        return self._kept[1]


def split_kernel(weight: Tensor) -> list[list[Tensor]]:
    """(C', C, 3, 3) -> four (C', C, 2, 2): an upper place sees the pixel above once, itself twice."""

    def halves(taps: Tensor, dim: int) -> list[Tensor]:
        one, two, three = taps.unbind(dim)
        return [torch.stack([one, two + three], dim), torch.stack([one + two, three], dim)]

    return [halves(rows, 3) for rows in halves(weight, 2)]


def exchange_layers(network: nn.Module) -> None:
    """Replace the layers of ``network`` by those above, parameters and all."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Upsample2D) and child.use_conv and type(child.conv) is nn.Conv2d:
                setattr(parent, name, UpsampledConv(child.conv))
            elif type(child) is nn.Linear:
                child.__class__ = Linear
            elif type(child) is nn.Conv2d and child.kernel_size == (1, 1):
                child.__class__ = Pointwise
