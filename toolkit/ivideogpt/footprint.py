"""What each stage of ``train-ivideogpt`` trains, and on what, for ``toolkit plan``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from toolkit.data.catalogue import lookup
from toolkit.data.episodes.clips import Clip
from toolkit.errors import UserError
from toolkit.ivideogpt.build import build_tokenizer, build_transformer, clip_bytes, with_dropout
from toolkit.ivideogpt.config import TrainIVideoGPT
from toolkit.ivideogpt.train.losses import TokenizerObjective, fakes, generator_loss, hinge
from toolkit.ivideogpt.train.perceptual import unweighted_distance
from toolkit.ivideogpt.train.transformer import TokenClips, TransformerObjective, tokenise
from toolkit.runs.stage_shape import Networks, StageShape
from toolkit.zoo.checkpointing import checkpointing_of
from toolkit.zoo.world.discriminator import PatchDiscriminator
from toolkit.zoo.world.tokenizer import CompressiveVQModel

ASSUMED_ACTIONS = 2  # numbers of an action, where only the data would tell: a few hundred weights


def stages(config: TrainIVideoGPT) -> list[StageShape]:
    """The stages that train, in order. Raises UserError naming the key that would tell the shape of the data."""
    config = replace(config, init=None, data=replace(config.data, size_px=_resolution(config)))
    actions = lookup(config.data.name).num_actions * config.data.frame_step or ASSUMED_ACTIONS
    is_told = lookup(config.data.name).num_actions or not config.action_conditioned
    notes = () if is_told else (f"actions of {actions} numbers: only the data would tell",)
    tokenizer, transformer = config.optim.tokenizer, config.optim.transformer
    found = {
        "tokenizer": StageShape(
            "tokenizer",
            "clips",
            tokenizer.num_steps,
            tokenizer.batch_size,
            partial(_tokenizer, config),
            config.precision,
            tokenizer.micro_batch_size,
            notes=notes,
        ),
        "transformer": StageShape(
            "transformer",
            "clips",
            transformer.num_steps,
            transformer.batch_size,
            partial(_transformer, config, actions),
            config.precision,
            transformer.micro_batch_size,
            transformer.gradient_checkpointing,
            sharded=transformer.sharding == "fsdp",
            cache_bytes=_cache_bytes(config, actions),
            notes=notes,
        ),
    }
    return [found[name] for name in config.stages() if name in found and found[name].num_steps]


def _resolution(config: TrainIVideoGPT) -> int:
    entry = lookup(config.data.name)
    if config.data.size_px is None and not entry.shape:
        raise UserError(f"data.size_px: frames of data.name={config.data.name} have no size of their own; give it")
    return config.data.size_px or entry.shape[1]


def _tokenizer(config: TrainIVideoGPT) -> Networks:
    keys, tokenizer = config.tokenizer_loss, _fresh_tokenizer(config)
    if config.codebook.frozen or config.codebook.kind == "ema":  # no gradient moves the codes
        tokenizer.quantize.requires_grad_(False)
        tokenizer.dynamics_quantize.requires_grad_(False)
    objective = TokenizerObjective(tokenizer, keys, unweighted_distance(keys.perceptual)).train()
    judge = PatchDiscriminator(hidden_channels=keys.gan_hidden, depth=keys.gan_depth) if keys.gan else None

    def loss(batch: int) -> Tensor:
        size = config.data.size_px or 0  # stages() has set it
        context, future = (
            torch.rand(batch, count, 3, size, size)
            for count in (config.context_length, config.optim.tokenizer.num_future)
        )
        terms, found = objective(context, future, True)
        if judge is None:
            return terms["loss"]
        adversarial = keys.gan_weight * generator_loss(judge, found, terms, tokenizer)
        real = torch.cat([context.flatten(0, 1), future.flatten(0, 1)])
        judged = hinge(judge, fakes(found).detach(), -1) + hinge(judge, real, 1)  # its own step, which follows
        return terms["loss"] + adversarial + judged

    trained = nn.ModuleList([objective] if judge is None else [objective, judge])
    return Networks(trained, loss)


def _transformer(config: TrainIVideoGPT, num_actions: int) -> Networks:
    tokenizer = _fresh_tokenizer(config).requires_grad_(False).eval()
    objective = TransformerObjective(build_transformer(config, tokenizer, num_actions), tokenizer, config, {}).train()
    layout, size, time = tokenizer.layout, config.data.size_px or 0, config.num_frames
    length = layout.length(time - config.context_length)

    def loss(batch: int) -> Tensor:
        if config.optim.transformer.cached_clips is None:
            frames = torch.rand(batch, time, 3, size, size)
            with torch.autocast("cpu", enabled=False):
                tokens = tokenise(tokenizer, Clip(frames, None, None), torch.device("cpu")).tokens
        else:
            tokens = torch.randint(layout.num_context_codes, (batch, length))
        actions = torch.rand(batch, time, num_actions) if config.action_conditioned else None
        rewards = torch.rand(batch, time) if config.reward_head else None
        return objective(TokenClips(tokens, actions, rewards))["loss"]

    layers = list(objective.transformer.llm.model.layers)
    return Networks(objective, loss, [tokenizer], units=layers, recompute=checkpointing_of(objective.transformer))


def _fresh_tokenizer(config: TrainIVideoGPT) -> CompressiveVQModel:
    assert config.data.size_px is not None
    return with_dropout(build_tokenizer(config, config.data.size_px), config.tokenizer.dropout)


def _cache_bytes(config: TrainIVideoGPT, num_actions: int) -> int:
    """Of the tokens that are made once."""
    cached = config.optim.transformer.cached_clips
    if not cached:
        return 0
    with torch.device("meta"):
        layout = _fresh_tokenizer(config).layout
    return cached * clip_bytes(config, layout, num_actions)
