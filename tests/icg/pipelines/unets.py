"""Tiny pipelines that make pictures with a UNet."""

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
    case,
    clip_text,
    clip_text_2,
    ddim,
    mask,
    picture,
    pipeline,
    t5,
    t5_text,
    vae,
    vision,
    words,
)

LATENT = {"output_type": "latent"}
POOLED = ("encoder_hidden_states", "pooled_projections")
DIT_TIME = r"transformer_blocks\.\d\.norm1\.emb\.timestep_embedder"
TEXT_TIME = "time_text_embed.timestep_embedder"


def sd(name: str, in_channels: int = 4, call: dict[str, Any] | None = None, **parts: Any) -> Case:
    unet = parts.pop("unet", None) or tiny.unet_condition(in_channels=in_channels)
    scheduler = parts.pop("scheduler", None) or ddim(steps_offset=1)
    pipe = pipeline(name, vae=vae(), unet=unet, scheduler=scheduler, **clip_text(), **parts)
    return Case(pipe, PROMPT | OFF | LATENT | (call or {}))


@case
def StableDiffusionPipeline() -> Case:
    return sd("StableDiffusionPipeline", call=SMALL)


@case
def StableDiffusionImg2ImgPipeline() -> Case:
    return sd("StableDiffusionImg2ImgPipeline", call={"image": picture(), "strength": 0.5, "num_inference_steps": 4})


@case
def StableDiffusionInpaintPipeline() -> Case:
    return sd("StableDiffusionInpaintPipeline", 9, SMALL | {"image": picture(), "mask_image": mask()})


@case
def StableDiffusionInstructPix2PixPipeline() -> Case:
    return sd("StableDiffusionInstructPix2PixPipeline", 8, {"image": picture(), "image_guidance_scale": 1.0})


@case
def StableDiffusionUpscalePipeline() -> Case:
    unet = tiny.unet_condition(in_channels=7, num_class_embeds=30)
    low = diffusers.DDPMScheduler()
    call = {"image": picture(8), "noise_level": 20}  # the network's class_labels
    return sd("StableDiffusionUpscalePipeline", unet=unet, low_res_scheduler=low, max_noise_level=29, call=call)


@case
def StableDiffusionPanoramaPipeline() -> Case:
    return sd("StableDiffusionPanoramaPipeline", call=SMALL)


@case
def StableDiffusionControlNetPipeline() -> Case:
    return sd("StableDiffusionControlNetPipeline", controlnet=control(), call={"image": picture()})


def control(**config: Any) -> Any:
    sizes = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
    blocks = {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "cross_attention_dim": 8}
    embedding = {"conditioning_embedding_out_channels": (4,)}
    return tiny.build(diffusers.ControlNetModel, **sizes | blocks | embedding | config)


@case
def StableDiffusionControlNetImg2ImgPipeline() -> Case:
    call = {"image": picture(), "control_image": picture(), "strength": 0.5, "num_inference_steps": 4}
    return sd("StableDiffusionControlNetImg2ImgPipeline", controlnet=control(), call=call)


@case
def StableDiffusionAdapterPipeline() -> Case:
    torch.manual_seed(0)
    adapter = diffusers.T2IAdapter(in_channels=3, channels=[8, 8], num_res_blocks=1, downscale_factor=1)
    return sd("StableDiffusionAdapterPipeline", adapter=adapter.eval(), call={"image": torch.ones(1, 3, 16, 16)})


@case
def StableDiffusionImageVariationPipeline() -> Case:
    unet, call = tiny.unet_condition(), SMALL | OFF | LATENT | {"image": torch.rand(1, 3, 32, 32)}
    parts = {"image_encoder": vision(), "vae": vae(), "unet": unet, "scheduler": ddim(steps_offset=1)}
    return Case(pipeline("StableDiffusionImageVariationPipeline", **parts), call)


@case
def LatentConsistencyModelPipeline() -> Case:
    unet = tiny.unet_condition(time_cond_proj_dim=8)
    scheduler = diffusers.LCMScheduler(clip_sample=False)
    return sd("LatentConsistencyModelPipeline", unet=unet, scheduler=scheduler, call=SMALL | {"guidance_scale": 3.0})


def sdxl(name: str, in_channels: int = 4, call: dict[str, Any] | None = None, **parts: Any) -> Case:
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    unet = tiny.unet_condition(
        in_channels=in_channels, cross_attention_dim=16, projection_class_embeddings_input_dim=8 + 6 * 4, **added
    )
    scheduler = diffusers.EulerDiscreteScheduler()
    pipe = pipeline(name, vae=vae(), unet=unet, scheduler=scheduler, **clip_text(), **clip_text_2(), **parts)
    return Case(pipe, PROMPT | OFF | LATENT | (call or SMALL), ("encoder_hidden_states", "text_embeds"))


@case
def StableDiffusionXLPipeline() -> Case:
    return sdxl("StableDiffusionXLPipeline", add_watermarker=False)


@case
def StableDiffusionXLImg2ImgPipeline() -> Case:
    call = {"image": picture(), "strength": 0.5, "num_inference_steps": 4}
    return sdxl("StableDiffusionXLImg2ImgPipeline", call=call, add_watermarker=False)


@case
def StableDiffusionXLInpaintPipeline() -> Case:
    call = SMALL | {"image": picture(), "mask_image": mask(), "strength": 1.0}
    return sdxl("StableDiffusionXLInpaintPipeline", call=call, add_watermarker=False)


@case
def StableDiffusionXLInstructPix2PixPipeline() -> Case:
    call = SMALL | {"image": picture(), "image_guidance_scale": 1.0}
    return sdxl("StableDiffusionXLInstructPix2PixPipeline", 8, call, add_watermarker=False)


@case
def StableDiffusionXLControlNetPipeline() -> Case:
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    net = control(cross_attention_dim=16, projection_class_embeddings_input_dim=8 + 6 * 4, **added)
    return sdxl("StableDiffusionXLControlNetPipeline", controlnet=net, call={"image": picture()}, add_watermarker=False)


@case
def StableDiffusionXLAdapterPipeline() -> Case:
    torch.manual_seed(0)
    adapter = diffusers.T2IAdapter(in_channels=3, channels=[8, 8], num_res_blocks=1, downscale_factor=1)
    call = SMALL | {"image": torch.ones(1, 3, 16, 16)}
    return sdxl("StableDiffusionXLAdapterPipeline", adapter=adapter.eval(), call=call)


def deepfloyd(in_channels: int, **config: Any) -> Any:
    blocks = {
        "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
        "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    }
    sizes = {"addition_embed_type": "text", "addition_embed_type_num_heads": 2, "encoder_hid_dim": 8}
    norms = {"cross_attention_norm": "group_norm", "resnet_time_scale_shift": "scale_shift", "act_fn": "gelu"}
    channels = {"in_channels": in_channels, "out_channels": 6, "cross_attention_dim": 32}
    unet = tiny.unet_condition(**blocks | sizes | norms | channels | {"block_out_channels": [32, 32]} | config)
    unet.set_attn_processor(diffusers.models.attention_processor.AttnAddedKVProcessor())
    return unet


@case
def IFPipeline() -> Case:
    pipe = pipeline("IFPipeline", unet=deepfloyd(3), scheduler=ddpm_learned(), **t5_text())
    return Case(pipe, PROMPT | OFF | SMALL | {"output_type": "pt"}, learned=True)


def ddpm_learned() -> Any:
    return diffusers.DDPMScheduler(variance_type="learned_range")


@case
def IFSuperResolutionPipeline() -> Case:
    unet = deepfloyd(6, class_embed_type="timestep", time_embedding_dim=32)
    parts = {"unet": unet, "scheduler": ddpm_learned(), "image_noising_scheduler": diffusers.DDPMScheduler()}
    call = {"image": torch.rand(1, 3, 16, 16), "noise_level": 100, "output_type": "pt"}
    return Case(pipeline("IFSuperResolutionPipeline", **parts, **t5_text()), PROMPT | OFF | SMALL | call, learned=True)


@case
def KandinskyV22Pipeline() -> Case:
    unet = tiny.unet_condition(
        cross_attention_dim=8, encoder_hid_dim=8, encoder_hid_dim_type="image_proj", addition_embed_type="image",
        out_channels=8,
    )  # fmt: skip
    movq = tiny.build(diffusers.VQModel, block_out_channels=[4], norm_num_groups=2, latent_channels=4)
    pipe = pipeline("KandinskyV22Pipeline", unet=unet, movq=movq, scheduler=ddpm_learned())
    pictures = {"image_embeds": tiny.embeds(1)[:, 0], "negative_image_embeds": tiny.embeds(1)[:, 0]}
    return Case(pipe, pictures | OFF | SMALL | LATENT, ("encoder_hidden_states",), learned=True)


@case
def Kandinsky3Pipeline() -> Case:
    unet = tiny.build(
        diffusers.Kandinsky3UNet, time_embedding_dim=4, groups=2, attention_head_dim=4, layers_per_block=3,
        block_out_channels=(32, 64), cross_attention_dim=8, encoder_hid_dim=8,
    )  # fmt: skip
    movq = tiny.build(diffusers.VQModel, block_out_channels=[4], norm_num_groups=2, latent_channels=4)
    pipe = pipeline("Kandinsky3Pipeline", unet=unet, movq=movq, scheduler=diffusers.DDPMScheduler(), **t5_text())
    return Case(pipe, PROMPT | OFF | SMALL | LATENT)


# -- neither -----------------------------------------------------------------------------------------------------------


def unconditional(pipe: Any, **call: Any) -> Case:
    return Case(pipe, {"batch_size": 2, "output_type": "np"} | call, ())


@case
def DDPMPipeline() -> Case:
    return unconditional(tiny.ddpm())


@case
def DDIMPipeline() -> Case:
    return unconditional(tiny.ddim())


@case
def LDMPipeline() -> Case:
    return unconditional(tiny.ldm())


@case
def LDMTextToImagePipeline() -> Case:
    pipe = pipeline(
        "LDMTextToImagePipeline", vqvae=vae(), bert=t5(), tokenizer=words(), unet=tiny.unet_condition(),
        scheduler=ddim(),
    )  # fmt: skip
    return Case(pipe, PROMPT | OFF | SMALL | {"output_type": "np"})


@case
def LDMSuperResolutionPipeline() -> Case:
    vqvae = tiny.build(diffusers.VQModel, block_out_channels=[4], norm_num_groups=2, latent_channels=3)
    unet = tiny.unet2d(in_channels=6, out_channels=3)
    pipe = pipeline("LDMSuperResolutionPipeline", vqvae=vqvae, unet=unet, scheduler=ddim())
    return Case(pipe, {"image": torch.rand(1, 3, 16, 16), "output_type": "np"}, ())
