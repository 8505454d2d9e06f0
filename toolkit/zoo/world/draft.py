"""A copy of a Llama in half the bytes, to guess a frame's tokens with.

For few rows on a CPU a pass costs what reading the weights costs. So a copy in float16 draws a frame's tokens, and one
pass of the true network over all of them says what it would have drawn there (``Dynamics``). The same idea as
speculative decoding (Leviathan et al. 2023), with keyed noise and equality in place of a rejection test.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.zoo.counting import count_parameters
from toolkit.zoo.world.linear import HalfLinear

LARGE = 20_000_000  # weights from which reading them takes longer than all else (they no longer fit a CPU's caches)


class Draft:
    """What ``llama_pass`` reads of a Llama, with matrices in float16; norms are the network's own.

    ``head``: the rows of the output matrix that may be drawn. Memory: two bytes for each number of the layers' matrices
    and of ``head``.
    """

    def __init__(self, llm: Any, head: Tensor):
        self.config, self.training, self.lm_head = llm.config, False, HalfLinear(head)
        layers, rotary = [_copy(layer) for layer in llm.model.layers], llm.model.rotary_emb
        self.model = SimpleNamespace(
            layers=layers, norm=llm.model.norm, rotary_emb=rotary, gradient_checkpointing=False
        )


def is_large(llm: Any) -> bool:
    """Whether a pass over few tokens costs what reading the weights costs."""
    return count_parameters(llm.model.layers) >= LARGE


def can_draft(llm: Any) -> bool:
    """Whether there are products with float16 matrices here: PyTorch has them for x86, without biases."""
    config, weight = llm.config, llm.lm_head.weight
    plain = not config.attention_bias and not config.mlp_bias and weight.dtype == torch.float32
    return plain and weight.device.type == "cpu" and torch.backends.quantized.engine in ("x86", "fbgemm")


def _copy(layer: Any) -> SimpleNamespace:
    attention, mlp = (
        SimpleNamespace(
            **{name: HalfLinear(one.weight) for name, one in part.named_children() if isinstance(one, nn.Linear)}
        )
        for part in (layer.self_attn, layer.mlp)
    )
    attention.head_dim, mlp.act_fn = layer.self_attn.head_dim, layer.mlp.act_fn
    return SimpleNamespace(
        input_layernorm=layer.input_layernorm,
        self_attn=attention,
        post_attention_layernorm=layer.post_attention_layernorm,
        mlp=mlp,
    )
