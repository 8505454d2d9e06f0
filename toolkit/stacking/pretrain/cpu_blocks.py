"""A Llama's layers on a CPU: forward and backward written out, one autograd node per layer.

At the sizes a laptop trains, half a step of transformers' code goes into small element-wise operations. Here a norm's
gain is folded into the weights that follow it, keys of a group serve all its queries without being repeated, and
nothing is written twice. The values and gradients are those of transformers' own code up to rounding; it is used
wherever something looks inside a layer (hooks, compilation, FSDP, autocast) and on every other device.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from toolkit.zoo.checkpointing import recomputed

LONGEST = 512  # tokens; attention matrices are kept for the backward pass


@dataclass(frozen=True)
class Shape:
    """Sizes of one call: batch, tokens, key/value heads, queries per key, features of a head D; rotary factors.

    turns: complex (T, D / 2), the turn of each pair of features at each place.
    """

    batch: int
    tokens: int
    kv_heads: int
    group: int
    head: int
    turns: Tensor
    mask: Tensor  # (group T, T), 0 where a query may look and minus infinity elsewhere
    eps: float


def usable(network: Any, ids: Tensor) -> bool:
    """Whether ``network`` is a plain float32 Llama on the CPU whose layers nobody watches."""
    config = network.config
    if ids.device.type != "cpu" or ids.shape[1] > LONGEST or torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling() or config.model_type != "llama" or config.attention_bias or config.mlp_bias:
        return False
    plain = config.rope_parameters.get("rope_type", "default") == "default" and config.hidden_act == "silu"
    weight = network.model.embed_tokens.weight
    whole = type(weight) in (nn.Parameter, FakeTensor)  # not FSDP's; fake ones are a plan's
    return plain and whole and weight.dtype == torch.float32 and not _watched(network)


def _watched(network: Any) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def hidden_states(network: Any, ids: Tensor) -> Tensor:
    """What ``network.model(ids).last_hidden_state`` is, flattened to (B T, C); ids int64 (B, T)."""
    config, model = network.config, network.model
    (batch, tokens), kv_heads = ids.shape, config.num_key_value_heads
    group = config.num_attention_heads // kv_heads
    x = F.embedding(ids.flatten(), model.embed_tokens.weight)
    cos, sin = model.rotary_emb(x, torch.arange(tokens)[None])
    mask = torch.full((tokens, tokens), -torch.inf).triu_(1).repeat(group, 1)
    half = config.head_dim // 2  # the tables hold every angle twice
    turns = torch.complex(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())
    shape = Shape(batch, tokens, kv_heads, group, config.head_dim, turns, mask, config.rms_norm_eps)
    again = model.gradient_checkpointing and torch.is_grad_enabled()
    run = functools.partial(recomputed, _Layer.apply) if again else _Layer.apply
    for layer in model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        x = run(
            x,
            layer.input_layernorm.weight,
            attention.q_proj.weight,
            attention.k_proj.weight,
            attention.v_proj.weight,
            attention.o_proj.weight,
            layer.post_attention_layernorm.weight,
            mlp.gate_proj.weight,
            mlp.up_proj.weight,
            mlp.down_proj.weight,
            shape,
        )
    return _scaled(x, config.rms_norm_eps) * model.norm.weight


def _scaled(x: Tensor, eps: float) -> Tensor:
    """x over its root mean square: RMSNorm without its gain."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


class _Layer(torch.autograd.Function):
    """x (N, C) -> x + attention(norm(x)) -> + mlp(norm(.)), N = batch x tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain_1: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        gain_2: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        shape: Shape,
    ) -> Tensor:
        scale_1 = _inverse_rms(x, shape.eps)
        y_1 = x * scale_1
        qkv_weight = _side_by_side(query, key, value, shape)
        q, k, v = _split_heads(y_1 @ (qkv_weight * gain_1).t(), shape)
        weights = torch.baddbmm(shape.mask, q, k.transpose(1, 2), alpha=shape.head**-0.5).softmax(-1)
        attended = _join_heads(torch.bmm(weights, v), shape)
        x_1 = torch.addmm(x, attended, out.t())
        scale_2 = _inverse_rms(x_1, shape.eps)
        y_2 = x_1 * scale_2
        gate_weight, up_weight = gate * gain_2, up * gain_2
        g, u = y_2 @ gate_weight.t(), y_2 @ up_weight.t()
        ctx.shape = shape
        ctx.save_for_backward(
            gain_1, out, gain_2, gate, up, down, scale_1, y_1, qkv_weight, q, k, v, weights,
            attended, scale_2, y_2, gate_weight, up_weight, g, u,
        )  # fmt: skip
        return torch.addmm(x_1, F.silu(g).mul_(u), down.t())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (
            gain_1, out, gain_2, gate, up, down, scale_1, y_1, qkv_weight, q, k, v, weights,
            attended, scale_2, y_2, gate_weight, up_weight, g, u,
        ) = ctx.saved_tensors  # fmt: skip
        (d_x2,), shape = grads, ctx.shape
        silu = F.silu(g)  # making it again is cheaper than fetching it from memory
        d_down = d_x2.t() @ (silu * u)
        d_m = d_x2 @ down
        d_u = d_m * silu
        d_g = torch.ops.aten.silu_backward(d_m.mul_(u), g)
        d_y2 = (d_g @ gate_weight).addmm_(d_u, up_weight)
        d_gate, d_up = d_g.t() @ y_2, d_u.t() @ y_2
        d_gain_2 = (d_gate * gate).sum(0).add_((d_up * up).sum(0))
        d_x1 = _norm_backward(d_x2, d_y2, y_2, scale_2)
        d_attended = _heads_first(d_x1 @ out, shape)
        d_v = torch.bmm(weights.transpose(1, 2), d_attended)
        d_weights = torch.bmm(d_attended, v.transpose(1, 2))
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, torch.float32)
        scale = shape.head**-0.5
        d_qkv = _merge_heads(torch.bmm(d_scores, k), torch.bmm(d_scores.transpose(1, 2), q), d_v, scale, shape)
        d_weight = d_qkv.t() @ y_1
        d_gain_1 = (d_weight * qkv_weight).sum(0)
        d_query, d_key, d_value = _apart(d_weight, gain_1, shape)
        d_x = _norm_backward(d_x1, d_qkv @ (qkv_weight * gain_1), y_1, scale_1)
        return (
            d_x, d_gain_1, d_query, d_key, d_value, d_x1.t() @ attended,
            d_gain_2, d_gate.mul_(gain_2), d_up.mul_(gain_2), d_down, None,
        )  # fmt: skip


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """(N, 1)."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _norm_backward(d_x: Tensor, d_y: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """d_x plus the gradient through y = x scale, where scale is 1 / RMS(x); d_y is overwritten."""
    inner = torch.linalg.vecdot(d_y, y).unsqueeze_(-1).div_(y.shape[-1])
    return torch.addcmul(d_x, d_y.addcmul_(y, inner, value=-1), scale)


def _side_by_side(query: Tensor, key: Tensor, value: Tensor, shape: Shape) -> Tensor:
    """The three weights as one (heads D, C), rows of queries and keys in pairs: feature i of a head beside i + D / 2.

    RoPE turns these two together, which then is one complex product; products of queries and keys stay what they are.
    """
    pairs = [_heads(one, shape).unflatten(1, (2, -1)).transpose(1, 2) for one in (query, key)]
    return torch.cat([*pairs, _heads(value, shape).unflatten(1, (-1, 2))]).view(-1, value.shape[1])


def _apart(weight: Tensor, gain: Tensor, shape: Shape) -> list[Tensor]:
    """The inverse of ``_side_by_side``, times ``gain`` (C,)."""
    kv, g = shape.kv_heads, shape.group
    queries, keys, values = _heads(weight, shape).split([g * kv, kv, kv])
    ours = [torch.empty_like(one) for one in (queries, keys)]
    for one, paired in zip(ours, (queries, keys), strict=True):
        torch.mul(paired.unflatten(1, (-1, 2)).transpose(1, 2), gain, out=one.unflatten(1, (2, -1)))
    return [one.flatten(0, 1) for one in (*ours, values * gain)]


def _heads(weight: Tensor, shape: Shape) -> Tensor:
    """(heads D, C) -> (heads, D, C)."""
    return weight.unflatten(0, (-1, shape.head))


def _split_heads(qkv: Tensor, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """(N, heads D) -> turned queries (B K, G T, D), turned keys and values (B K, T, D), each contiguous."""
    b, t, kv, g, d = shape.batch, shape.tokens, shape.kv_heads, shape.group, shape.head
    queries, keys, values = qkv.view(b, t, (g + 2) * kv, d).transpose(1, 2).split([g * kv, kv, kv], dim=1)
    q, k = (torch.empty(part.shape) for part in (queries, keys))
    for part, into in ((queries, q), (keys, k)):
        torch.mul(_complex(part), shape.turns, out=_complex(into))
    return q.view(b * kv, g * t, d), k.view(b * kv, t, d), values.reshape(b * kv, t, d)


def _complex(x: Tensor) -> Tensor:
    """A view of pairs of features as complex numbers: (..., D) -> (..., D / 2)."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _join_heads(x: Tensor, shape: Shape) -> Tensor:
    """(B K, G T, D) -> (N, C)."""
    b, t, d = shape.batch, shape.tokens, shape.head
    return x.view(b, -1, t, d).transpose(1, 2).reshape(b * t, -1)


def _heads_first(x: Tensor, shape: Shape) -> Tensor:
    """(N, C) -> (B K, G T, D)."""
    b, t, kv, g, d = shape.batch, shape.tokens, shape.kv_heads, shape.group, shape.head
    return x.view(b, t, kv * g, d).transpose(1, 2).reshape(b * kv, g * t, d)


def _merge_heads(d_q: Tensor, d_k: Tensor, d_v: Tensor, scale: float, shape: Shape) -> Tensor:
    """The inverse of ``_split_heads`` for gradients: turned back, scaled, side by side, (N, heads D)."""
    b, t, kv, g, d = shape.batch, shape.tokens, shape.kv_heads, shape.group, shape.head
    merged = torch.empty(b, t, (g + 2) * kv, d)
    queries, keys, values = merged.transpose(1, 2).split([g * kv, kv, kv], dim=1)
    back = shape.turns.conj() * scale
    torch.mul(_complex(d_q.view(queries.shape)), back, out=_complex(queries))
    torch.mul(_complex(d_k.view(keys.shape)), back, out=_complex(keys))
    values.copy_(d_v.view(values.shape))
    return merged.view(b * t, -1)
