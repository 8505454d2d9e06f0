"""The families of language models in transformers that can grow, by ``model_type``, and the tensors of each.

Tensor names are those of the files as they are published. Where transformers 5 keeps several tensors as one in memory
(the experts of a mixture), the files hold them one by one, and so do these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from toolkit.errors import UserError
from toolkit.stacking.operators.architecture import Architecture, Spaces, Spec
from toolkit.stacking.operators.llama import Llama, changed, linear
from toolkit.stacking.operators.patterns import Layer


def norm(name: str, space: str) -> dict[str, Spec]:
    """A LayerNorm's gain and bias."""
    return {f"{name}.weight": Spec("gain", (space,)), f"{name}.bias": Spec("bias", (space,))}


class DepthOnly(Llama):
    """Llama's names around other layers, which only copying, silencing and drawing anew is known of."""

    width_operators = ()


class Gemma(DepthOnly):
    """Gemma: gains of norms are stored as the difference to 1; from Gemma 2 on both sides of each branch are normed."""

    layer_tensors: ClassVar[Mapping[str, Spec]] = {
        name: Spec("gain", spec.axes, neutral=0.0) if spec.kind == "gain" else spec
        for name, spec in {
            **Llama.layer_tensors,
            "pre_feedforward_layernorm.weight": Spec("gain", ("residual",)),
            "post_feedforward_layernorm.weight": Spec("gain", ("residual",)),
        }.items()
    }


class Phi3(DepthOnly):
    """Queries, keys and values in one matrix, and the two halves of the gated MLP in another."""

    layer_tensors: ClassVar[Mapping[str, Spec]] = {
        **Llama.layer_tensors,
        **linear("self_attn.qkv_proj", "qkv", "residual"),
        **linear("mlp.gate_up_proj", "", "residual"),
    }


class Olmo(DepthOnly):
    """OLMo 2 and 3: norms after the branches instead of before; queries and keys are normalised over all heads."""

    layer_tensors: ClassVar[Mapping[str, Spec]] = {
        **Llama.layer_tensors,
        "self_attn.q_norm.weight": Spec("gain", ("query",)),
        "self_attn.k_norm.weight": Spec("gain", ("key",)),
        "post_feedforward_layernorm.weight": Spec("gain", ("residual",)),
    }


class Mixture(DepthOnly):
    """A mixture of experts in the place of the MLP.

    home: its name inside of a layer. gate, up, down: the names of an expert's matrices.
    """

    home = "mlp"
    gate, up, down = "gate_proj", "up_proj", "down_proj"
    layer_tensors: ClassVar[Mapping[str, Spec]] = {
        **Llama.layer_tensors,
        "mlp.gate.weight": Spec("linear", ("", "residual"), reads=1),
        "mlp.experts.*.gate_proj.weight": Spec("linear", ("mlp", "residual"), reads=1),
        "mlp.experts.*.up_proj.weight": Spec("linear", ("mlp", "residual"), reads=1),
        "mlp.experts.*.down_proj.weight": Spec("linear", ("residual", "mlp"), reads=1, writes=True),
    }

    def spec(self, name: str) -> Spec | None:
        return super().spec(re.sub(r"\.experts\.\d+\.", ".experts.*.", name))

    def active_share(self, config: Any, name: str) -> float:
        return config.num_experts_per_tok / self.num_experts(config) if ".experts." in name else 1.0

    def num_experts(self, config: Any) -> int:
        """Of each layer."""
        return config.num_experts

    def shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for name, shape in super().shapes(config).items():
            found |= self._as_stored(name, shape)
        return found

    def _as_stored(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The tensors of the files behind one in memory."""
        layer, _, part = name.partition("mlp.experts.")
        if part == "gate_up_proj":
            experts, rows, columns = shape
            names = (f"{layer}{self.home}.experts.{e}.{p}.weight" for e in range(experts) for p in (self.gate, self.up))
            return dict.fromkeys(names, (rows // 2, columns))
        if part == "down_proj":
            return {f"{layer}{self.home}.experts.{e}.{self.down}.weight": shape[1:] for e in range(shape[0])}
        return {name.replace("mlp.gate.", f"{self.home}.gate."): shape}


class Qwen3Moe(Mixture):
    """Some of the layers may have a plain MLP."""

    def deepened(self, config: Any, plan: Sequence[Layer]) -> Any:
        def is_plain(layer: int) -> bool:
            return layer in config.mlp_only_layers or (layer + 1) % config.decoder_sparse_step != 0

        plain = [number for number, layer in enumerate(plan) if is_plain(layer.source)]
        return changed(super().deepened(config, plan), {"mlp_only_layers": plain, "decoder_sparse_step": 1})


class Mixtral(Mixture):
    """Every layer is a mixture."""

    home = "block_sparse_moe"
    gate, up, down = "w1", "w3", "w2"
    layer_tensors: ClassVar[Mapping[str, Spec]] = {
        **Llama.layer_tensors,
        "block_sparse_moe.gate.weight": Spec("linear", ("", "residual"), reads=1),
        "block_sparse_moe.experts.*.w1.weight": Spec("linear", ("mlp", "residual"), reads=1),
        "block_sparse_moe.experts.*.w3.weight": Spec("linear", ("mlp", "residual"), reads=1),
        "block_sparse_moe.experts.*.w2.weight": Spec("linear", ("residual", "mlp"), reads=1, writes=True),
    }

    def num_experts(self, config: Any) -> int:
        return config.num_local_experts


class Phi(DepthOnly):
    """Phi-1 and Phi-2: LayerNorm, attention and MLP side by side, a head with a bias."""

    layer_norm = True
    final_norm = "model.final_layernorm.weight"
    tensors: ClassVar[Mapping[str, Spec]] = {
        "model.embed_tokens.weight": Spec("embedding", ("", "residual")),
        **norm("model.final_layernorm", "residual"),
        "lm_head.weight": Spec("head", ("", "residual"), reads=1),
        "lm_head.bias": Spec("bias", ("",)),
    }
    layer_tensors: ClassVar[Mapping[str, Spec]] = {
        **norm("input_layernorm", "residual"),
        **norm("self_attn.q_layernorm", ""),
        **norm("self_attn.k_layernorm", ""),
        **linear("self_attn.q_proj", "query", "residual"),
        **linear("self_attn.k_proj", "key", "residual"),
        **linear("self_attn.v_proj", "value", "residual"),
        **linear("self_attn.dense", "residual", "attended", writes=True),
        **linear("mlp.fc1", "mlp", "residual"),
        **linear("mlp.fc2", "residual", "mlp", writes=True),
    }


class OPT(DepthOnly):
    """LayerNorm before each branch, learned positions, ReLU."""

    layer_norm = True
    layer_prefix = "model.decoder.layers."
    final_norm = "model.decoder.final_layer_norm.weight"
    embedding = "model.decoder.embed_tokens.weight"
    tensors: ClassVar[Mapping[str, Spec]] = {
        "model.decoder.embed_tokens.weight": Spec("embedding", ("", "residual")),
        "model.decoder.embed_positions.weight": Spec("embedding", ("", "residual")),
        **norm("model.decoder.final_layer_norm", "residual"),
        "lm_head.weight": Spec("head", ("", "residual"), reads=1),
    }
    layer_tensors: ClassVar[Mapping[str, Spec]] = {
        **norm("self_attn_layer_norm", "residual"),
        **norm("final_layer_norm", "residual"),
        **linear("self_attn.q_proj", "query", "residual"),
        **linear("self_attn.k_proj", "key", "residual"),
        **linear("self_attn.v_proj", "value", "residual"),
        **linear("self_attn.out_proj", "residual", "attended", writes=True),
        **linear("fc1", "mlp", "residual"),
        **linear("fc2", "residual", "mlp", writes=True),
    }

    def spaces(self, config: Any) -> Spaces:
        heads = config.num_attention_heads
        return Spaces(config.hidden_size, heads, heads, config.hidden_size // heads, config.ffn_dim)

    def deepened(self, config: Any, plan: Sequence[Layer]) -> Any:
        """Raises UserError for OPT-350m, whose layers norm what they add to, so that none of them can be silent."""
        if not config.do_layer_norm_before or config.word_embed_proj_dim != config.hidden_size:
            raise UserError("do_layer_norm_before=false, or projected embeddings (as of OPT-350m): cannot be grown")
        return super().deepened(config, plan)


class GPT2(DepthOnly):
    """LayerNorm, learned positions, and matrices stored as (inputs, outputs)."""

    layer_norm = True
    prefix = "transformer."
    layer_prefix = "transformer.h."
    final_norm = "transformer.ln_f.weight"
    embedding = "transformer.wte.weight"
    tensors: ClassVar[Mapping[str, Spec]] = {
        "transformer.wte.weight": Spec("embedding", ("", "residual")),
        "transformer.wpe.weight": Spec("embedding", ("", "residual")),
        **norm("transformer.ln_f", "residual"),
        "lm_head.weight": Spec("head", ("", "residual"), reads=1),
    }
    layer_tensors: ClassVar[Mapping[str, Spec]] = {
        **norm("ln_1", "residual"),
        "attn.c_attn.weight": Spec("linear", ("residual", "qkv"), reads=0),
        "attn.c_attn.bias": Spec("bias", ("qkv",)),
        "attn.c_proj.weight": Spec("linear", ("attended", "residual"), reads=0, writes=True),
        "attn.c_proj.bias": Spec("bias", ("residual",), writes=True),
        **norm("ln_2", "residual"),
        "mlp.c_fc.weight": Spec("linear", ("residual", "mlp"), reads=0),
        "mlp.c_fc.bias": Spec("bias", ("mlp",)),
        "mlp.c_proj.weight": Spec("linear", ("mlp", "residual"), reads=0, writes=True),
        "mlp.c_proj.bias": Spec("bias", ("residual",), writes=True),
    }

    def spaces(self, config: Any) -> Spaces:
        heads, mlp = config.n_head, config.n_inner or 4 * config.n_embd
        return Spaces(config.n_embd, heads, heads, config.n_embd // heads, mlp)

    def deepened(self, config: Any, plan: Sequence[Layer]) -> Any:
        """Raises UserError where a layer's number is part of its function."""
        if config.scale_attn_by_inverse_layer_idx:
            raise UserError("scale_attn_by_inverse_layer_idx=true: a copied layer would compute something else")
        return changed(config, {"n_layer": len(plan)})


class GPTNeoX(DepthOnly):
    """Pythia's: LayerNorm, attention and MLP side by side, heads of queries, keys and values interleaved."""

    layer_norm = True
    prefix = "gpt_neox."
    layer_prefix = "gpt_neox.layers."
    final_norm = "gpt_neox.final_layer_norm.weight"
    embedding, head = "gpt_neox.embed_in.weight", "embed_out.weight"
    tensors: ClassVar[Mapping[str, Spec]] = {
        "gpt_neox.embed_in.weight": Spec("embedding", ("", "residual")),
        **norm("gpt_neox.final_layer_norm", "residual"),
        "embed_out.weight": Spec("head", ("", "residual"), reads=1),
    }
    layer_tensors: ClassVar[Mapping[str, Spec]] = {
        **norm("input_layernorm", "residual"),
        **norm("post_attention_layernorm", "residual"),
        **linear("attention.query_key_value", "qkv", "residual"),
        **linear("attention.dense", "residual", "attended", writes=True),
        **linear("mlp.dense_h_to_4h", "mlp", "residual"),
        **linear("mlp.dense_4h_to_h", "residual", "mlp", writes=True),
    }

    def spaces(self, config: Any) -> Spaces:
        heads = config.num_attention_heads
        return Spaces(config.hidden_size, heads, heads, config.hidden_size // heads, config.intermediate_size)

    def shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        return {
            self.head if name == "lm_head.weight" else name: shape for name, shape in super().shapes(config).items()
        }


MOST = 4096  # layers or experts: before a network is laid out, which takes time for each
TRAINABLE = ("llama", "mistral", "ministral", "qwen2", "qwen3", "smollm3")  # here, and by G_learn's map
FAMILIES: Mapping[str, Architecture] = {
    **dict.fromkeys((*TRAINABLE, "ministral3", "granite"), Llama()),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), Gemma()),
    "phi": Phi(),
    "phi3": Phi3(),
    "opt": OPT(),
    **dict.fromkeys(("olmo2", "olmo3"), Olmo()),
    "qwen3_moe": Qwen3Moe(),
    "mixtral": Mixtral(),
    "gpt2": GPT2(),
    "gpt_neox": GPTNeoX(),
}


def family(config: Any, where: str) -> Architecture:
    """The family of a transformers config. Raises UserError for one that is unknown or a quantised checkpoint."""
    kind = str(getattr(config, "model_type", None))
    if kind not in FAMILIES:
        inside = getattr(config, "text_config", None)
        hint = "; it holds more than a language model: save that one alone" if inside else ""
        raise UserError(f"{where}: model_type {kind} is not of a known family ({', '.join(FAMILIES)}){hint}")
    for key in ("num_hidden_layers", "n_layer", "num_experts", "num_local_experts"):
        number = getattr(config, key, 1)
        if type(number) is not int or not 1 <= number <= MOST:
            raise UserError(f"{where}: {key} is {number!r}; expected a whole number from 1 to {MOST}")
    positions = getattr(config, "max_position_embeddings", getattr(config, "n_positions", 1))
    if type(positions) is not int or positions < 1:
        raise UserError(f"{where}: max_position_embeddings is {positions!r}; expected a whole number from 1")
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"{where}: the weights are quantised; growth needs them in a floating-point type")
    return FAMILIES[kind]


def check_trainable(config: Any, where: str) -> None:
    """Raises UserError for a network that can grow, but has no training loop here."""
    if config.model_type not in TRAINABLE:
        raise UserError(
            f"{where}: {config.model_type} networks grow here, but do not train here (those that do: "
            f"{', '.join(TRAINABLE)}); grow with stage=grow and train with a trainer of transformers"
        )
