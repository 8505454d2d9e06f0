"""The pre-norm Transformer block that the latent embedding, the encoders and the priors share.

Shapes: B batch, T positions, W width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.errors import UserError
from toolkit.zoo.checkpointing import CheckpointedBlock


class KeyValueCache:
    """Keys and values of the positions one attention layer has already seen (``length`` of at most ``max_length``)."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def extend(self, keys_BHTd: Tensor, values_BHTd: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new positions; return the keys and values of all positions so far."""
        if self._keys is None or self._values is None:
            batch, heads, _, head_width = keys_BHTd.shape
            self._keys = keys_BHTd.new_empty(batch, heads, self.max_length, head_width)
            self._values = torch.empty_like(self._keys)
        start, self.length = self.length, self.length + keys_BHTd.shape[2]
        assert self.length <= self.max_length
        self._keys[:, :, start : self.length] = keys_BHTd
        self._values[:, :, start : self.length] = values_BHTd
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]


class SelfAttention(nn.Module):
    """Multi-head self-attention (B, T, W) -> (B, T, W), causal on request."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise UserError(f"num_heads={num_heads}: must divide width={width}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTW: Tensor, causal: bool = False, cache: KeyValueCache | None = None) -> Tensor:
        q, k, v = self.qkv(x_BTW).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            assert cache.length == 0 or x_BTW.shape[1] == 1, "after the prefix, positions come one at a time"
            k, v = cache.extend(k, v)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal and q.shape[2] > 1)
        return self.out(attended.transpose(1, 2).flatten(2))


class TransformerBlock(CheckpointedBlock):
    """x + attention(norm(x)), then x + MLP(norm(x)) with a GELU MLP four times as wide.

    Dropout acts on what each branch adds, not on the attention weights: that would rule out the fused kernels.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTW: Tensor, causal: bool = False, cache: KeyValueCache | None = None) -> Tensor:
        x_BTW = x_BTW + self.dropout(self.attention(self.norm_attention(x_BTW), causal, cache))
        return x_BTW + self.dropout(self.mlp(self.norm_mlp(x_BTW)))


class Transformer(nn.Module):
    """``depth`` blocks and a final LayerNorm: (B, T, W) -> (B, T, W).

    Weights start at variance 1/fan_in; the two projections of each block that write to the residual stream are scaled
    by 1/sqrt(2 depth), so that the stream keeps its variance at any depth (Radford et al. 2019, section 2.3).
    """

    def __init__(self, width: int, depth: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(width, num_heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                writes = name.endswith(("attention.out", "mlp.2"))
                scale = (2 * depth) ** -0.5 if writes else 1.0
                nn.init.normal_(module.weight, std=scale * module.in_features**-0.5)
                nn.init.zeros_(module.bias)

    def forward(self, x_BTW: Tensor, causal: bool = False, caches: list[KeyValueCache] | None = None) -> Tensor:
        for index, block in enumerate(self.blocks):
            x_BTW = block(x_BTW, causal, caches[index] if caches else None)
        return self.norm(x_BTW)

    def new_caches(self, max_length: int) -> list[KeyValueCache]:
        """One empty cache per block, for decoding ``max_length`` positions step by step."""
        return [KeyValueCache(max_length) for _ in self.blocks]
