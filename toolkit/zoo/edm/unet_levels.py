"""The levels (resolutions) of the EDM release's UNets, with the side paths of NCSN++ (Song et al. 2021, section 4.1).

Shapes: B samples, C x H x W features, E embedding width, m tokens of width w.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.zoo.edm.blocks import Resample, ResampledConv, ResidualBlock, group_norm


class InputSkip(nn.Module):
    """Encoder of type "skip": the downsampled input image enters every level through a 1x1 convolution."""

    def __init__(self, image_channels: int, channels: int, taps: Sequence[float]) -> None:
        super().__init__()
        self.down = Resample("down", taps)
        self.conv = nn.Conv2d(image_channels, channels, 1)

    def forward(self, h: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        side = self.down(side)
        return h + self.conv(side), side


class InputResidual(nn.Module):
    """Encoder of type "residual": a second path of strided convolutions is averaged into every level."""

    def __init__(self, side_channels: int, channels: int, taps: Sequence[float]) -> None:
        super().__init__()
        self.conv = ResampledConv(side_channels, channels, 3, "down", taps, filter_last=True)

    def forward(self, h: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        h = (h + self.conv(side)) * 0.5**0.5
        return h, h


class EncoderLevel(nn.Module):
    """One resolution on the way down; every feature map it makes goes on the stack of skips."""

    def __init__(self, entry: nn.Module, side: nn.Module | None, blocks: list[ResidualBlock]) -> None:
        super().__init__()
        self.entry, self.side = entry, side
        self.blocks = cast(list[ResidualBlock], nn.ModuleList(blocks))

    def forward(
        self, h: Tensor, side: Tensor, embedding: Tensor, tokens: Tensor | None, skips: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        h = self.entry(h, embedding, tokens) if isinstance(self.entry, ResidualBlock) else self.entry(h)
        if self.side is not None:
            h, side = self.side(h, side)
        skips.append(h)
        for block in self.blocks:
            h = block(h, embedding, tokens)
            skips.append(h)
        return h, side


class OutputHead(nn.Module):
    """Features to an image, added to the upsampled image of the level below where there is one."""

    def __init__(self, channels: int, image_channels: int, eps: float, up: Resample | None = None) -> None:
        super().__init__()
        self.up = up
        self.norm = group_norm(channels, eps)
        self.conv = nn.Conv2d(channels, image_channels, 3, padding=1)

    def forward(self, h: Tensor, image: Tensor | None) -> Tensor:
        output = self.conv(functional.silu(self.norm(h)))
        return output if image is None or self.up is None else output + self.up(image)


class DecoderLevel(nn.Module):
    """One resolution on the way up; every block first takes a feature map off the stack of skips."""

    def __init__(self, up: ResidualBlock | None, blocks: list[ResidualBlock], head: OutputHead | None) -> None:
        super().__init__()
        self.up, self.head = up, head
        self.blocks = cast(list[ResidualBlock], nn.ModuleList(blocks))

    def forward(
        self, h: Tensor, image: Tensor | None, embedding: Tensor, tokens: Tensor | None, skips: list[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        if self.up is not None:
            h = self.up(h, embedding, tokens)
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding, tokens)
        return h, image if self.head is None else self.head(h, image)
