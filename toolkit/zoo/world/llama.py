"""One pass of a Llama decoder over new positions, with or without a cache of those before.

The weights live in transformers' ``LlamaForCausalLM``; this is its arithmetic without its generation machinery, the
same code for training, scoring and step-by-step generation. Shapes: B rows, L new positions, P positions before them, W
width, H heads, G key-value heads, d numbers a head.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.zoo.checkpointing import called, recomputed
from toolkit.zoo.world.linear import HalfLinear, linear


class KeyValueCache:
    """Keys and values of all positions so far; a cheap handle that many states may share.

    Appending writes into the shared memory only where nobody has written yet; a handle that is no longer the newest
    copies what it holds first. So a handle never sees another's positions, and stepping forward copies nothing.

    ``starts`` int64 (B,): the place of each row's first position where rows are not equally long; all end at
    ``length``. None: all start at 0.
    """

    def __init__(self, buffer: _Buffer, length: int = 0, starts: Tensor | None = None):
        self._buffer, self.length, self.starts = buffer, length, starts

    @classmethod
    def empty(cls, llm: Any, num_rows: int, capacity: int) -> KeyValueCache:
        """A cache for ``num_rows`` sequences with room for ``capacity`` positions (it grows by itself)."""
        config, weight = llm.config, llm.lm_head.weight
        shape = (config.num_hidden_layers, 2, num_rows, config.num_key_value_heads, capacity, head_size(config))
        return cls(_Buffer(torch.empty(shape, dtype=weight.dtype, device=weight.device), 0))

    @classmethod
    def joined(cls, caches: Sequence[KeyValueCache], rows: Sequence[Tensor], spare: int) -> KeyValueCache:
        """Sequences of several caches in one with room for ``spare`` more; those of cache i become its ``rows[i]``."""
        length, first = max(one.length for one in caches), caches[0]._buffer.memory
        shape = (*first.shape[:2], sum(len(index) for index in rows), first.shape[3], length + spare, first.shape[5])
        memory, starts = first.new_zeros(shape), torch.zeros(shape[2], dtype=torch.int64, device=first.device)
        for one, index in zip(caches, rows, strict=True):
            before = length - one.length
            memory[:, :, index, :, before:length] = one._buffer.memory[..., : one.length, :]
            starts[index] = before if one.starts is None else before + one.starts
        return cls(_Buffer(memory, length), length, starts)

    def extended(self, num: int, spare: int = 0) -> KeyValueCache:
        """A handle with ``num`` more positions, to be filled layer by layer with ``write``."""
        buffer, length = self._buffer, self.length + num
        if buffer.filled != self.length or buffer.capacity < length:
            buffer = buffer.copy(self.length, max(length + spare, buffer.capacity))
        buffer.filled = length
        return KeyValueCache(buffer, length, self.starts)

    def until(self, length: int) -> KeyValueCache:
        """The first ``length`` positions of this handle, which is filled piece by piece."""
        return KeyValueCache(self._buffer, length, self.starts)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put the last L positions (B, G, L, d) in place; returns all keys and values (B, G, P+L, d)."""
        memory, start = self._buffer.memory[layer, :, :, :, : self.length], self.length - keys.shape[2]
        memory[0, :, :, start:].copy_(keys)
        memory[1, :, :, start:].copy_(values)
        return memory[0], memory[1]

    def select(self, index: Tensor) -> KeyValueCache:
        """The rows ``index``, in that order, in memory of their own."""
        starts = None if self.starts is None else self.starts[index]
        unused = 0 if starts is None or not len(starts) else int(starts.min())
        memory, length = self._buffer.memory[:, :, index, :, unused : self.length], self.length - unused
        alike = starts is None or bool((starts == unused).all())
        return KeyValueCache(_Buffer(memory, length), length, None if alike or starts is None else starts - unused)

    @property
    def nbytes(self) -> int:
        """Of the positions held."""
        memory = self._buffer.memory
        return memory[..., : self.length, :].numel() * memory.element_size()


class _Buffer:
    """``memory``: (layers, 2, B, G, capacity, d). ``filled``: positions that some handle holds."""

    def __init__(self, memory: Tensor, filled: int):
        self.memory, self.filled = memory, filled

    @property
    def capacity(self) -> int:
        return self.memory.shape[4]

    def copy(self, length: int, capacity: int) -> _Buffer:
        memory = self.memory.new_empty((*self.memory.shape[:4], capacity, self.memory.shape[5]))
        memory[..., :length, :].copy_(self.memory[..., :length, :])
        return _Buffer(memory, length)


class _Place(NamedTuple):
    """Where a pass stands: rotations of its positions, their mask, and the probability of attention dropout."""

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    is_causal: bool
    dropout: float


def head_size(config: Any) -> int:
    """Numbers per attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def llama_pass(llm: Any, embeds: Tensor, cache: KeyValueCache | None = None, first: int = 0) -> Tensor:
    """Hidden states after the final norm.

    Args:
        llm: a ``LlamaForCausalLM``; attention dropout applies while it is in training mode.
        embeds: (B, L, W) of the new positions.
        cache: ``extended`` by L: the L new positions are written, those before are attended to. None: no past.
        first: states are wanted from this new position on; the last layer is not computed for those before.

    Returns:
        (B,L-first,W).
    """
    hidden, place = embeds, _place(llm, embeds, cache)
    last = len(llm.model.layers) - 1
    again = llm.model.gradient_checkpointing and torch.is_grad_enabled()
    run = functools.partial(recomputed, called, _layer) if again else functools.partial(called, _layer)
    for number, layer in enumerate(llm.model.layers):
        hidden = run(layer, hidden, place, cache, number, first if number == last else 0)
    return _norm(llm.model.norm, hidden)


def _place(llm: Any, embeds: Tensor, cache: KeyValueCache | None) -> _Place:
    num, dropout = embeds.shape[1], llm.config.attention_dropout if llm.training else 0.0
    end, starts = (num, None) if cache is None else (cache.length, cache.starts)
    places = torch.arange(end - num, end, device=embeds.device)
    positions = places[None] if starts is None else places - starts[:, None]
    cos, sin = llm.model.rotary_emb(embeds, positions)
    causal, mask = num > 1 and num == end and starts is None, None
    if starts is not None or (num > 1 and not causal):  # not where tokens of one age are decoded one by one
        seen = torch.arange(end, device=embeds.device)
        mask = seen <= places[:, None]
        if starts is not None:  # (B, 1, L, P + L)
            mask = (mask & (seen >= starts[:, None, None]))[:, None]
    return _Place(cos[:, None], sin[:, None], mask, causal, dropout)


def _layer(layer: Any, hidden: Tensor, place: _Place, cache: KeyValueCache | None, number: int, first: int) -> Tensor:
    """One decoder layer; queries and outputs only from position ``first`` on."""
    normed = _norm(layer.input_layernorm, hidden)
    hidden = hidden[:, first:]
    hidden = hidden + _attend(layer.self_attn, normed, place, cache, number, first)
    return hidden + _feed_forward(layer.mlp, _norm(layer.post_attention_layernorm, hidden))


def _attend(
    attention: Any, normed: Tensor, place: _Place, cache: KeyValueCache | None, number: int, first: int
) -> Tensor:
    size = attention.head_dim
    queries = rotate(
        _heads(attention.q_proj, normed[:, first:], size), place.cos[:, :, first:], place.sin[:, :, first:]
    )
    keys = rotate(_heads(attention.k_proj, normed, size), place.cos, place.sin)
    values = _heads(attention.v_proj, normed, size)
    if cache is not None:
        keys, values = cache.write(number, keys, values)
    mask, is_causal = place.mask, place.is_causal
    if first and is_causal:  # the causal triangle without its first rows
        length = keys.shape[2]
        mask, is_causal = torch.ones(length, length, dtype=torch.bool, device=keys.device).tril()[first:], False
    elif first and mask is not None:
        mask = mask[..., first:, :]
    attended = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        dropout_p=place.dropout,
        is_causal=is_causal,
        enable_gqa=keys.shape[1] != queries.shape[1],
    )
    return _apply(attention.o_proj, attended.transpose(1, 2).flatten(2))


def _feed_forward(mlp: Any, normed: Tensor) -> Tensor:
    return _apply(mlp.down_proj, mlp.act_fn(_apply(mlp.gate_proj, normed)) * _apply(mlp.up_proj, normed))


def _heads(projection: Any, rows: Tensor, size: int) -> Tensor:
    """(B, L, W) -> (B, heads, L, d)."""
    return _apply(projection, rows).unflatten(2, (-1, size)).transpose(1, 2)


def _apply(layer: Any, rows: Tensor) -> Tensor:
    return layer(rows) if isinstance(layer, HalfLinear) else linear(rows, layer.weight, layer.bias)


def _norm(norm: Any, rows: Tensor) -> Tensor:
    return F.rms_norm(rows, (rows.shape[-1],), norm.weight, norm.variance_epsilon)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of the half-split kind."""
    one, two = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-two, one], dim=-1) * sin
