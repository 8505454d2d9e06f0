"""Tiny pipelines that make pictures with a transformer."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests.icg import tiny
from tests.icg.pipelines.parts import (
    OFF,
    PROMPT,
    SMALL,
    Case,
    bert,
    case,
    ddim,
    embeds,
    flow,
    gemma,
    mask,
    picture,
    pipeline,
    qwen_vae,
    t5,
    t5_text,
    vae,
    words,
)

LATENT = {"output_type": "latent"}
POOLED = ("encoder_hidden_states", "pooled_projections")
DIT_TIME = r"transformer_blocks\.\d\.norm1\.emb\.timestep_embedder"
TEXT_TIME = "time_text_embed.timestep_embedder"


@case
def DiTPipeline() -> Case:
    call = {"class_labels": [3], "output_type": "np"} | OFF
    return Case(tiny.dit(), call, ("class_labels",), DIT_TIME, learned=True, num_classes=tiny.NUM_CLASSES)


def pixart(name: str) -> Case:
    pipe = pipeline(name, vae=vae(), transformer=tiny.pixart(), scheduler=ddim(), **t5_text())
    call = PROMPT | OFF | SMALL | LATENT | {"use_resolution_binning": False, "max_sequence_length": LENGTH_T5}
    return Case(pipe, call | {"clean_caption": False}, time="adaln_single.emb.timestep_embedder", learned=True)


LENGTH_T5 = 6


@case
def PixArtAlphaPipeline() -> Case:
    return pixart("PixArtAlphaPipeline")


@case
def PixArtSigmaPipeline() -> Case:
    return pixart("PixArtSigmaPipeline")


@case
def HunyuanDiTPipeline() -> Case:
    torch.manual_seed(0)
    sizes = {"sample_size": 16, "num_layers": 2, "patch_size": 2, "num_attention_heads": 2, "attention_head_dim": 8}
    widths = {"cross_attention_dim": 8, "cross_attention_dim_t5": 8, "pooled_projection_dim": 8, "hidden_size": 16}
    length = {"text_len": 77, "text_len_t5": 256}
    model = tiny.build(diffusers.HunyuanDiT2DModel, in_channels=4, **sizes, **widths, **length)
    parts = {"vae": vae(), "transformer": model, "scheduler": diffusers.DDPMScheduler()}
    texts = {"tokenizer": words(), "text_encoder": bert(), "tokenizer_2": words(), "text_encoder_2": t5()}
    call = PROMPT | OFF | SMALL | LATENT | {"use_resolution_binning": False}
    drawn = ("encoder_hidden_states", "encoder_hidden_states_t5")
    time = "time_extra_emb.timestep_embedder"
    return Case(pipeline("HunyuanDiTPipeline", **parts, **texts), call, drawn, time, learned=True)


def sd3(name: str, call: dict[str, Any]) -> Case:
    sizes = {"num_layers": 2, "attention_head_dim": 4, "num_attention_heads": 2, "sample_size": 8, "in_channels": 16}
    widths = {"joint_attention_dim": 8, "caption_projection_dim": 8, "pooled_projection_dim": 8, "out_channels": 16}
    model = tiny.build(diffusers.SD3Transformer2DModel, pos_embed_max_size=8, **sizes, **widths)
    pipe = pipeline(name, transformer=model, scheduler=flow(shift=3.0), vae=vae(16, shift_factor=0.0))
    texts = embeds() | {"pooled_prompt_embeds": tiny.embeds(1)[:, 0]}
    return Case(pipe, texts | OFF | LATENT | call, POOLED, TEXT_TIME)


@case
def StableDiffusion3Pipeline() -> Case:
    return sd3("StableDiffusion3Pipeline", {"height": 8, "width": 8})


@case
def StableDiffusion3Img2ImgPipeline() -> Case:
    call = {"image": picture(8), "strength": 0.5, "num_inference_steps": 4, "height": 8, "width": 8}
    return sd3("StableDiffusion3Img2ImgPipeline", call)


@case
def StableDiffusion3InpaintPipeline() -> Case:
    return sd3("StableDiffusion3InpaintPipeline", {"image": picture(8), "mask_image": mask(8), "height": 8, "width": 8})


def flux(name: str, call: dict[str, Any], in_channels: int = 16, **parts: Any) -> Case:
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
    widths = {"joint_attention_dim": 8, "pooled_projection_dim": 8, "axes_dims_rope": (2, 4, 2)}
    model = tiny.build(
        diffusers.FluxTransformer2DModel,
        in_channels=in_channels, out_channels=16, guidance_embeds=True, **sizes, **widths,
    )  # fmt: skip
    pipe = pipeline(name, transformer=model, scheduler=flow(), vae=vae(shift_factor=0.0), **parts)
    texts = embeds() | {"pooled_prompt_embeds": tiny.embeds(1)[:, 0]}
    return Case(pipe, texts | LATENT | SMALL | call, POOLED, TEXT_TIME)


@case
def FluxPipeline() -> Case:
    return flux("FluxPipeline", {})


@case
def FluxImg2ImgPipeline() -> Case:
    return flux("FluxImg2ImgPipeline", {"image": picture(), "strength": 0.5, "num_inference_steps": 4})


@case
def FluxInpaintPipeline() -> Case:
    return flux("FluxInpaintPipeline", {"image": picture(), "mask_image": mask(), "strength": 1.0})


@case
def FluxControlPipeline() -> Case:
    return flux("FluxControlPipeline", {"control_image": picture()}, 32)


@case
def FluxFillPipeline() -> Case:
    return flux("FluxFillPipeline", {"image": picture(), "mask_image": mask()}, 36)


@case
def FluxKontextPipeline() -> Case:
    return flux("FluxKontextPipeline", {"image": picture(), "max_area": 256, "_auto_resize": False})


@case
def SanaPipeline() -> Case:
    sizes = {"height": 128, "width": 128, "use_resolution_binning": False, "max_sequence_length": 5}
    texts = embeds(length=5) | {"prompt_attention_mask": torch.ones(1, 5, dtype=torch.long), "negative_prompt": ""}
    pipe = pipeline("SanaPipeline", transformer=tiny.network("sana"), scheduler=tiny.sana().scheduler)
    return Case(pipe, texts | sizes | OFF | LATENT, time="time_embed.emb.timestep_embedder")


@case
def CogView3PlusPipeline() -> Case:
    sizes = {"patch_size": 2, "in_channels": 4, "num_layers": 1, "attention_head_dim": 4, "num_attention_heads": 2}
    widths = {"out_channels": 4, "text_embed_dim": 8, "time_embed_dim": 8, "condition_dim": 2, "sample_size": 8}
    model = tiny.build(diffusers.CogView3PlusTransformer2DModel, pos_embed_max_size=16, **sizes, **widths)
    scheduler = diffusers.CogVideoXDDIMScheduler()
    pipe = pipeline("CogView3PlusPipeline", vae=vae(), transformer=model, scheduler=scheduler, **t5_text())
    call = PROMPT | OFF | SMALL | LATENT | {"max_sequence_length": LENGTH_T5}
    return Case(pipe, call, time="time_condition_embed.timestep_embedder")


@case
def BriaPipeline() -> Case:
    sizes = {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8}
    widths = {"num_attention_heads": 2, "joint_attention_dim": 8, "axes_dims_rope": [0, 4, 4]}
    model = tiny.build(diffusers.BriaTransformer2DModel, pooled_projection_dim=None, **sizes, **widths)
    pipe = pipeline("BriaPipeline", vae=vae(shift_factor=0), transformer=model, scheduler=flow(), **t5_text())
    call = PROMPT | OFF | SMALL | LATENT | {"max_sequence_length": LENGTH_T5}
    return Case(pipe, call, time="time_embed.timestep_embedder")


@case
def AuraFlowPipeline() -> Case:
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1}
    widths = {"attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16, "joint_attention_dim": 8}
    model = tiny.build(diffusers.AuraFlowTransformer2DModel, out_channels=4, pos_embed_max_size=64, **sizes, **widths)
    pipe = pipeline("AuraFlowPipeline", vae=vae(), transformer=model, scheduler=flow())
    call = embeds() | {"prompt_attention_mask": torch.ones(1, 7)} | OFF | SMALL | LATENT
    return Case(pipe, call, time="time_step_proj")


@case
def Lumina2Pipeline() -> Case:
    sizes = {"sample_size": 4, "patch_size": 2, "in_channels": 4, "hidden_size": 8, "num_layers": 2}
    heads = {"num_attention_heads": 1, "num_kv_heads": 1, "multiple_of": 16, "axes_dim_rope": [4, 2, 2]}
    model = tiny.build(diffusers.Lumina2Transformer2DModel, cap_feat_dim=8, scaling_factor=1.0, **sizes, **heads)
    pipe = pipeline("Lumina2Pipeline", vae=vae(), transformer=model, scheduler=flow(), text_encoder=gemma(),
                    tokenizer=words())  # fmt: skip
    call = embeds() | {"prompt_attention_mask": torch.ones(1, 7, dtype=torch.long)} | OFF | SMALL | LATENT
    return Case(pipe, call, time="time_caption_embed.timestep_embedder")


@case
def ChromaPipeline() -> Case:
    sizes = {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    widths = {"num_attention_heads": 2, "joint_attention_dim": 8, "axes_dims_rope": [4, 4, 8]}
    guide = {"approximator_hidden_dim": 8, "approximator_layers": 1, "approximator_num_channels": 16}
    model = tiny.build(diffusers.ChromaTransformer2DModel, **sizes, **widths, **guide)
    pipe = pipeline("ChromaPipeline", vae=vae(shift_factor=0.0), transformer=model, scheduler=flow(), **t5_text())
    call = PROMPT | OFF | SMALL | LATENT | {"max_sequence_length": LENGTH_T5}
    return Case(pipe, call, time="time_text_embed.time_proj")


@case
def QwenImagePipeline() -> Case:
    sizes = {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 1, "attention_head_dim": 16}
    widths = {"num_attention_heads": 2, "joint_attention_dim": 8, "axes_dims_rope": (8, 4, 4)}
    model = tiny.build(diffusers.QwenImageTransformer2DModel, guidance_embeds=False, **sizes, **widths)
    pipe = pipeline("QwenImagePipeline", vae=qwen_vae(), transformer=model, scheduler=flow())
    call = embeds() | {"prompt_embeds_mask": torch.ones(1, 7, dtype=torch.long), "true_cfg_scale": 1.0}
    return Case(pipe, call | LATENT | {"height": 32, "width": 32}, time=TEXT_TIME)


@case
def Krea2Pipeline() -> Case:
    sizes = {"in_channels": 16, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4}
    texts = {"text_hidden_dim": 16, "num_text_layers": 3, "text_num_attention_heads": 2, "text_num_key_value_heads": 1}
    more = {"text_intermediate_size": 16, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1}
    widths = {"num_key_value_heads": 2, "intermediate_size": 32, "timestep_embed_dim": 8, "axes_dims_rope": (4, 2, 2)}
    model = tiny.build(diffusers.Krea2Transformer2DModel, **sizes, **texts, **more, **widths)
    pipe = pipeline("Krea2Pipeline", vae=qwen_vae(), transformer=model, scheduler=flow())
    texts_given = {
        "prompt_embeds": torch.randn(1, 7, 3, 16, generator=torch.Generator().manual_seed(5)),
        "prompt_embeds_mask": torch.ones(1, 7, dtype=torch.bool),
    }
    call = texts_given | {"guidance_scale": 0.0} | {"height": 32, "width": 32} | LATENT
    return Case(pipe, call, time="time_embed")


@case
def PRXPipeline() -> Case:
    sizes = {"patch_size": 1, "in_channels": 4, "context_in_dim": 8, "hidden_size": 8, "mlp_ratio": 2.0}
    model = tiny.build(diffusers.PRXTransformer2DModel, num_heads=2, depth=1, axes_dim=[2, 2], **sizes)
    pipe = pipeline("PRXPipeline", vae=vae(), transformer=model, scheduler=flow())
    call = embeds() | {"prompt_attention_mask": torch.ones(1, 7, dtype=torch.bool), "prompt": None}
    return Case(pipe, call | OFF | SMALL | LATENT | {"use_resolution_binning": False}, time="time_in")


@case
def Flux2Pipeline() -> Case:
    sizes = {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    widths = {"num_attention_heads": 2, "joint_attention_dim": 8, "axes_dims_rope": [4, 4, 4, 4]}
    model = tiny.build(diffusers.Flux2Transformer2DModel, timestep_guidance_channels=16, **sizes, **widths)
    autoencoder = tiny.build(
        diffusers.AutoencoderKLFlux2, block_out_channels=(4,), norm_num_groups=1, latent_channels=4,
        layers_per_block=1, down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
    )  # fmt: skip
    pipe = pipeline("Flux2Pipeline", vae=autoencoder, transformer=model, scheduler=flow())
    return Case(pipe, embeds() | SMALL | LATENT, time="time_guidance_embed.timestep_embedder")


@case
def ZImagePipeline() -> Case:
    sizes = {"in_channels": 16, "dim": 32, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
    axes = {"axes_dims": [8, 4, 4], "axes_lens": [256, 32, 32], "cap_feat_dim": 8, "rope_theta": 256.0}
    patches = {"all_patch_size": (2,), "all_f_patch_size": (1,), "t_scale": 1000.0}
    model = tiny.build(diffusers.ZImageTransformer2DModel, **sizes, **axes, **patches)
    pipe = pipeline("ZImagePipeline", vae=vae(16), transformer=model, scheduler=flow())
    call = {"prompt_embeds": [tiny.embeds(1)[0]], "guidance_scale": 0.0, "prompt": None} | SMALL | LATENT
    return Case(pipe, call, ("cap_feats",), "t_embedder")
