"""Layers that compute what those they replace compute, with less work. Parameters keep their names.

Linear           products by oneDNN where it is faster, see ``linear.py``
Pointwise        a 1x1 convolution as such a product
UpsampledConv    nearest-neighbour doubling and the 3x3 convolution after it, in one: 16 instead of 36 products a pixel
WinogradConv     a 3x3 convolution without gradient: 2.25 instead of 9 products a pixel, kernels four times as large
Residual         diffusers' block without a time embedding, and without its division by one
"""

from __future__ import annotations

import torch
from diffusers.models.resnet import ResnetBlock2D
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


class WinogradConv(nn.Conv2d):
    """F(4x4, 3x3) of Lavin and Gray (2016) with the points 0, 1, -1, 2, -2: for tiles of 4x4 outputs a product of 36
    matrices. On a CPU in float32 and without gradient; else the plain convolution.

    Rounding is about seven times a plain convolution's (some 5e-5 of the maps' deviation at most).
    """

    _kept: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, maps: Tensor) -> Tensor:
        graded = torch.is_grad_enabled() and (maps.requires_grad or self.weight.requires_grad)
        height, width = maps.shape[2:]
        if graded or maps.dtype != torch.float32 or maps.device.type != "cpu" or height % TILE or width % TILE:
            return super().forward(maps)
        tiles = height * width // TILE**2
        part = max(1, MOST_NUMBERS // (tiles * self.in_channels))  # images whose tiles stay in the caches
        rows = [self._tiled(one) for one in maps.permute(0, 2, 3, 1).split(part)]
        return (rows[0] if len(rows) == 1 else torch.cat(rows)).permute(0, 3, 1, 2)

    def _tiled(self, rows: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C')."""
        num, height, width, channels = rows.shape
        down, across = height // TILE, width // TILE
        padded = F.pad(rows, (0, 0, 1, 1, 1, 1)).contiguous()
        image, line, pixel, _ = padded.stride()
        windows = padded.as_strided(
            (WINDOW, WINDOW, num, down, across, channels), (line, pixel, image, TILE * line, TILE * pixel, 1)
        )
        found = (INWARD @ windows.reshape(WINDOW**2, -1)).view(WINDOW**2, -1, channels)
        found = torch.bmm(found, self._kernels())
        found = (OUTWARD @ found.flatten(1)).view(TILE, TILE, num, down, across, -1)
        out = rows.new_empty(num, height, width, found.shape[-1])
        places, tiles = out.view(num, down, TILE, across, TILE, -1), found.permute(2, 3, 0, 4, 1, 5)
        if self.bias is None:
            places.copy_(tiles)
        else:
            torch.add(tiles, self.bias, out=places)
        return out

    def _kernels(self) -> Tensor:
        """(36, C, C'); kept between calls."""
        stamp = (self.weight.data_ptr(), self.weight._version)
        if self._kept is None or self._kept[0] != stamp:
            taps = self.weight.detach().double().permute(2, 3, 1, 0).flatten(0, 1)
            self._kept = (stamp, (KERNEL @ taps.flatten(1)).float().view(-1, *taps.shape[1:]))
        return self._kept[1]


TILE, WINDOW = 4, 6
LEAST_CHANNELS = 64  # from which products cost more than cutting tiles
MOST_NUMBERS = 2**15  # of the maps that are tiled at a time, before they grow: 36 / 16 times


def _squared(rows: list[list[float]]) -> Tensor:
    """A transform of lines -> that of squares, of their numbers in a row."""
    one = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(one, one)


INWARD = _squared(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
).float()
KERNEL = _squared(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
OUTWARD = _squared([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]).float()


class Residual(ResnetBlock2D):
    """Norm, SiLU, convolution, twice, beside the input or its 1x1 convolution. Never with dropout or an embedding."""

    def forward(self, maps: Tensor, temb: None = None) -> Tensor:
        hidden = self.conv1(_active(self.norm1(maps)))
        hidden = self.conv2(_active(self.norm2(hidden)))
        return hidden + (maps if self.conv_shortcut is None else self.conv_shortcut(maps))


def _active(maps: Tensor) -> Tensor:
    return F.silu(maps, inplace=not maps.requires_grad)


def _is_same(conv: nn.Conv2d) -> bool:
    """A plain 3x3 convolution to maps of the same size."""
    return (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode) == (
        (3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros"
    )  # fmt: skip


def exchange_layers(network: nn.Module, winograd: bool = False) -> None:
    """Replace the layers of ``network`` by those above, parameters and all.

    winograd: also its 3x3 convolutions, whose larger kernels are then kept.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Upsample2D) and child.use_conv and type(child.conv) is nn.Conv2d:
                setattr(parent, name, UpsampledConv(child.conv))
            elif type(child) is nn.Linear:
                child.__class__ = Linear
            elif type(child) is nn.Conv2d and child.kernel_size == (1, 1):
                child.__class__ = Pointwise
            elif (
                type(child) is ResnetBlock2D and child.output_scale_factor == 1 and type(child.nonlinearity) is nn.SiLU
            ):
                child.__class__ = Residual
            elif winograd and type(child) is nn.Conv2d and child.in_channels >= LEAST_CHANNELS and _is_same(child):
                child.__class__ = WinogradConv
