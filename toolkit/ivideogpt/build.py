"""From the config to networks: fresh ones, or those of a trained world model that training starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from toolkit import zoo
from toolkit.errors import UserError
from toolkit.ivideogpt.clips import Clips
from toolkit.ivideogpt.config import TrainIVideoGPT
from toolkit.ivideogpt.rollout import sampling_of
from toolkit.runs.machine import check_fits
from toolkit.runs.record import Run
from toolkit.runs.seeds import generator, seed_all
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.tokenizer import CompressiveVQModel
from toolkit.zoo.world.tokens import TokenLayout
from toolkit.zoo.world.transformer import VideoTransformer, llama_config


def build_tokenizer(config: TrainIVideoGPT, resolution: int) -> CompressiveVQModel:
    """A fresh tokenizer for square frames of ``resolution`` pixels. Raises UserError where sizes do not fit."""
    keys = config.tokenizer
    levels = len(keys.block_out_channels)
    try:
        network = CompressiveVQModel(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(keys.block_out_channels),
            layers_per_block=keys.layers_per_block,
            latent_channels=keys.latent_channels,
            norm_num_groups=keys.norm_num_groups,
            num_vq_embeddings=keys.num_vq_embeddings,
            num_dyn_embeddings=keys.num_dyn_embeddings,
            patch_size=keys.patch_size,
            max_att_resolution=keys.max_att_resolution,
            context_length=config.context_length,
            resolution=resolution,
        )
    except ValueError as error:
        size = f"resolution={resolution}"
        said = str(error).replace(size, f"data.size_px={resolution}") if size in str(error) else f"tokenizer: {error}"
        raise UserError(said) from None
    if keys.start_from_plain:
        network.start_conditional_from_plain()
    if keys.start_diagonal:
        network.start_diagonal(keys.start_diagonal, generator(config.seed, "diagonal"))
    return network


def build_transformer(config: TrainIVideoGPT, tokenizer: CompressiveVQModel, action_dim: int) -> VideoTransformer:
    """A fresh transformer for the tokenizer's vocabulary. Raises UserError when clips exceed its positions."""
    keys = config.transformer
    check_length(config, tokenizer, keys.max_position_embeddings)
    return VideoTransformer(
        llama_config(
            tokenizer.layout,
            hidden_size=keys.hidden_size,
            intermediate_size=keys.intermediate_size,
            num_hidden_layers=keys.num_hidden_layers,
            num_attention_heads=keys.num_attention_heads,
            num_key_value_heads=keys.num_key_value_heads,
            max_position_embeddings=keys.max_position_embeddings,
            attention_dropout=keys.attention_dropout,
            spatial_embedding=keys.spatial_embedding,
            action_dim=action_dim if config.action_conditioned else None,
            has_reward=config.reward_head,
        )
    )


def check_length(config: TrainIVideoGPT, tokenizer: CompressiveVQModel, num_positions: int) -> None:
    """A clip's tokens fit the transformer's positions. Raises UserError with the longest clip that does."""
    layout = tokenizer.layout
    length = layout.length(config.num_frames - config.context_length)
    if length > num_positions:
        most = config.context_length + layout.max_future(num_positions)
        raise UserError(
            f"num_frames={config.num_frames}: makes {length} tokens, transformer.max_position_embeddings="
            f"{num_positions} hold {most} frames; shorten the clips or raise it"
        )


def clip_bytes(config: TrainIVideoGPT, layout: TokenLayout, action_dim: int) -> int:
    """Of a clip as tokens: int64, with float32 actions and rewards."""
    numbers = action_dim * config.action_conditioned + config.reward_head
    return 8 * layout.length(config.num_frames - config.context_length) + 4 * config.num_frames * numbers


def check_cache(config: TrainIVideoGPT, tokenizer: CompressiveVQModel, clips: Clips) -> None:
    """The clips that are tokenised once fit into memory. Raises UserError."""
    num = config.optim.transformer.cached_clips
    if num is not None:
        check_fits("optim.transformer.cached_clips", num, clip_bytes(config, tokenizer.layout, clips.action_dim))


def start_tokenizer(config: TrainIVideoGPT, clips: Clips) -> CompressiveVQModel:
    """The tokenizer that training starts from: fresh, or that of ``init``. Raises UserError where it does not fit."""
    seed_all(config.seed, "tokenizer", "init")
    tokenizer = build_tokenizer(config, clips.resolution) if config.init is None else _init_tokenizer(config, clips)
    return with_dropout(tokenizer, config.tokenizer.dropout)


def with_dropout(tokenizer: CompressiveVQModel, dropout: float) -> CompressiveVQModel:
    """The tokenizer itself, whose cross-attention drops that share in training."""
    for part in (tokenizer.cond_encoder, tokenizer.cond_decoder):
        for block in part.cross_att_blocks:
            block.att.dropout = block.resid_dropout.p = dropout
    return tokenizer


def _init_tokenizer(config: TrainIVideoGPT, clips: Clips) -> CompressiveVQModel:
    assert config.init is not None
    tokenizer: CompressiveVQModel = zoo.load(config.init, "tokenizer").requires_grad_(True)
    if tokenizer.config.resolution != clips.resolution:
        raise UserError(
            f"init={config.init}: its frames have {tokenizer.config.resolution} pixels, the data's {clips.resolution}; "
            f"set data.size_px={tokenizer.config.resolution}"
        )
    try:
        tokenizer.set_context_length(config.context_length)
    except ValueError as error:
        raise UserError(f"context_length={config.context_length}: init={config.init} has {error}") from None
    return tokenizer


def start_transformer(
    config: TrainIVideoGPT, tokenizer: CompressiveVQModel, clips: Clips
) -> tuple[VideoTransformer, bool]:
    """The transformer that training starts from, and whether it takes actions in the data's own units already.

    An action-free one of ``init`` gets a zero-initialised projection. Raises UserError where it does not fit.
    """
    seed_all(config.seed, "transformer", "init")
    network = init_transformer(config, clips)
    if network is None:
        return build_transformer(config, tokenizer, clips.action_dim), False
    network.requires_grad_(True)
    check_length(config, tokenizer, network.config.max_position_embeddings)
    wanted = clips.action_dim if config.action_conditioned else 0
    if network.action_dim == wanted and network.has_reward == config.reward_head:
        return network, bool(wanted)
    return network.with_actions(wanted, config.reward_head) if wanted else network, False


def init_transformer(config: TrainIVideoGPT, clips: Clips) -> VideoTransformer | None:
    """The transformer of ``init``, None where a fresh one is trained. Raises UserError where it does not fit."""
    if config.init is None or config.init_parts == "tokenizer" or _has_tokenizer_only(config.init):
        return None
    network = load_world(config.init, "init").transformer
    wanted = clips.action_dim if config.action_conditioned else 0
    if network.action_dim and network.action_dim != wanted:
        raise UserError(
            f"init={config.init}: takes actions of {network.action_dim} numbers, the data has {wanted}; "
            "start from an action-free model"
        )
    if network.action_dim and network.has_reward != config.reward_head:
        raise UserError(f"reward_head={config.reward_head}: init={config.init} has reward_head={network.has_reward}")
    return network


def _has_tokenizer_only(source: str) -> bool:
    """A run of stage=tokenizer: its transformer is still to come."""
    places = (zoo.local(source), zoo.local(source) / "model")
    return any((place / "tokenizer").is_dir() and not (place / "transformer").is_dir() for place in places)


def load_world(source: str | Path, key: str) -> WorldModel:
    """A world model from a run, a folder or the hub. Raises UserError naming ``key`` when it is something else."""
    world: Any = zoo.load(source)
    if not isinstance(world, WorldModel):
        raise UserError(f"{key}={source}: a {type(world).__name__}, not a world model of train-ivideogpt")
    return world


def join(
    tokenizer: CompressiveVQModel, transformer: VideoTransformer, config: TrainIVideoGPT, clips: Clips
) -> WorldModel:
    """The two as a world model that knows the range and kind of the data's actions and how it is to be sampled."""
    bounds = {f"action_{name}": clips.statistics[name].tolist() for name in ("low", "high") if name in clips.statistics}
    return WorldModel(
        tokenizer,
        transformer,
        goal_conditioned=config.goal_conditioned,
        sampling=sampling_of(config),
        discrete=clips.dataset.discrete if bounds else None,
        kept_frames=config.kept_frames,
        **bounds,
    )


def trained_world(run: Run, config: TrainIVideoGPT, clips: Clips, device: torch.device) -> WorldModel:
    """The world model of this run, or of ``config.model``. Raises UserError where it does not fit the data."""
    source: Any = config.model or run.dir
    world = load_world(source, "model").to(device)
    spec = world.spec
    wanted = clips.action_dim if config.action_conditioned else 0
    for what, has, needs in (
        ("frames of pixels", spec.resolution, clips.resolution),
        ("context frames", spec.T0, config.context_length),
        ("numbers of an action", spec.action_dim, wanted),
    ):
        if has != needs:
            raise UserError(
                f"model={source}: {what}: it has {has}, this config {needs}; repeat the keys it was trained with"
            )
    return world
