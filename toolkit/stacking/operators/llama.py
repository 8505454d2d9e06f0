"""Language models of transformers with Llama's layers: Llama, Mistral, Ministral, Qwen2, Qwen3, SmolLM3, Granite."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from toolkit.stacking.operators.architecture import Architecture, Spaces, Spec
from toolkit.stacking.operators.patterns import Layer


def linear(name: str, rows: str, columns: str, writes: bool = False) -> dict[str, Spec]:
    """A linear map and its bias."""
    return {
        f"{name}.weight": Spec("linear", (rows, columns), reads=1, writes=writes),
        f"{name}.bias": Spec("bias", (rows,), writes=writes),
    }


FOUND_SHAPES: dict[tuple[type, type, str], dict[str, tuple[int, ...]]] = {}
"""Shapes by architecture and config: a deep network takes its time to build, even on the meta device."""


class Llama(Architecture):
    """``config`` is the transformers config; tensor names are those of the ``...ForCausalLM`` class."""

    layer_prefix = "model.layers."
    final_norm = "model.norm.weight"
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    tensors: ClassVar[Mapping[str, Spec]] = {
        "model.embed_tokens.weight": Spec("embedding", ("", "residual")),
        "model.norm.weight": Spec("gain", ("residual",)),
        "lm_head.weight": Spec("head", ("", "residual"), reads=1),
    }
    layer_tensors: ClassVar[Mapping[str, Spec]] = {
        **linear("self_attn.q_proj", "query", "residual"),
        **linear("self_attn.k_proj", "key", "residual"),
        **linear("self_attn.v_proj", "value", "residual"),
        **linear("self_attn.o_proj", "residual", "attended", writes=True),
        "self_attn.q_norm.weight": Spec("gain", ("",)),
        "self_attn.k_norm.weight": Spec("gain", ("",)),
        **linear("mlp.gate_proj", "mlp", "residual"),
        **linear("mlp.up_proj", "mlp", "residual"),
        **linear("mlp.down_proj", "residual", "mlp", writes=True),
        "input_layernorm.weight": Spec("gain", ("residual",)),
        "post_attention_layernorm.weight": Spec("gain", ("residual",)),
    }

    def spaces(self, config: Any) -> Spaces:
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return Spaces(config.hidden_size, config.num_attention_heads, kv_heads, head_size, config.intermediate_size)

    def num_layers(self, config: Any) -> int:
        return config.num_hidden_layers

    def tied(self, config: Any) -> bool:
        return bool(config.tie_word_embeddings)

    def context(self, config: Any) -> int:
        return config.max_position_embeddings

    def deepened(self, config: Any, plan: Sequence[Layer]) -> Any:
        """Every list in the config with one entry per layer (``layer_types``, ``no_rope_layers``) grows along."""
        old = config.num_hidden_layers
        changes: dict[str, Any] = {"num_hidden_layers": len(plan)}
        for key, value in config.to_dict().items():
            if isinstance(value, list) and len(value) == old and "layer" in key:
                changes[key] = [value[layer.source] for layer in plan]
        return changed(config, changes)

    def widened(self, config: Any, spaces: Spaces, norm_eps_factor: float = 1.0) -> Any:
        changes = {
            "hidden_size": spaces.residual,
            "num_attention_heads": spaces.heads,
            "num_key_value_heads": spaces.kv_heads,
            "intermediate_size": spaces.mlp,
            "rms_norm_eps": config.rms_norm_eps * norm_eps_factor,
        }
        if getattr(config, "head_dim", None):
            changes["head_dim"] = spaces.head_size
        return changed(config, changes)

    def shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        key = type(self), type(config), config.to_json_string(use_diff=False)
        if key not in FOUND_SHAPES:
            FOUND_SHAPES[key] = super().shapes(config)
        return dict(FOUND_SHAPES[key])

    def skeleton(self, config: Any) -> nn.Module:
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()  # it notes its type there


def changed(config: Any, changes: dict[str, Any]) -> Any:
    """A copy of a transformers config with other values."""
    return type(config).from_dict({**config.to_dict(), **changes})
