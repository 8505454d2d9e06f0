"""A Llama written out in float64, independent of transformers (whose norms compute in float32)."""

import torch
from torch.nn import functional as F


def reference_logits(config, state, ids):
    """Logits of a state dict in transformers' names; biases, grouped queries, tied heads and normed heads included."""
    state = {name: tensor.double() for name, tensor in state.items()}
    x = state["model.embed_tokens.weight"][ids]
    for layer in range(config.num_hidden_layers):
        block = {k.removeprefix(f"model.layers.{layer}."): v for k, v in state.items() if f"model.layers.{layer}." in k}
        eps = config.rms_norm_eps
        x = x + _attention(config, block, _norm(x, block["input_layernorm.weight"], eps))
        h = _norm(x, block["post_attention_layernorm.weight"], eps)
        gated = F.silu(_linear(block, "mlp.gate_proj", h)) * _linear(block, "mlp.up_proj", h)
        x = x + _linear(block, "mlp.down_proj", gated)
    head = state.get("lm_head.weight", state["model.embed_tokens.weight"])
    return _norm(x, state["model.norm.weight"], config.rms_norm_eps) @ head.T


def _norm(x, gain, eps):
    return gain * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def _linear(block, name, x):
    return x @ block[f"{name}.weight"].T + block.get(f"{name}.bias", torch.zeros(()))


def _attention(config, block, x):
    size, length = config.head_dim, x.shape[1]
    q, k, v = (_linear(block, f"self_attn.{n}_proj", x).unflatten(-1, (-1, size)).transpose(1, 2) for n in "qkv")
    if "self_attn.q_norm.weight" in block:
        q = _norm(q, block["self_attn.q_norm.weight"], config.rms_norm_eps)
        k = _norm(k, block["self_attn.k_norm.weight"], config.rms_norm_eps)
    q, k = _rotate(q, config), _rotate(k, config)
    group = config.num_attention_heads // config.num_key_value_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(-1, -2) / size**0.5
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    return _linear(block, "self_attn.o_proj", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def _rotate(x, config):
    half = x.shape[-1] // 2
    rates = config.rope_parameters["rope_theta"] ** (-torch.arange(half).double() / half)
    angles = torch.arange(x.shape[-2]).double()[:, None] * rates
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
