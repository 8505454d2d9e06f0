"""A guess at the next frame's tokens, for the transformer to check all at once.

For one row on a CPU a pass over one token costs what reading all weights costs, and a pass over a frame's n tokens
hardly more. So a copy of the layers in half the bytes draws the n tokens one by one, and one pass of the true network
over all of them says what it would have drawn there. Noise is keyed, so wherever the two agree the tokens are the true
ones: the draws are those of token-by-token decoding, only sooner. The same idea as speculative decoding (Leviathan et
al. 2023), with equality in place of a rejection test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.zoo.registry import count_parameters
from toolkit.zoo.world.llama import KeyValueCache, head_size, rotate

LEAST_WEIGHTS = 20_000_000  # from which reading them takes longer than all else (they no longer fit a CPU's caches)


class _Layer(NamedTuple):
    """qkv and gate_up are two and three matrices in one; matrices in float16, norms as they are."""

    norm_in: Tensor
    qkv: Tensor
    out: Tensor
    norm_mid: Tensor
    gate_up: Tensor
    down: Tensor


class Draft:
    """The layers of a Llama with float16 weights; everything between the matrix products stays in float32.

    ``head``: the rows of the output matrix that may be drawn.
    """

    def __init__(self, llm: Any, head: Tensor):
        self.config, self.act = llm.config, llm.model.layers[0].mlp.act_fn
        self.layers = [_copy(layer) for layer in llm.model.layers]
        self.head, self.norm = head.half(), llm.model.norm.weight
        positions = torch.arange(self.config.max_position_embeddings)[None]
        self.cos, self.sin = (table[0] for table in llm.model.rotary_emb(self.norm, positions))

    def guess(
        self,
        opening: Tensor,
        cache: KeyValueCache,
        num_tokens: int,
        embed: Callable[[Tensor, int], Tensor],
        pick: Callable,
    ) -> Tensor:
        """Tokens (1, n) of a frame.

        Args:
            opening: (1, L, W), embeddings before the first token.
            cache: up to the opening, which is still to be written, with room for n - 1 more. What is written is
                approximate.
            num_tokens: n.
            embed: (tokens (1, 1), their place) -> embeddings (1, 1, W).
            pick: (logits (1, 1, V), place) -> tokens (1, 1).
        """
        tokens: list[Tensor] = []
        embeds = opening
        for place in range(num_tokens):
            logits = self._pass(embeds[0], cache.until(cache.length + place))
            tokens.append(pick(logits, place))
            embeds = embed(tokens[-1], place)
        return torch.cat(tokens, dim=1)

    def _pass(self, hidden: Tensor, cache: KeyValueCache) -> Tensor:
        """Embeddings (L, W) of the last L positions of the cache -> logits (1, 1, V) at the last."""
        start, end, eps = cache.length - len(hidden), cache.length, self.config.rms_norm_eps
        mask = None
        if len(hidden) > 1:
            mask = torch.arange(end) <= torch.arange(start, end)[:, None]
        for number, layer in enumerate(self.layers):
            rows = _product(_norm(hidden, layer.norm_in, eps), layer.qkv)
            hidden = hidden + _product(self._attend(rows, cache, number, mask), layer.out)
            gate, up = _product(_norm(hidden, layer.norm_mid, eps), layer.gate_up).chunk(2, dim=-1)
            hidden = hidden + _product(self.act(gate) * up, layer.down)
        return _product(_norm(hidden[-1:], self.norm, eps), self.head)[None]

    def _attend(self, rows: Tensor, cache: KeyValueCache, number: int, mask: Tensor | None) -> Tensor:
        """Queries, keys and values (L, ...) in one -> (L, W)."""
        config, place = self.config, slice(cache.length - len(rows), cache.length)
        sizes = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads]
        heads = rows.unflatten(1, (-1, head_size(config))).transpose(0, 1)  # (H + 2G, L, d)
        turned = rotate(heads[: sizes[0] + sizes[1]], self.cos[place], self.sin[place])
        keys, values = cache.write(number, turned[None, sizes[0] :], heads[None, sizes[0] + sizes[1] :])
        found = F.scaled_dot_product_attention(
            turned[None, : sizes[0]], keys, values, attn_mask=mask, enable_gqa=sizes[0] != sizes[1]
        )
        return found[0].transpose(0, 1).flatten(1)


def draft_pays(llm: Any, num_rows: int) -> bool:
    """Where drafting was measured to be faster: one row, float32, many weights, on a CPU with AVX-512."""
    weight = llm.lm_head.weight
    return (
        num_rows == 1
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not llm.config.attention_bias
        and not llm.config.mlp_bias
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and count_parameters(llm.model.layers) >= LEAST_WEIGHTS
    )


def _copy(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    qkv = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    return _Layer(
        layer.input_layernorm.weight,
        torch.cat([one.half() for one in qkv]),
        attention.o_proj.weight.half(),
        layer.post_attention_layernorm.weight,
        torch.cat([mlp.gate_proj.weight.half(), mlp.up_proj.weight.half()]),
        mlp.down_proj.weight.half(),
    )


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    return F.linear(rows.half(), weight).float()


def _norm(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(rows, (rows.shape[-1],), weight, eps)
