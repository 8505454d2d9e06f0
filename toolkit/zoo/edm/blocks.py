"""Blocks of the EDM release's UNets (Karras et al. 2022, appendix F.3), and cross-attention to latent tokens.

Shapes: B samples, C x H x W feature map, N = HW pixels, E embedding width, m tokens of width w, h heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.errors import UserError
from toolkit.zoo.checkpointing import CheckpointedBlock

BOX = (1, 1)


@dataclass(frozen=True)
class BlockOptions:
    """What all residual blocks of one network share.

    num_heads maps a block's channels to its number of self-attention heads; 0 heads is no self-attention.
    project_resampled: the shortcut of a resampling block has a 1x1 convolution even where channels stay the same.
    adaptive_scale: the embedding scales and shifts (ADM) instead of shifting before the norm (DDPM++, NCSN++).
    """

    embedding_width: int
    num_heads: Callable[[int], int]
    dropout: float = 0.0
    skip_scale: float = 1.0
    eps: float = 1e-5
    taps: Sequence[float] = BOX
    adaptive_scale: bool = True
    project_resampled: bool = False


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """At most 32 groups of at least 4 channels. Raises UserError where these do not divide the channels."""
    groups = max(1, min(32, channels // 4))
    if channels % groups:
        raise UserError(f"width: a level of {channels} channels cannot be normalised in {groups} groups; try another")
    return nn.GroupNorm(groups, channels, eps=eps)


class Resample(nn.Module):
    """Separable low-pass filter and a factor of 2: (B, C, H, W) -> (B, C, 2H, 2W) "up" or (B, C, H/2, W/2) "down"."""

    kernel: Tensor

    def __init__(self, direction: str, taps: Sequence[float] = BOX) -> None:
        super().__init__()
        self.up = direction == "up"
        self.padding = (len(taps) - 1) // 2
        row = torch.tensor(taps, dtype=torch.float32) / sum(taps) * (2 if self.up else 1)
        self.register_buffer("kernel", torch.outer(row, row)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, -1, -1, -1)
        if self.up:
            return F.conv_transpose2d(x, kernel, stride=2, padding=self.padding, groups=channels)
        return F.conv2d(x, kernel, stride=2, padding=self.padding, groups=channels)


class ResampledConv(nn.Conv2d):
    """Resample, then convolve (k x k, zero padding); ``filter_last`` downsamples after the convolution instead."""

    spread: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        direction: str,
        taps: Sequence[float] = BOX,
        filter_last: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.resample = Resample(direction, taps)
        self.filter_last = filter_last
        self.fuses = direction == "up" and kernel_size == 3 and tuple(taps) == BOX
        # Row a of the transposed 4-tap kernel is w[2 - a] + w[3 - a] of the 3-tap one, where those exist.
        spread = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
        self.register_buffer("spread", torch.kron(spread, spread) if self.fuses else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.fuses:
            return F.conv_transpose2d(x, self._fused_kernel(), self.bias, stride=2, padding=1)
        if self.filter_last:
            return self._filter_last(x)
        if self.resample.up and self.kernel_size == (1, 1):
            # A 1x1 convolution commutes with the filter: do it on the quarter of the pixels.
            assert self.bias is not None
            return self.resample(self._conv_forward(x, self.weight, None)).add_(self.bias[:, None, None])
        return super().forward(self.resample(x))

    def _fused_kernel(self) -> Tensor:
        """Nearest upsampling and a 3x3 convolution are one transposed 4x4 convolution, with under half the products."""
        kernel = self.weight.flatten(2) @ self.spread.to(self.weight.dtype)
        return kernel.unflatten(2, (4, 4)).transpose(0, 1)

    def _filter_last(self, x: Tensor) -> Tensor:
        # The convolution sees as many padding pixels as the filter then consumes.
        kernel, padding = self.resample.kernel, self.kernel_size[0] // 2 + self.resample.padding
        y = F.conv2d(x, self.weight, self.bias, padding=padding)
        channels = y.shape[1]
        return F.conv2d(y, kernel.to(y.dtype).expand(channels, -1, -1, -1), stride=2, groups=channels)


class PointwiseConv(nn.Conv2d):
    """1x1 convolution as one batched matrix product: on a CPU twice as fast as the convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        weight = self.weight.flatten(1).expand(len(x), -1, -1)
        return torch.baddbmm(self.bias[:, None], weight, x.flatten(2)).unflatten(2, x.shape[2:])


class SelfAttention(nn.Module):
    """x + out(attention(norm(x))) over the pixels."""

    def __init__(self, channels: int, num_heads: int, eps: float) -> None:
        super().__init__()
        if channels % num_heads:
            raise UserError(f"num_heads={num_heads}: must divide the {channels} channels of the block")
        self.num_heads = num_heads
        self.norm = group_norm(channels, eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x_BNC = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x_BNC).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        a_BhNd = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(a_BhNd.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)


class CrossAttention(nn.Module):
    """x + out(attention from the pixels to the latent tokens); ``out`` starts at zero (DisCo-Diff, appendix D.1).

    slots: which of the m tokens it sees. null_kv: one learned token more, so that attention can look away from z.
    """

    def __init__(
        self, channels: int, num_heads: int, token_width: int, slots: slice = slice(None), null_kv: bool = False
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise UserError(f"num_heads={num_heads}: must divide the {channels} channels of the block")
        self.num_heads, self.slots = num_heads, slots
        self.norm = group_norm(channels, 1e-5)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(token_width, 2 * channels)
        self.out = nn.Linear(channels, channels)
        self.null = nn.Parameter(torch.randn(1, token_width)) if null_kv else None
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        x_BNC = self.norm(x).flatten(2).transpose(1, 2)
        tokens = tokens[:, self.slots]
        if self.null is not None:
            tokens = torch.cat([tokens, self.null.expand(len(tokens), -1, -1)], dim=1)
        q = self.query(x_BNC).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.key_value(tokens).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        a_BhNd = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(a_BhNd.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)


class ResidualBlock(CheckpointedBlock):
    """Norm, SiLU, 3x3 convolution, twice; noise embedding in between; optional resampling and attention after.

    forward: x (B, C_in, H, W), embedding (B or 1, E), tokens (B, m, w) or None -> (B, C_out, H', W').
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        options: BlockOptions,
        direction: str | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels, self.attends = out_channels, attention
        self.skip_scale, self.adaptive_scale = options.skip_scale, options.adaptive_scale
        self.norm_in = group_norm(in_channels, options.eps)
        self.conv_in = _conv(in_channels, out_channels, 3, direction, options.taps)
        self.film = nn.Linear(options.embedding_width, out_channels * (2 if options.adaptive_scale else 1))
        self.norm_out = group_norm(out_channels, options.eps)
        self.dropout = nn.Dropout(options.dropout)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut: nn.Module | None = None
        if in_channels != out_channels or (direction and options.project_resampled):
            self.shortcut = _conv(in_channels, out_channels, 1, direction, options.taps)
        elif direction:
            self.shortcut = Resample(direction, options.taps)
        num_heads = options.num_heads(out_channels) if attention else 0
        self.attention = SelfAttention(out_channels, num_heads, options.eps) if num_heads else None
        self.cross_attention: CrossAttention | None = None

    def forward(self, x: Tensor, embedding: Tensor, tokens: Tensor | None = None) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = F.silu(self._norm_and_film(h, self.film(embedding)))
        h = self.conv_out(self.dropout(h))
        h = h.add_(x if self.shortcut is None else self.shortcut(x))
        if self.skip_scale != 1:
            h = h.mul_(self.skip_scale)
        if self.attention is not None:
            h = self.attention(h)
            if self.skip_scale != 1:
                h = h.mul_(self.skip_scale)
        if self.cross_attention is not None:
            assert tokens is not None
            h = self.cross_attention(h, tokens)
        return h

    def _norm_and_film(self, h: Tensor, film: Tensor) -> Tensor:
        if not self.adaptive_scale:
            return self.norm_out(h.add_(film[:, :, None, None]))
        # (norm(h) w + b) (1 + scale) + shift is a norm with an affine per sample and channel: with the samples side by
        # side as groups of one long sample, the library's fused kernel does norm and FiLM in one pass.
        norm, (batch, channels) = self.norm_out, h.shape[:2]
        scale, shift = film.chunk(2, dim=1)
        weight = torch.addcmul(norm.weight, norm.weight, scale)
        bias = torch.addcmul(norm.bias, norm.bias, scale) + shift
        weight, bias = (one.expand(batch, channels).reshape(-1) for one in (weight, bias))
        flat = h.reshape(1, batch * channels, *h.shape[2:])
        return F.group_norm(flat, batch * norm.num_groups, weight, bias, norm.eps).reshape(h.shape)


class NoiseEmbedding(nn.Module):
    """Sines and cosines of c_noise: (B,) -> (B, width), float32 under autocast as well.

    kind: "positional" (fixed geometric frequencies; ``endpoint``: the last is exactly 1/10000) or "fourier" (random
    frequencies, part of the weights).
    """

    frequencies: Tensor

    def __init__(self, width: int, kind: str = "positional", endpoint: bool = False, sine_first: bool = False) -> None:
        super().__init__()
        count = width // 2
        self.sine_first = sine_first
        self.fourier = kind == "fourier"
        if self.fourier:
            frequencies = 16 * torch.randn(count)
        else:
            steps = max(count - endpoint, 1)
            frequencies = torch.exp(-math.log(10000) * torch.arange(count, dtype=torch.float32) / steps)
        self.register_buffer("frequencies", frequencies, persistent=self.fourier)

    def forward(self, c_noise: Tensor) -> Tensor:
        frequencies = 2 * math.pi * self.frequencies if self.fourier else self.frequencies
        angles = c_noise[:, None] * frequencies
        parts = (angles.sin(), angles.cos()) if self.sine_first else (angles.cos(), angles.sin())
        return torch.cat(parts, dim=1)


def _conv(in_channels: int, out_channels: int, size: int, direction: str | None, taps: Sequence[float]) -> nn.Conv2d:
    if direction is not None:
        return ResampledConv(in_channels, out_channels, size, direction, taps)
    if size == 1:
        return PointwiseConv(in_channels, out_channels)
    return nn.Conv2d(in_channels, out_channels, size, padding=size // 2)
