"""The convolutional halves of iVideoGPT's tokenizer (section 3.1): plain and conditional encoder, decoder.

Blocks are diffusers' own; module names are those of the release, so that its tensors fit by name. Shapes: B clips, T0
context frames, F future frames, C channels, s x s the size of a feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, get_down_block, get_up_block
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.zoo.world.fast_layers import exchange_layers
from toolkit.zoo.world.linear import linear


class KeyValue(NamedTuple):
    """Keys and values of the context at one level, both (B,heads,T0 s^2,C/heads): computed once per clip."""

    keys: Tensor
    values: Tensor

    def select(self, index: Tensor) -> KeyValue:
        """The clips ``index``, in that order."""
        return KeyValue(self.keys[index], self.values[index])

    @classmethod
    def joined(cls, parts: Sequence[KeyValue], order: Tensor) -> KeyValue:
        """The clips ``order`` of all parts', counted one part after the other."""
        return cls(*(torch.cat(tensors)[order] for tensors in zip(*parts, strict=True)))


class CrossAttention(nn.Module):
    """Future feature maps attend to the context's maps of the same level (eq. 5), then SiLU.

    ``num_frames`` T0 and ``size`` s fix the learned position tables, which start at zero.
    """

    NUM_HEADS = 4

    def __init__(self, channels: int, size: int, num_frames: int, num_groups: int, dropout: float = 0.1):
        super().__init__()
        self.att = nn.MultiheadAttention(channels, self.NUM_HEADS, dropout=dropout, batch_first=True)
        self.resid_dropout = nn.Dropout(dropout)
        self.kv_norm = nn.GroupNorm(num_groups, channels)
        self.q_norm = nn.GroupNorm(num_groups, channels)
        self.kv_pos_emb = nn.Parameter(torch.zeros(num_frames * size * size, channels))
        self.q_pos_emb = nn.Parameter(torch.zeros(size * size, channels))

    def remember(self, context: Tensor) -> KeyValue:
        """Context maps (B, T0, C, s, s) -> their keys and values; the norm sees the T0 maps as one tall map."""
        tall = context.transpose(1, 2).flatten(2, 3)  # (B,C,T0 s,s)
        rows = self.kv_norm(tall).flatten(2).transpose(1, 2) + self.kv_pos_emb
        width = rows.shape[-1]
        weight, bias = self.att.in_proj_weight[width:], self.att.in_proj_bias[width:]
        keys, values = linear(rows, weight, bias).chunk(2, dim=-1)
        return KeyValue(self._split(keys), self._split(values))

    def forward(self, maps: Tensor, memory: KeyValue) -> Tensor:
        """Maps (B*F, C, s, s) of the future frames, clip by clip -> the same shape."""
        rows = self.q_norm(maps).flatten(2).transpose(1, 2) + self.q_pos_emb
        width, num_clips = rows.shape[-1], len(memory.keys)
        queries = linear(rows, self.att.in_proj_weight[:width], self.att.in_proj_bias[:width])
        # all frames of a clip share its keys: they are one long list of queries
        dropout = self.att.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(
            self._split(queries.reshape(num_clips, -1, width)), memory.keys, memory.values, dropout_p=dropout
        )
        found = found.transpose(1, 2).reshape(rows.shape)
        found = linear(found, self.att.out_proj.weight, self.att.out_proj.bias)
        return F.silu(maps + self.resid_dropout(found).transpose(1, 2).reshape(maps.shape))

    @torch.no_grad()
    def start_diagonal(self, scale: float = 1.0, generator: torch.Generator | None = None) -> None:
        """Start with every query looking at the same place of the context (last frame and earlier ones alike).

        Not in the paper: both position tables get the same random rows, and query and key projections the identity.
        """
        size, width = len(self.q_pos_emb), self.q_pos_emb.shape[1]
        table = torch.randn(self.q_pos_emb.shape, generator=generator) * scale
        self.q_pos_emb.copy_(table)
        self.kv_pos_emb.copy_(table.repeat(len(self.kv_pos_emb) // size, 1))
        self.att.in_proj_weight[: 2 * width].copy_(torch.eye(width).repeat(2, 1))

    def keep_last_frames(self, num_frames: int, size: int) -> None:
        """Cut the table of key positions to its last ``num_frames`` frames, as the release does."""
        self.kv_pos_emb = nn.Parameter(self.kv_pos_emb.detach()[-num_frames * size * size :].clone())

    def _split(self, rows: Tensor) -> Tensor:
        """(B, L, C) -> (B, heads, L, C/heads)."""
        return rows.unflatten(-1, (self.NUM_HEADS, -1)).transpose(1, 2)


class Encoder(nn.Module):
    """Images (B, 3, H, W) -> latents (B, out_channels, h, w), halved by every block but the last."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_types: Sequence[str],
        widths: Sequence[int],
        layers_per_block: int,
        num_groups: int,
        act_fn: str,
        mid_attention: bool,
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            get_down_block(
                kind,
                num_layers=layers_per_block,
                in_channels=widths[max(0, level - 1)],
                out_channels=widths[level],
                add_downsample=level < len(widths) - 1,
                resnet_eps=1e-6,
                downsample_padding=0,
                resnet_act_fn=act_fn,
                resnet_groups=num_groups,
                attention_head_dim=widths[level],
                temb_channels=None,
            )
            for level, kind in enumerate(block_types)
        )
        self.mid_block = _mid_block(widths[-1], num_groups, act_fn, mid_attention)
        self.conv_norm_out = nn.GroupNorm(num_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        exchange_layers(self)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Latents, and the feature maps after every down block."""
        hidden, maps = self.conv_in(laid_out(images)), []
        for block in self.down_blocks:
            hidden = block(hidden)
            maps.append(hidden)
        return self._finish(hidden), maps

    def _finish(self, hidden: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(hidden))))


class ConditionalEncoder(Encoder):
    """The encoder of future frames: cross-attention after every block whose map is at most ``max_attention_size``."""

    def __init__(self, image_size: int, num_frames: int, max_attention_size: int, **plain):
        super().__init__(**plain)
        widths = plain["widths"]
        sizes = [image_size >> min(level + 1, len(widths) - 1) for level in range(len(widths))]
        self.attended = [level for level, size in enumerate(sizes) if size <= max_attention_size]
        self.cross_att_blocks: Any = nn.ModuleList(
            CrossAttention(widths[i], sizes[i], num_frames, attention_groups(widths[i], plain["num_groups"]))
            for i in self.attended
        )

    def remember(self, maps: Sequence[Tensor]) -> list[KeyValue]:
        """Keys and values of the context encoder's maps, one (B, T0, C, s, s) per down block."""
        return [attend.remember(maps[i]) for attend, i in zip(self.cross_att_blocks, self.attended, strict=True)]

    def forward(self, images: Tensor, memory: Sequence[KeyValue]) -> Tensor:  # type: ignore[override]
        """Future frames (B*F, 3, H, W) -> latents."""
        hidden, attends = self.conv_in(laid_out(images)), iter(zip(self.cross_att_blocks, memory, strict=True))
        for level, block in enumerate(self.down_blocks):
            hidden = block(hidden)
            if level in self.attended:
                attend, known = next(attends)
                hidden = attend(hidden, known)
        return self._finish(hidden)


class Decoder(nn.Module):
    """Latents (B, in_channels, h, w) -> images (B, out_channels, H, W), doubled by all but the last block."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_types: Sequence[str],
        widths: Sequence[int],
        layers_per_block: int,
        num_groups: int,
        act_fn: str,
        mid_attention: bool,
    ):
        super().__init__()
        falling = list(reversed(widths))
        self.conv_in = nn.Conv2d(in_channels, falling[0], 3, padding=1)
        self.mid_block = _mid_block(falling[0], num_groups, act_fn, mid_attention)
        self.up_blocks = nn.ModuleList(
            get_up_block(
                kind,
                num_layers=layers_per_block + 1,
                in_channels=falling[max(0, level - 1)],
                out_channels=falling[level],
                prev_output_channel=None,
                add_upsample=level < len(widths) - 1,
                resnet_eps=1e-6,
                resnet_act_fn=act_fn,
                resnet_groups=num_groups,
                attention_head_dim=falling[level],
                temb_channels=None,
                resnet_time_scale_shift="group",
            )
            for level, kind in enumerate(block_types)
        )
        self.conv_norm_out = nn.GroupNorm(num_groups, falling[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(falling[-1], out_channels, 3, padding=1)
        exchange_layers(self)

    def forward(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images, and the feature maps after the middle and after every up block."""
        hidden = self.mid_block(self.conv_in(laid_out(latents)))
        maps = [hidden]
        for block in self.up_blocks:
            hidden = block(hidden)
            maps.append(hidden)
        return self._finish(hidden), maps

    def _finish(self, hidden: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.conv_norm_out(hidden)))


class ConditionalDecoder(Decoder):
    """The decoder of future frames: cross-attention after the middle and after every up block that is small enough."""

    def __init__(self, latent_size: int, num_frames: int, max_attention_size: int, **plain):
        super().__init__(**plain)
        falling = list(reversed(plain["widths"]))
        sizes = [latent_size] + [latent_size << min(level + 1, len(falling) - 1) for level in range(len(falling))]
        channels = [falling[0], *falling]
        self.attended = [0] + [i for i in range(1, len(sizes)) if sizes[i] <= max_attention_size]
        exchange_layers(self, winograd=True)
        self.cross_att_blocks: Any = nn.ModuleList(
            CrossAttention(channels[i], sizes[i], num_frames, attention_groups(channels[i], plain["num_groups"]))
            for i in self.attended
        )

    def remember(self, maps: Sequence[Tensor]) -> list[KeyValue]:
        """Keys and values of the context decoder's maps, (B, T0, C, s, s): the middle's, then one per up block."""
        return [attend.remember(maps[i]) for attend, i in zip(self.cross_att_blocks, self.attended, strict=True)]

    def forward(self, latents: Tensor, memory: Sequence[KeyValue]) -> Tensor:  # type: ignore[override]
        """Latents (B*F, in_channels, h, w) of future frames -> images."""
        hidden = self.mid_block(self.conv_in(laid_out(latents)))
        attends = iter(zip(self.cross_att_blocks, memory, strict=True))
        for level, block in enumerate([nn.Identity(), *self.up_blocks]):
            hidden = block(hidden)
            if level in self.attended:
                attend, known = next(attends)
                hidden = attend(hidden, known)
        return self._finish(hidden)


def attention_groups(channels: int, num_groups: int) -> int:
    """Groups of cross-attention's norms: 32 whatever the config says, as in the release, where 32 divides the width."""
    return 32 if channels % 32 == 0 else num_groups


def laid_out(images: Tensor) -> Tensor:
    """Channels last from 4 images on: convolutions on a CPU are then faster by a quarter.

    With fewer, copying kernels of the other layout costs more than that; kernels that are channels last themselves (see
    ``read_tokenizer``) make their output so for any number.
    """
    return images.contiguous(memory_format=torch.channels_last) if len(images) >= 4 else images


def _mid_block(channels: int, num_groups: int, act_fn: str, attention: bool) -> UNetMidBlock2D:
    return UNetMidBlock2D(
        in_channels=channels,
        resnet_eps=1e-6,
        resnet_act_fn=act_fn,
        output_scale_factor=1,
        resnet_time_scale_shift="default",
        attention_head_dim=channels,
        resnet_groups=num_groups,
        temb_channels=None,
        add_attention=attention,
    )
