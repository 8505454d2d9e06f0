"""The levels (resolutions), embedding and latents that ADMUNet, SongUNet and UViT share.

The side paths of the levels are those of NCSN++ (Song et al. 2021, section 4.1).

Shapes: B samples, C x H x W image or features, E embedding width, K classes, m tokens of width w.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.errors import UserError
from toolkit.zoo.edm.blocks import (
    BlockOptions,
    CrossAttention,
    Resample,
    ResampledConv,
    ResidualBlock,
    SelfAttention,
    group_norm,
)
from toolkit.zoo.edm.denoiser import Denoiser, own_randomness


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
        output = self.conv(F.silu(self.norm(h)))
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


class UNet(Denoiser):
    """What the UNets share: levels of residual blocks, and ADM's embedding of noise, class and augmentation.

    A subclass calls ``_build_embedding`` and ``_build``, initialises the weights and calls ``_add_latents`` last.
    """

    latent_keys = (*Denoiser.latent_keys, "null_kv")

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.config["in_channels"], self.config["image_size"], self.config["image_size"]

    def _build_embedding(self, noise_width: int, width: int, class_width: int, class_bias: bool) -> None:
        """The maps from sines and cosines (noise_width) to the embedding (width); classes enter at class_width."""
        num_classes, augment_dim = self.num_classes, self.config["augment_dim"]
        self.map_augment = nn.Linear(augment_dim, noise_width, bias=False) if augment_dim else None
        self.map_in, self.map_out = nn.Linear(noise_width, width), nn.Linear(width, width)
        self.map_class = nn.Linear(num_classes, class_width, bias=class_bias) if num_classes else None

    def _build(
        self, options: BlockOptions, encoder_type: str, decoder_type: str, all_decoder_blocks_attend: bool
    ) -> None:
        config = self.config
        check_sizes(config["image_size"], config["channel_mult"], options.taps)
        attends = [size in config["attn_resolutions"] for size in self.resolutions]
        widths = [config["model_channels"] * mult for mult in config["channel_mult"]]
        skips = self._build_encoder(options, encoder_type, attends, widths)
        deepest = widths[-1]
        middle = [ResidualBlock(deepest, deepest, options, attention=True), ResidualBlock(deepest, deepest, options)]
        self.middle = cast(list[ResidualBlock], nn.ModuleList(middle))
        self._build_decoder(options, decoder_type, attends, widths, skips, all_decoder_blocks_attend)

    def _build_encoder(
        self, options: BlockOptions, encoder_type: str, attends: list[bool], widths: list[int]
    ) -> list[int]:
        """Returns the channels of the feature maps on the stack of skips."""
        image_channels, first = self.config["in_channels"], self._first_width()
        self.encoder = cast(list[EncoderLevel], nn.ModuleList())
        skips, channels, side_channels = [], first, image_channels
        for level, width in enumerate(widths):
            entry: nn.Module = nn.Conv2d(image_channels, first, 3, padding=1)
            side: nn.Module | None = None
            if level > 0:
                entry = ResidualBlock(channels, channels, options, "down")
                if encoder_type == "skip":
                    side = InputSkip(image_channels, channels, options.taps)
                elif encoder_type == "residual":
                    side, side_channels = InputResidual(side_channels, channels, options.taps), channels
            skips.append(channels)
            blocks = []
            for _ in range(self.config["num_blocks"]):
                blocks.append(ResidualBlock(channels, width, options, attention=attends[level]))
                channels = width
                skips.append(channels)
            self.encoder.append(EncoderLevel(entry, side, blocks))
        return skips

    def _build_decoder(
        self,
        options: BlockOptions,
        decoder_type: str,
        attends: list[bool],
        widths: list[int],
        skips: list[int],
        all_blocks_attend: bool,
        up_first: bool = False,
    ) -> None:
        image_channels, num_blocks = self.config["in_channels"], self.config["num_blocks"]
        self.decoder = cast(list[DecoderLevel], nn.ModuleList())
        channels, lowest = widths[-1], len(widths) - 1
        for level in range(lowest, -1, -1):
            up = ResidualBlock(channels, channels, options, "up") if level < lowest or up_first else None
            blocks = []
            for index in range(num_blocks + 1):
                attention = attends[level] and (all_blocks_attend or index == num_blocks)
                blocks.append(ResidualBlock(channels + skips.pop(), widths[level], options, attention=attention))
                channels = widths[level]
            head = None
            if level == 0 or decoder_type == "skip":
                image_up = Resample("up", options.taps) if decoder_type == "skip" and level < lowest else None
                head = OutputHead(channels, image_channels, options.eps, image_up)
            self.decoder.append(DecoderLevel(up, blocks, head))

    def _first_width(self) -> int:
        """Channels of the first convolution."""
        raise NotImplementedError

    @property
    def resolutions(self) -> list[int]:
        """Feature map sizes, highest first."""
        return [self.config["image_size"] >> level for level in range(len(self.config["channel_mult"]))]

    def _network(  # type: ignore[override]
        self,
        x_in: Tensor,
        c_noise: Tensor,
        class_onehot: Tensor | None,
        tokens: Tensor | None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """augment_labels: (B, augment_dim), parameters of a non-leaking augmentation; None where there was none."""
        embedding = self._embed(c_noise, self._drop_labels(class_onehot, len(x_in)), tokens, augment_labels)
        h = side = x_in.to(self.map_in.weight.dtype)
        skips: list[Tensor] = []
        for level in self.encoder:
            h, side = level(h, side, embedding, tokens, skips)
        h = self._bottom(h, embedding, tokens)
        image: Tensor | None = None
        for up_level in self.decoder:
            h, image = up_level(h, image, embedding, tokens, skips)
        assert image is not None  # the last level has a head
        return image

    def _bottom(self, h: Tensor, embedding: Tensor, tokens: Tensor | None) -> Tensor:
        """What lies between encoder and decoder."""
        for block in self.middle:
            h = block(h, embedding, tokens)
        return h

    def _embed(
        self, c_noise: Tensor, class_onehot: Tensor | None, tokens: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """The noise embedding (B or 1, E) that every block sees."""
        embedding = self._augmented(self.noise_embedding(c_noise).to(self.map_in.weight.dtype), augment_labels)
        embedding = self.map_out(F.silu(self.map_in(embedding)))
        if self.map_class is not None:
            embedding = embedding + self.map_class(class_onehot)
        return self._finish_embedding(embedding, tokens)

    def _augmented(self, embedding: Tensor, augment_labels: Tensor | None) -> Tensor:
        if augment_labels is None:
            return embedding
        if self.map_augment is None:
            raise ValueError("augment_labels given to a network built with augment_dim=0")
        return embedding + self.map_augment(augment_labels)

    def _drop_labels(self, class_onehot: Tensor | None, batch_size: int) -> Tensor | None:
        """In training, zero the labels of each sample with probability ``label_dropout``."""
        if class_onehot is None:
            return None
        class_onehot, rate = class_onehot.to(self.map_in.weight.dtype), self.config["label_dropout"]
        if not self.training or not rate:
            return class_onehot
        return class_onehot * (torch.rand(batch_size, 1, device=class_onehot.device) >= rate)

    def _finish_embedding(self, embedding: Tensor, tokens: Tensor | None) -> Tensor:
        if self.map_latents is not None and tokens is not None:
            embedding = embedding + self.map_latents(tokens.flatten(1))
        return F.silu(embedding)

    def _add_latents(self, embedding_width: int, num_heads: Callable[[int], int]) -> None:
        """Cross-attention after every self-attention, and the projection of ``latent_film``: both start at zero."""
        config = self.config
        self.map_latents: nn.Linear | None = None
        if not self.num_latents:
            return
        with own_randomness():
            for block, slots in self._routes():
                channels = cast(int, block.out_channels)
                block.cross_attention = CrossAttention(
                    channels, max(1, num_heads(channels)), config["latent_width"], slots, config["null_kv"]
                )
            if config["latent_film"]:
                self.map_latents = nn.Linear(self.num_latents * config["latent_width"], embedding_width)
                nn.init.zeros_(self.map_latents.weight)
                nn.init.zeros_(self.map_latents.bias)

    def _zero_last_layers(self) -> None:
        """Every branch and the output start at zero, classes unit normal; the rest keeps PyTorch's initialisation."""
        last: list[nn.Module] = [level.head.conv for level in self.decoder if level.head is not None]
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                last.append(module.conv_out)
            elif isinstance(module, SelfAttention):
                last.append(module.out)
        if self.map_augment is not None:
            last.append(self.map_augment)
        for layer in last:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        if self.map_class is not None:
            nn.init.normal_(self.map_class.weight)

    def _routes(self) -> list[tuple[nn.Module, slice]]:
        """Blocks that get cross-attention, each with the slots it sees.

        One group: all slots everywhere. More: the g-th group goes to the g-th resolution with attention on the way up
        (the middle included), lowest first.
        """
        up = [[*self.middle, *self.decoder[0].blocks], *(level.blocks for level in self.decoder[1:])]
        up = [[block for block in level if block.attends] for level in up]
        groups = self.config["latent_groups"]
        if groups == 1:
            down = [block for level in self.encoder for block in level.blocks if block.attends]
            return [(block, slice(None)) for block in (*down, *(block for level in up for block in level))]
        up = [level for level in up if level]
        if len(up) < groups:
            raise UserError(f"latent_groups={groups}: must be at most {len(up)}, the resolutions with attention")
        size = self.num_latents // groups
        return [(block, slice(g * size, (g + 1) * size)) for g in range(groups) for block in up[g]]


def check_sizes(image_size: int, channel_mult: Sequence[int], taps: Sequence[float]) -> None:
    """Raise UserError unless the image can be halved once per level and the filter is centred between pixels."""
    factor = 2 ** (len(channel_mult) - 1)
    if not channel_mult or image_size % factor:
        raise UserError(f"image_size={image_size}: must be divisible by {factor} for {len(channel_mult)} levels")
    if not taps or len(taps) % 2:
        raise UserError(f"resample_filter={list(taps)}: must have an even number of taps")
