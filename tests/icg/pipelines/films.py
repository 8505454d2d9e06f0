"""Tiny pipelines that make films, sounds, or go on from a picture to a film."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from transformers import CLIPImageProcessor

from tests.icg import tiny
from tests.icg.pipelines.parts import (
    OFF,
    PROMPT,
    SMALL,
    Case,
    case,
    clip_text,
    ddim,
    embeds,
    flow,
    picture,
    pipeline,
    t5,
    t5_text,
    vae,
    vision,
    wan_vae,
    words,
)

LATENT = {"output_type": "latent"}
SHORT = {"max_sequence_length": 6}


# -- UNets -----------------------------------------------------------------------------------------------------------


def unet3d(cls: Any, **config: Any) -> Any:
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "sample_size": 8, "cross_attention_dim": 8}
    blocks = {
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    }
    return tiny.build(cls, norm_num_groups=4, attention_head_dim=4, **sizes | blocks | config)


@case
def TextToVideoSDPipeline() -> Case:
    unet = unet3d(diffusers.UNet3DConditionModel)
    pipe = pipeline("TextToVideoSDPipeline", vae=vae(), unet=unet, scheduler=ddim(), **clip_text())
    return Case(pipe, PROMPT | OFF | SMALL | LATENT | {"num_frames": 3})


@case
def VideoToVideoSDPipeline() -> Case:
    unet = unet3d(diffusers.UNet3DConditionModel)
    pipe = pipeline("VideoToVideoSDPipeline", vae=vae(), unet=unet, scheduler=ddim(), **clip_text())
    call = {"video": torch.rand(1, 3, 3, 16, 16), "strength": 0.5, "num_inference_steps": 4}
    return Case(pipe, PROMPT | OFF | LATENT | call)


@case
def AnimateDiffPipeline() -> Case:
    adapter = tiny.build(
        diffusers.MotionAdapter, block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=2,
        motion_num_attention_heads=2,
    )  # fmt: skip
    parts = {"unet": tiny.unet_condition(attention_head_dim=2), "motion_adapter": adapter, "scheduler": ddim()}
    pipe = pipeline("AnimateDiffPipeline", vae=vae(), **parts, **clip_text())
    return Case(pipe, PROMPT | OFF | SMALL | LATENT | {"num_frames": 3})


@case
def StableVideoDiffusionPipeline() -> Case:
    blocks = {
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    }
    sizes = {"block_out_channels": (32, 32), "layers_per_block": 1, "sample_size": 8, "in_channels": 8}
    widths = {"cross_attention_dim": 8, "num_attention_heads": 2, "addition_time_embed_dim": 8}
    unet = tiny.build(
        diffusers.UNetSpatioTemporalConditionModel, out_channels=4, projection_class_embeddings_input_dim=24,
        **blocks, **sizes, **widths,
    )  # fmt: skip
    decoder = tiny.build(diffusers.AutoencoderKLTemporalDecoder, block_out_channels=[32], latent_channels=4)
    scheduler = diffusers.EulerDiscreteScheduler(
        prediction_type="v_prediction", sigma_min=0.002, sigma_max=700.0, timestep_spacing="leading",
        timestep_type="continuous", use_karras_sigmas=True, steps_offset=1, interpolation_type="linear",
    )  # fmt: skip
    parts = {"image_encoder": vision(image_size=224), "feature_extractor": CLIPImageProcessor()}
    pipe = pipeline("StableVideoDiffusionPipeline", vae=decoder, unet=unet, scheduler=scheduler, **parts)
    scales = {"min_guidance_scale": 1.0, "max_guidance_scale": 1.0}
    call = {"image": picture(32), "num_frames": 2, "height": 32, "width": 32, "decode_chunk_size": 2}
    return Case(pipe, call | scales | LATENT)


# -- transformers ----------------------------------------------------------------------------------------------------


def wan(name: str, call: dict[str, Any], in_channels: int = 16, config: Any = None, **parts: Any) -> Case:
    sizes = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": in_channels,
        "out_channels": 16, "text_dim": 8, "freq_dim": 16, "ffn_dim": 16, "num_layers": 1, "rope_max_seq_len": 32,
    }  # fmt: skip
    cls = diffusers.SkyReelsV2Transformer3DModel if name.startswith("SkyReels") else diffusers.WanTransformer3DModel
    model = tiny.build(cls, **sizes | (config or {}))
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = pipeline(name, vae=wan_vae(), transformer=model, scheduler=scheduler, **t5_text(), **parts)
    time = "condition_embedder.time_embedder"
    return Case(pipe, embeds() | OFF | SMALL | LATENT | {"num_frames": 5} | SHORT | call, time=time)


@case
def WanPipeline() -> Case:
    return wan("WanPipeline", {})


@case
def WanVideoToVideoPipeline() -> Case:
    call = {"video": [picture()] * 5, "strength": 0.5, "num_inference_steps": 4}
    made = wan("WanVideoToVideoPipeline", call)
    made.call.pop("num_frames")
    return made


@case
def WanImageToVideoPipeline() -> Case:
    parts = {"image_encoder": None, "image_processor": None}
    return wan("WanImageToVideoPipeline", {"image": picture()}, 36, **parts)


@case
def SkyReelsV2Pipeline() -> Case:
    return wan("SkyReelsV2Pipeline", {})


@case
def SkyReelsV2DiffusionForcingPipeline() -> Case:
    return wan("SkyReelsV2DiffusionForcingPipeline", {"prompt": None, "num_inference_steps": 4})


def cogvideo(name: str, call: dict[str, Any], in_channels: int = 4) -> Case:
    sizes = {"sample_width": 2, "sample_height": 2, "sample_frames": 9, "patch_size": 2, "num_layers": 1}
    widths = {"num_attention_heads": 4, "attention_head_dim": 8, "time_embed_dim": 2, "text_embed_dim": 8}
    model = tiny.build(
        diffusers.CogVideoXTransformer3DModel, in_channels=in_channels, out_channels=4, max_text_seq_length=6,
        temporal_compression_ratio=4, **sizes, **widths,
    )  # fmt: skip
    decoder = tiny.build(
        diffusers.AutoencoderKLCogVideoX, block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1,
        norm_num_groups=2, temporal_compression_ratio=4, down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    pipe = pipeline(name, vae=decoder, transformer=model, scheduler=diffusers.CogVideoXDDIMScheduler(), **t5_text())
    return Case(pipe, PROMPT | OFF | SMALL | LATENT | SHORT | call)


@case
def CogVideoXPipeline() -> Case:
    return cogvideo("CogVideoXPipeline", {"num_frames": 9})


@case
def CogVideoXImageToVideoPipeline() -> Case:
    return cogvideo("CogVideoXImageToVideoPipeline", {"num_frames": 9, "image": picture()}, 8)


@case
def CogVideoXVideoToVideoPipeline() -> Case:
    call = {"video": [picture()] * 9, "strength": 0.5, "num_inference_steps": 4}
    return cogvideo("CogVideoXVideoToVideoPipeline", call)


def ltx(name: str, call: dict[str, Any]) -> Case:
    sizes = {"in_channels": 8, "out_channels": 8, "patch_size": 1, "patch_size_t": 1, "num_layers": 1}
    widths = {"num_attention_heads": 4, "attention_head_dim": 8, "cross_attention_dim": 32, "caption_channels": 8}
    model = tiny.build(diffusers.LTXVideoTransformer3DModel, **sizes, **widths)
    blocks = {"block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8), "latent_channels": 8}
    layers = {"layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5, "patch_size": 1, "patch_size_t": 1}
    scaling = {
        "spatio_temporal_scaling": (True, True, False, False),
        "decoder_spatio_temporal_scaling": (True, True, False, False),
    }
    decoder = tiny.build(diffusers.AutoencoderKLLTXVideo, **blocks, **layers, **scaling)
    pipe = pipeline(name, vae=decoder, transformer=model, scheduler=flow(), **t5_text())
    sizes = {"height": 32, "width": 32, "num_frames": 9}
    time = "time_embed.emb.timestep_embedder"
    return Case(pipe, PROMPT | OFF | sizes | LATENT | SHORT | call, time=time)


@case
def LTXPipeline() -> Case:
    return ltx("LTXPipeline", {})


@case
def LTXImageToVideoPipeline() -> Case:
    return ltx("LTXImageToVideoPipeline", {"image": picture(32)})


@case
def LTXConditionPipeline() -> Case:
    return ltx("LTXConditionPipeline", {"image": picture(32)})


@case
def MochiPipeline() -> Case:
    sizes = {"patch_size": 2, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "in_channels": 12}
    widths = {"pooled_projection_dim": 16, "text_embed_dim": 8, "time_embed_dim": 4, "max_sequence_length": 6}
    model = tiny.build(diffusers.MochiTransformer3DModel, out_channels=None, **sizes, **widths)
    decoder = tiny.build(
        diffusers.AutoencoderKLMochi, latent_channels=12, encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5,
    )  # fmt: skip
    pipe = pipeline("MochiPipeline", vae=decoder, transformer=model, scheduler=flow(), **t5_text())
    call = PROMPT | OFF | SMALL | LATENT | SHORT | {"num_frames": 7}
    return Case(pipe, call, time="time_embed.timestep_embedder")


@case
def LattePipeline() -> Case:
    sizes = {"sample_size": 8, "num_layers": 1, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 3}
    widths = {"caption_channels": 8, "in_channels": 4, "cross_attention_dim": 24, "out_channels": 8}
    norms = {"norm_type": "ada_norm_single", "norm_elementwise_affine": False, "num_embeds_ada_norm": 1000}
    model = tiny.build(diffusers.LatteTransformer3DModel, attention_bias=True, **sizes, **widths, **norms)
    pipe = pipeline("LattePipeline", vae=vae(), transformer=model, scheduler=ddim(), **t5_text())
    call = PROMPT | OFF | LATENT | {"height": 8, "width": 8, "video_length": 16, "clean_caption": False}
    return Case(pipe, call, time="adaln_single.emb.timestep_embedder", learned=True)


@case
def AllegroPipeline() -> Case:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "num_layers": 1}
    widths = {"cross_attention_dim": 24, "sample_width": 8, "sample_height": 8, "sample_frames": 8}
    model = tiny.build(diffusers.AllegroTransformer3DModel, caption_channels=8, **sizes, **widths)
    decoder = tiny.build(
        diffusers.AutoencoderKLAllegro, block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1,
        norm_num_groups=2, temporal_compression_ratio=4, down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
    )  # fmt: skip
    pipe = pipeline("AllegroPipeline", vae=decoder, transformer=model, scheduler=ddim(), **t5_text())
    call = PROMPT | OFF | SMALL | LATENT | SHORT | {"num_frames": 8, "clean_caption": False}
    return Case(pipe, call, time="adaln_single.emb.timestep_embedder")


@case
def HunyuanVideoPipeline() -> Case:
    sizes = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1}
    widths = {"num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 1, "patch_size_t": 1}
    texts = {"text_embed_dim": 8, "pooled_projection_dim": 8, "rope_axes_dim": (2, 4, 4), "guidance_embeds": True}
    model = tiny.build(diffusers.HunyuanVideoTransformer3DModel, **sizes, **widths, **texts)
    decoder = tiny.build(
        diffusers.AutoencoderKLHunyuanVideo, block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1,
        norm_num_groups=4, down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
    )  # fmt: skip
    pipe = pipeline("HunyuanVideoPipeline", vae=decoder, transformer=model, scheduler=flow(shift=7.0))
    call = embeds() | {"pooled_prompt_embeds": tiny.embeds(1)[:, 0], "prompt_attention_mask": torch.ones(1, 7)}
    call |= SMALL | LATENT | {"num_frames": 5}
    return Case(pipe, call, ("encoder_hidden_states", "pooled_projections"), "time_text_embed.timestep_embedder")


@case
def Kandinsky5T2IPipeline() -> Case:
    sizes = {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 8, "in_text_dim2": 8, "time_dim": 8}
    widths = {"model_dim": 16, "ff_dim": 16, "num_text_blocks": 1, "num_visual_blocks": 1, "axes_dims": (2, 2, 4)}
    model = tiny.build(diffusers.Kandinsky5Transformer3DModel, patch_size=(1, 2, 2), **sizes, **widths)
    pipe = pipeline("Kandinsky5T2IPipeline", vae=vae(), transformer=model, scheduler=flow(shift=7.0))
    pipe.resolutions = [(16, 16)]
    lengths = torch.tensor([0, 7], dtype=torch.int32)
    call = {"prompt_embeds_qwen": tiny.embeds(1, length=7), "prompt_embeds_clip": tiny.embeds(1, seed=6)[:, 0]}
    call |= {"prompt_cu_seqlens": lengths, "prompt": None} | OFF | SMALL | LATENT
    return Case(pipe, call, ("encoder_hidden_states", "pooled_projections"), "time_embeddings")


# -- sounds ----------------------------------------------------------------------------------------------------------


@case
def DanceDiffusionPipeline() -> Case:
    unet = tiny.build(
        diffusers.UNet1DModel, block_out_channels=(32, 32, 64), extra_in_channels=64, sample_size=512,
        sample_rate=16_000, in_channels=2, out_channels=2, flip_sin_to_cos=True, use_timestep_embedding=False,
        time_embedding_type="fourier", mid_block_type="UNetMidBlock1D",
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
    )  # fmt: skip
    pipe = pipeline("DanceDiffusionPipeline", unet=unet, scheduler=diffusers.IPNDMScheduler())
    return Case(pipe, {"batch_size": 1, "num_inference_steps": 4, "audio_length_in_s": 0.03}, (), "time_proj")


@case
def StableAudioPipeline() -> Case:
    from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel

    sizes = {"sample_size": 4, "in_channels": 3, "out_channels": 3, "num_layers": 1, "attention_head_dim": 4}
    widths = {"num_attention_heads": 2, "num_key_value_attention_heads": 2, "time_proj_dim": 8}
    model = tiny.build(
        diffusers.StableAudioDiTModel, cross_attention_dim=4, global_states_input_dim=8, cross_attention_input_dim=4,
        **sizes, **widths,
    )  # fmt: skip
    decoder = tiny.build(
        diffusers.AutoencoderOobleck, encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3,
        decoder_input_channels=3, audio_channels=2, channel_multiples=[2, 4], sampling_rate=4,
    )  # fmt: skip
    projection = tiny.build(
        StableAudioProjectionModel, text_encoder_dim=8, conditioning_dim=4, min_value=0, max_value=32
    )
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(prediction_type="v_prediction", sigma_data=1.0)
    texts = {"text_encoder": t5(), "tokenizer": words(), "projection_model": projection}
    pipe = pipeline("StableAudioPipeline", vae=decoder, transformer=model, scheduler=scheduler, **texts)
    return Case(pipe, PROMPT | OFF | LATENT, time="timestep_proj")
