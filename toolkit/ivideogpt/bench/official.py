"""The official networks as a contender of ``toolkit bench ivideogpt``: run from a checkout, never copied."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from toolkit.bench import Contender

if TYPE_CHECKING:
    from toolkit.ivideogpt.bench.shared import Options

PACKAGES = ("ivideogpt", "ivideogpt.vq_model", "ivideogpt.transformer")
LATENT_SIZE = 16  # of their decoder's maps
OURS = ("spatial.", "reward_linear.")


def official_classes(checkout: str | Path) -> tuple[Any, Any]:
    """CompressiveVQModel and HeadModelWithAction of the checkout.

    Their packages' ``__init__`` import LPIPS and with it torchvision, which neither class needs: they are passed over.
    """
    for name in PACKAGES:
        package = types.ModuleType(name)
        package.__path__ = [str(Path(checkout, *name.split(".")))]
        sys.modules[name] = package
    tokenizer = importlib.import_module("ivideogpt.vq_model.compressive_vq_model").CompressiveVQModel
    return tokenizer, importlib.import_module("ivideogpt.transformer.action_model").HeadModelWithAction


def official_networks(world: Any, num_future: int, checkout: str | Path) -> tuple[Any, Any]:
    """Their tokenizer and action-conditioned transformer with the weights of our ``world``.

    What they have no place for is left out: rewards, the embedding of places, and a tokenizer whose maps are not the
    16x16 that theirs is written for (None).
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer_class, transformer_class = official_classes(checkout)
    layout, ours = world.tokenizer.layout, world.transformer.config.to_dict()
    llama = LlamaConfig(**{key: one for key, one in ours.items() if key != "dtype"})
    with torch.device("meta"):
        transformer = transformer_class(
            AutoModelForCausalLM.from_config(llama),
            action_dim=world.transformer.action_dim,
            prelude_tokens_num=layout.prompt_length - 1,
            tokens_num_per_dyna=layout.tokens_per_frame,
            context=layout.context_length,
            segment_length=layout.context_length + num_future,
        )
    transformer.llm.model.rotary_emb = type(transformer.llm.model.rotary_emb)(llama)  # its table is no weight
    _share(transformer, world.transformer)
    if world.tokenizer.latent_size != LATENT_SIZE:
        return None, transformer.eval()
    config = {key: value for key, value in world.tokenizer.config.items() if not key.startswith("_")}
    with torch.device("meta"):
        tokenizer = tokenizer_class(**config)
    _share(tokenizer, world.tokenizer)
    return tokenizer.eval(), transformer.eval()


def _share(theirs: Any, mine: Any) -> None:
    """Give them our weights, not a second copy."""
    weights = {name: one.contiguous() for name, one in mine.state_dict().items() if not name.startswith(OURS)}
    theirs.load_state_dict(weights, strict=True, assign=True)


def official(options: Options) -> Contender:
    """Their tasks: ``rollout`` as inference/predict.py goes, from a context and one frame that is not looked at.

    Only ``generate`` where their tokenizer cannot hold our weights.
    """
    from toolkit.ivideogpt.bench.shared import build_world, clips, contender, training
    from toolkit.zoo.counting import count_parameters

    world = build_world(options)
    layout, resolution = world.tokenizer.layout, world.spec.resolution
    first, num_future = options.context_length, options.num_future
    tokenizer, transformer = official_networks(world, num_future, options.checkout or "")
    transformer = transformer.to(options.device)
    frames, actions = clips(options, resolution)
    if tokenizer is None:
        tokens = labels = world.tokenizer.tokenize(frames)
    else:
        with torch.no_grad():
            tokens, labels = tokenizer.to(options.device).tokenize(frames, first)
    parameters = [count_parameters(one) for one in (tokenizer, transformer) if one is not None]
    del world
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=1e-4) if "train" in options.tasks else None

    def generate(prompt: Tensor) -> Tensor:
        transformer.eval()
        new = layout.num_targets(num_future)
        return transformer.generate(prompt, max_new_tokens=new, action=actions, pad_token_id=layout.frame_slot)

    @torch.no_grad()
    def rollout() -> None:
        prompt = tokenizer.tokenize(frames[:, : first + 1], first)[0][:, : layout.prompt_length]
        tokenizer.detokenize(generate(prompt), first).clamp(0.0, 1.0)

    def loss() -> Any:
        transformer.train()
        return transformer(input_ids=tokens, labels=labels, action=actions).loss

    alone = {"generate": lambda: generate(tokens[:, : layout.prompt_length])}
    if tokenizer is None:
        return contender(options, sum(parameters), **alone)
    return contender(
        options,
        sum(parameters),
        **alone,
        rollout=rollout,
        tokenize=torch.no_grad()(lambda: tokenizer.tokenize(frames, first)),
        detokenize=torch.no_grad()(lambda: tokenizer.detokenize(tokens, first)),
        train=training(transformer.parameters(), loss, optimizer),
    )
