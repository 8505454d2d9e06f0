"""How a video UNet computes: the modules of diffusers' ``UNet3DConditionModel`` run in one memory layout.

Features are kept as (B, F, H, W, C) (batch, frames, rows, columns, channels), contiguous. To a 2-D convolution that is
the channels-last image it likes best, to attention and temporal convolutions plain tokens, so nothing is transposed
between layers. Text is attended to once per clip instead of once per frame, and feed-forward layers run on slices, so
that their wide hidden features never exist for a whole clip at once.

Guidance in one pass: when the text batch is n times the features' batch, features branch into n copies at the first
cross-attention; all that comes before it is computed once. Wang et al. 2023 (ModelScope text-to-video) describes the
layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.zoo.precision import widest_float

# Widest hidden feature of a transformer that is computed at once without gradients, in numbers (at least one frame's or
# one pixel's): small enough for a CPU's cache, large enough to keep an accelerator busy.
SLICE_NUMEL = {"cpu": 2**21, "cuda": 2**26, "mps": 2**24}


def conv2d(conv: nn.Module, x: Tensor) -> Tensor:
    """A 2-D convolution of every frame: (B, F, H, W, C) -> (B, F, H', W', C')."""
    y = conv(x.flatten(0, 1).permute(0, 3, 1, 2))
    return y.permute(0, 2, 3, 1).contiguous().unflatten(0, x.shape[:2])


def norm_frames(norm: Any, x: Tensor) -> Tensor:
    """Group normalisation with statistics of each frame."""
    return _group_norm(norm, x.flatten(0, 1)).unflatten(0, x.shape[:2])


def norm_clip(norm: Any, x: Tensor) -> Tensor:
    """Group normalisation with statistics of all frames together."""
    return _group_norm(norm, x.flatten(1, 2)).unflatten(1, x.shape[1:3])


def _group_norm(norm: Any, x: Tensor) -> Tensor:
    """A ``GroupNorm`` on (B, H, W, C).

    torch's own kernel adds up a whole image in sequence, which costs a float32 clip two digits, and copies it on CUDA;
    sums here are pairwise. With gradients its fused backward pass counts for more.
    """
    if torch.is_grad_enabled():
        return norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()
    groups, count = norm.num_groups, x[0].numel() // norm.num_groups
    exact = widest_float(x.device)  # of a few numbers only
    wide = x if x.dtype == torch.float64 else x.float()
    mean, square = (
        part.sum(dim=(1, 2)).to(exact).unflatten(-1, (groups, -1)).sum(-1, keepdim=True) / count
        for part in (wide, wide * wide)
    )
    rate = (square - mean.square() + norm.eps).rsqrt()  # B G 1
    weight = norm.weight.to(exact).view(groups, -1)
    factor, shift = (rate * weight).flatten(1), norm.bias.to(exact) - (mean * rate * weight).flatten(1)
    factor, shift = (part.to(x.dtype)[:, None, None] for part in (factor, shift))
    return torch.addcmul(shift, x, factor)


def resnet(block: Any, x: Tensor, temb: Tensor) -> Tensor:
    """A ``ResnetBlock2D``; ``temb`` (B or 1, F or 1, D) is each frame's embedding of the time."""
    h = conv2d(block.conv1, F.silu(norm_frames(block.norm1, x)))
    h = h + block.time_emb_proj(F.silu(temb))[:, :, None, None]
    h = conv2d(block.conv2, block.dropout(F.silu(norm_frames(block.norm2, h))))
    shortcut = block.conv_shortcut
    return h + (x if shortcut is None else F.linear(x, shortcut.weight.flatten(1), shortcut.bias))


def temporal_conv(layer: Any, x: Tensor) -> Tensor:
    """A ``TemporalConvLayer``: four (norm, SiLU, dropout, 3x1x1 convolution) stages and the residual."""
    h = x
    for stage in (layer.conv1, layer.conv2, layer.conv3, layer.conv4):
        norm, *between, conv = stage
        h = norm_clip(norm, h)
        for module in between:
            h = module(h)
        h = _conv_over_frames(conv, h)
    return x + h


def _conv_over_frames(conv: Any, x: Tensor) -> Tensor:
    """A 3x1x1 convolution as three products with shifted frames (what a GEMM does best)."""
    before, here, after = conv.weight[..., 0, 0].unbind(-1)
    y = F.linear(x, here, conv.bias)
    if x.shape[1] == 1:
        return y
    if torch.is_grad_enabled() or y.dtype != before.dtype:  # autocast does not cast what is written in place
        padded = F.pad(x, (0, 0, 0, 0, 0, 0, 1, 1))
        return y + F.linear(padded[:, :-2], before) + F.linear(padded[:, 2:], after)
    for one, out in zip(x.flatten(2, 3), y.flatten(2, 3), strict=True):  # (F, HW, C), in place
        frames, channels = len(one), one.shape[-1]
        out[1:].view(-1, out.shape[-1]).addmm_(one[: frames - 1].reshape(-1, channels), before.t())
        out[:-1].view(-1, out.shape[-1]).addmm_(one[1:].reshape(-1, channels), after.t())
    return y


def spatial_transformer(module: Any, x: Tensor, text: Tensor) -> Tensor:
    """A ``Transformer2DModel``: attention inside each frame, and to the text (n B, L, D); gives batch n B."""
    frames = x.shape[1]
    tokens = module.proj_in(norm_frames(module.norm, x).flatten(2, 3))  # B F N C
    for block in module.transformer_blocks:
        width = tokens.shape[-1]
        tokens = _sliced(tokens, 1, width, lambda part, block=block: part + _attend(block.attn1, block.norm1(part)))
        tokens = branch(tokens, len(text)) + _attend_text(block.attn2, branch(block.norm2(tokens), len(text)), text)
        tokens = _sliced(tokens, 1, width, lambda part, block=block: part + block.ff(block.norm3(part)))
    out = module.proj_out(tokens).unflatten(2, x.shape[2:4])
    assert out.shape[1] == frames
    return branch(x, len(out)) + out


def temporal_transformer(module: Any, x: Tensor) -> Tensor:
    """A ``TransformerTemporalModel``: every pixel's frames attend to one another, twice."""

    def transform(tokens: Tensor) -> Tensor:
        tokens = module.proj_in(tokens)
        for block in module.transformer_blocks:
            tokens = tokens + _attend_frames(block.attn1, block.norm1(tokens))
            tokens = tokens + _attend_frames(block.attn2, block.norm2(tokens))
            tokens = tokens + block.ff(block.norm3(tokens))
        return module.proj_out(tokens)

    tokens = norm_clip(module.norm, x).flatten(2, 3)
    return x + _sliced(tokens, 2, module.proj_in.out_features, transform).unflatten(2, x.shape[2:4])


def downsample(module: Any, x: Tensor) -> Tensor:
    """A ``Downsample2D`` with a convolution; its padding may be (rows, columns)."""
    return conv2d(module.conv, x)


def upsample(module: Any, x: Tensor, size: tuple[int, int], crop: bool) -> Tensor:
    """An ``Upsample2D``: nearest neighbour, twice as large, then a convolution.

    ``crop``: drop the first and last row before it, which undoes a downsampling with two rows of padding. Otherwise
    the result has ``size`` (rows, columns).
    """
    image = x.flatten(0, 1).permute(0, 3, 1, 2)
    if crop:
        image = F.interpolate(image, scale_factor=2.0, mode="nearest")[:, :, 1:-1]
    else:
        image = F.interpolate(image, size=size, mode="nearest")
    return conv2d(module.conv, image.permute(0, 2, 3, 1).unflatten(0, x.shape[:2]))


def branch(x: Tensor, batch: int) -> Tensor:
    """``x`` with every sample repeated so that there are ``batch`` (the order of texts: sample by sample)."""
    return x if len(x) == batch else x.repeat_interleave(batch // len(x), dim=0)


def _attend(attention: Any, tokens: Tensor) -> Tensor:
    """Self-attention among the N tokens of each frame: (B, F, N, C)."""
    q, k, v = (_heads(project(tokens), attention.heads) for project in _projections(attention))
    return _output(attention, _attention(*(part.flatten(0, 1) for part in (q, k, v))).unflatten(0, tokens.shape[:2]))


def _attend_text(attention: Any, tokens: Tensor, text: Tensor) -> Tensor:
    """Attention of all tokens of a clip (B, F, N, C) to its text (B, L, D)."""
    to_q, to_k, to_v = _projections(attention)
    q = _heads(to_q(tokens).flatten(1, 2), attention.heads)
    k, v = (_heads(project(text), attention.heads) for project in (to_k, to_v))
    return _output(attention, _attention(q, k, v)).unflatten(1, tokens.shape[1:3])


def _attend_frames(attention: Any, tokens: Tensor) -> Tensor:
    """Self-attention among the frames of each pixel: (B, F, N, C)."""
    parts = (_heads(project(tokens), attention.heads) for project in _projections(attention))
    q, k, v = (part.permute(0, 2, 3, 1, 4) for part in (part.transpose(2, 3) for part in parts))  # B N heads F d
    out = torch.stack([_attention(*one) for one in zip(q, k, v, strict=True)])  # B N F heads d
    return _output(attention, out.transpose(1, 2))


def _projections(attention: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
    return attention.to_q, attention.to_k, attention.to_v


def _heads(tokens: Tensor, heads: int) -> Tensor:
    """(..., N, C) -> (..., heads, N, C / heads)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(-3, -2)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B, N, heads, d)."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _output(attention: Any, mixed: Tensor) -> Tensor:
    """(..., heads, d) -> the attention's output projection and dropout."""
    out = mixed.flatten(-2)
    for module in attention.to_out:
        out = module(out)
    return out


def _sliced(tokens: Tensor, dim: int, width: int, function: Any) -> Tensor:
    """``function`` on slices of tokens (B, F, N, C) along ``dim``, small enough without gradients.

    ``width`` is that of the function's transformer, whose widest feature (a GEGLU's) is eight times as wide.
    """
    hidden = 8 * width * (tokens.shape[:3].numel() // tokens.shape[dim])
    size = max(1, SLICE_NUMEL.get(tokens.device.type, 2**24) // hidden)
    if torch.is_grad_enabled() or size >= tokens.shape[dim]:
        return function(tokens)
    out: Tensor | None = None
    for start, part in _slices(tokens, dim, size):
        result = function(part)
        out = tokens.new_empty(*tokens.shape[:3], result.shape[-1], dtype=result.dtype) if out is None else out
        out.narrow(dim, start, part.shape[dim]).copy_(result)
    assert out is not None
    return out


def _slices(tokens: Tensor, dim: int, size: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, tokens.shape[dim], size):
        yield start, tokens.narrow(dim, start, min(size, tokens.shape[dim] - start))
