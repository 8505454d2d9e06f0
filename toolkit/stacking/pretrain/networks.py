"""The testbed's networks: transformers Llamas in the paper's initialisation, and what each costs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.stacking.config import GrowLLM, Growth, Network
from toolkit.stacking.measure.curves import Spent, flops_per_token
from toolkit.stacking.measure.flops import Cost, cost
from toolkit.stacking.operators.grow import Grown, grow
from toolkit.stacking.operators.llama import Llama
from toolkit.stacking.operators.tensors import Info, Tensors, draw

ARCHITECTURE = Llama()


class Shapes(Tensors):
    """Tensors of which only the shapes are known: enough to plan a growth, not to read one."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.infos = {name: Info(shape, torch.float32) for name, shape in shapes.items()}

    def read(self, name: str) -> Tensor:
        raise AssertionError(f"{name}: only its shape is known")


class Fresh(Shapes):
    """The paper's initialisation, drawn by name: N(0, 2 / (5 fan-in)), MLP output N(0, 1 / (fan-in l^2)), gains 1."""

    def __init__(self, config: Any, seed: int) -> None:
        super().__init__(ARCHITECTURE.shapes(config))
        self.num_layers, self.seed = ARCHITECTURE.num_layers(config), seed

    def read(self, name: str) -> Tensor:
        spec = ARCHITECTURE.spec(name)
        assert spec is not None
        return draw(spec, name, self.infos[name], self.num_layers, self.seed)


def llama_config(network: Network, vocab_size: int, tokenizer: Any | None = None) -> Any:
    """The transformers config of ``network`` for a vocabulary; ids of special tokens from ``tokenizer``."""
    from transformers import LlamaConfig

    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
    return LlamaConfig(
        num_hidden_layers=network.num_hidden_layers,
        hidden_size=network.hidden_size,
        intermediate_size=network.intermediate_size,
        num_attention_heads=network.num_attention_heads,
        num_key_value_heads=network.num_key_value_heads or network.num_attention_heads,
        vocab_size=vocab_size,
        max_position_embeddings=network.context,
        rms_norm_eps=network.rms_norm_eps,
        rope_theta=network.rope_theta,
        tie_word_embeddings=network.tie_word_embeddings,
        **ids,
    )


def planned(config: Any, growth: Growth, seed: int = 0) -> Grown:
    """How a network of ``config`` would grow; only its config, plan and sizes can be read.

    Raises UserError where the operator does not fit.
    """
    return grow(ARCHITECTURE, config, Shapes(ARCHITECTURE.shapes(config)), growth, seed)


def unfilled(config: Any) -> Any:
    """A ``...ForCausalLM`` in float32 on torch's default device, with transformers' own initialisation."""
    from transformers import AutoModelForCausalLM

    own = copy.deepcopy(config)  # transformers notes the type in it
    return AutoModelForCausalLM.from_config(own, attn_implementation="sdpa", dtype=torch.float32)


def build(config: Any, tensors: Tensors) -> Any:
    """A ``...ForCausalLM`` in float32 on the CPU with exactly these weights. Raises UserError for NaN among them."""
    with torch.device("meta"):
        network = unfilled(config)
    network.model.rotary_emb = type(network.model.rotary_emb)(config)
    state = {name: tensors.read(name).float().clone() for name in tensors.infos}
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise UserError(f"{name} holds numbers that are not finite; a network with these weights cannot be trained")
    if ARCHITECTURE.tied(config):
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    network.load_state_dict(state, strict=True, assign=True)
    network.tie_weights()
    return network


def training_cost(config: Any, context: int) -> Cost:
    """FLOPs per token and parameters of ``config`` trained on sequences of ``context`` tokens."""
    return cost(ARCHITECTURE, config, context)


def tokens_left(config: GrowLLM, target: Cost, own: Cost, spent: Spent) -> float:
    """How many tokens a network of cost ``own`` trains on until it has cost what scratch does, ``spent`` included.

    Raises UserError where nothing is left.
    """
    budget = config.budget
    whole = budget.tokens * flops_per_token(target)[budget.accounting]
    tokens = (whole - spent.flops[budget.accounting]) / flops_per_token(own)[budget.accounting]
    if tokens < config.network.context:
        before = (
            "the base and the map (learn.num_steps, learn.batch_size)" if config.operator == "learn" else "the base"
        )
        raise UserError(f"budget.tokens={budget.tokens:g}: training {before} takes all that compute; raise it")
    return tokens


def with_map(config: GrowLLM, spent: Spent, target: Cost) -> Spent:
    """What was ``spent``, and the training of G_learn's map, whose every step costs one of the target."""
    if config.operator != "learn":
        return spent
    return spent.after(target, config.learn.num_steps * config.learn.batch_size, config.network.context)


def check_vocabulary(config: Any, vocab_size: int, source: str) -> None:
    """Raises UserError where the tokens are more than the network knows."""
    if vocab_size > config.vocab_size:
        raise UserError(
            f"model={source}: its vocabulary has {config.vocab_size} tokens, the tokenizer has {vocab_size}; leave "
            "tokenize.tokenizer out to use the source's own tokenizer"
        )


def check_context(config: Any, context: int, source: str) -> None:
    """Raises UserError where sequences are longer than the network is configured for."""
    if context > config.max_position_embeddings:
        raise UserError(
            f"network.context={context}: model={source} is configured for {config.max_position_embeddings} positions"
        )
