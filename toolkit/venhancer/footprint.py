"""What each stage of ``enhance-video``'s training trains, and on what, for ``toolkit plan``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from toolkit.errors import UserError
from toolkit.runs.stage_shape import Networks, StageShape
from toolkit.venhancer.build import build_base, build_pipeline, build_vae
from toolkit.venhancer.config import EnhanceVideo
from toolkit.venhancer.model.codec import as_codec
from toolkit.venhancer.model.schedule import VideoNoiseSchedule
from toolkit.venhancer.train.augment import Degraded, frames_for
from toolkit.venhancer.train.keys import FACTOR, Enlarging, first_network, make_optimizers
from toolkit.venhancer.train.muon import Muon
from toolkit.venhancer.train.objective import Denoising
from toolkit.venhancer.train.stage import check_crop
from toolkit.zoo.checkpointing import checkpointing_of
from toolkit.zoo.video.unet import layers_of

STABLE_DIFFUSION: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
TEXT_TOKENS, TEXT_LAYERS, TEXT_HEADS = 77, 23, 16  # of CLIP ViT-H as Stable Diffusion 2.1 has it


def stages(config: EnhanceVideo) -> list[StageShape]:
    """The stages that train, in order. Raises UserError where the stage trains nothing or sizes do not fit."""
    if "train_keys" in config.stages():
        return [_keys_stage(config)]
    if "train" not in config.stages():
        raise UserError(f"stage={config.stage}: trains nothing; give stage=train or stage=train_keys")
    trains_base = config.trains_base
    config, optim, notes = replace(config, init=None), config.optim, []
    if config.network.codec == "vae":
        notes.append("autoencoder: Stable Diffusion's sizes")
    if config.network.text_encoder:
        notes.append("text encoder: CLIP ViT-H's size; its time is left out, each text is encoded once")
    with torch.device("meta"):
        codec = as_codec(_vae(config))
        check_crop(config, codec, build_base(config, codec.channels))
    data = config.data
    shapes = [
        StageShape(
            name,
            "clips",
            num_steps,
            optim.batch_size,
            partial(_networks, config, name),
            config.precision,
            optim.micro_batch_size,
            optim.gradient_checkpointing,
            sharded=optim.sharding == "fsdp",
            cache_bytes=data.num_crops * data.num_frames * 3 * data.crop_px**2 if name == "train" else 0,
            notes=(*notes, "clips of frame factor 1: the longest"),
        )
        for name, num_steps in (("base", optim.base_num_steps), ("train", optim.num_steps))
    ]
    return shapes if trains_base else shapes[1:]


def _keys_stage(config: EnhanceVideo) -> StageShape:
    optim, data = config.optim, config.data

    def build() -> Networks:
        network = first_network(replace(config, init=None))
        num_moments = {Muon: 1, torch.optim.AdamW: 2}
        moments = sum(
            num_moments[type(optimizer)] * parameter.numel()  # type: ignore[index]
            for optimizer in make_optimizers(config, network).values()
            for group in optimizer.param_groups
            for parameter in group["params"]
        )
        patch = config.upscaler.patch_px

        def loss(batch: int) -> Tensor:
            truth = torch.rand(batch, 3, patch, patch)
            return Enlarging(network)(torch.rand(batch, 3, patch // FACTOR, patch // FACTOR), truth)

        recompute = checkpointing_of(network)
        return Networks(network.train(), loss, averaged=[network], recompute=recompute, moments=moments)

    return StageShape(
        "train_keys",
        "pictures",
        optim.num_steps,
        optim.batch_size,
        build,
        config.precision,
        optim.micro_batch_size,
        optim.gradient_checkpointing,
        cache_bytes=data.num_crops * 3 * data.crop_px**2,
        notes=("the update's time is counted as AdamW's, without Muon's products",) if config.upscaler.muon_lr else (),
    )


def _networks(config: EnhanceVideo, name: str) -> Networks:
    optim, data = config.optim, config.data
    pipeline = build_pipeline(config, vae=_vae(config), text=_text(config))
    with torch.device("cpu"):  # numbers that are looked up, not only computed with
        pipeline.register_modules(scheduler=VideoNoiseSchedule())
    denoiser, is_base = pipeline.denoiser, name == "base"
    trained = denoiser.unet if is_base else denoiser if optim.joint else denoiser.controlnet
    denoiser.requires_grad_(False)
    trained.requires_grad_(True).train()
    denoising = Denoising(pipeline, controlled=not is_base, step_weighting=optim.step_weighting)
    frames = frames_for(1, data.num_frames, config.augment.max_key_frames)

    def loss(batch: int) -> Tensor:
        size, tokens = (3, data.crop_px, data.crop_px), TEXT_TOKENS if config.network.text_encoder else 1
        clean, keys, fill = (torch.rand(batch, frames, *size) for _ in range(3))
        level = torch.randint(config.augment.max_noise_level + 1, (batch,))
        text = torch.randn(batch, tokens, config.network.cross_attention_dim)
        return denoising(Degraded(clean, keys, fill, 1, torch.ones(batch), level), text)

    beside = [pipeline.vae, pipeline.text_encoder, denoiser.unet if trained is denoiser.controlnet else None]
    frozen = [part for part in beside if part is not None]
    return Networks(trained, loss, frozen, [trained], layers_of(trained), recompute=checkpointing_of(denoiser))


def _vae(config: EnhanceVideo) -> Any:
    """The codec's module, an autoencoder without its weights."""
    return AutoencoderKL(**STABLE_DIFFUSION) if config.network.codec == "vae" else build_vae(config)


def _text(config: EnhanceVideo) -> tuple[Any, Any] | None:
    """A text encoder of the usual size without weights, and no tokenizer; None where the config has none."""
    if not config.network.text_encoder:
        return None
    from transformers import CLIPTextConfig, CLIPTextModel

    width = config.network.cross_attention_dim
    keys = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": TEXT_HEADS}
    return CLIPTextModel(CLIPTextConfig(num_hidden_layers=TEXT_LAYERS, **keys)).requires_grad_(False), None
