"""Pipelines of diffusers' own classes at toy size, with random weights of a fixed seed."""

from __future__ import annotations

import string
from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import schedulers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from toolkit.icg import guided

diffusers.utils.logging.set_verbosity_error()

NUM_CLASSES = 12


def build(cls: Any, **config: Any) -> Any:
    torch.manual_seed(1)
    model = cls(**config).eval()
    for name, parameter in model.named_parameters():  # zero-initialised outputs would hide every difference
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.2)
        elif "to_out" not in name and parameter.dim() == 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model


def vae() -> Any:
    blocks = {"down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}
    return build(diffusers.AutoencoderKL, block_out_channels=[4], norm_num_groups=2, latent_channels=4, **blocks)


def unet2d(**config: Any) -> Any:
    blocks = {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
    sizes = {
        "sample_size": 8,
        "block_out_channels": [8, 8],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    return build(diffusers.UNet2DModel, **(blocks | sizes | config))


def unet_condition(**config: Any) -> Any:
    blocks = {
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
    sizes = {
        "sample_size": 8,
        "block_out_channels": [8, 8],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    return build(diffusers.UNet2DConditionModel, **(blocks | sizes | {"cross_attention_dim": 8} | config))


def clip(cls: Any, width: int) -> tuple[Any, Any]:
    letters = [one + end for one in string.ascii_lowercase for end in ("", "</w>")]
    vocabulary = {token: index for index, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=7)
    sizes = {"hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "projection_dim": width}
    config = CLIPTextConfig(vocab_size=len(vocabulary), max_position_embeddings=7, **sizes, **special)
    torch.manual_seed(2)
    return tokenizer, cls(config).eval()


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def dit() -> Any:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 3, "sample_size": 4, "norm_num_groups": 4}
    model = build(
        diffusers.DiTTransformer2DModel, in_channels=4, out_channels=8, num_embeds_ada_norm=NUM_CLASSES, **sizes
    )
    return quiet(diffusers.DiTPipeline(model, vae(), schedulers.DDIMScheduler(clip_sample=False)))


@cache
def ddpm() -> Any:
    return quiet(diffusers.DDPMPipeline(unet2d(), schedulers.DDPMScheduler()))


@cache
def ddim() -> Any:
    return quiet(diffusers.DDIMPipeline(unet2d(), schedulers.DDIMScheduler()))


@cache
def ldm() -> Any:
    vqvae = build(diffusers.VQModel, block_out_channels=[4], norm_num_groups=2, latent_channels=3)
    return quiet(diffusers.LDMPipeline(vqvae, unet2d(), schedulers.DDIMScheduler(clip_sample=False)))


@cache
def stable_diffusion() -> Any:
    tokenizer, encoder = clip(CLIPTextModel, 8)
    scheduler = schedulers.DDIMScheduler(clip_sample=False, steps_offset=1)
    pipe = diffusers.StableDiffusionPipeline(
        vae(), encoder, tokenizer, unet_condition(), scheduler, None, None, requires_safety_checker=False
    )
    return quiet(pipe)


def sdxl_parts() -> dict[str, Any]:
    tokenizer, encoder = clip(CLIPTextModel, 8)
    tokenizer_2, encoder_2 = clip(CLIPTextModelWithProjection, 8)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    unet = unet_condition(cross_attention_dim=16, projection_class_embeddings_input_dim=8 + 6 * 4, **added)
    parts = {"vae": vae(), "text_encoder": encoder, "text_encoder_2": encoder_2, "tokenizer": tokenizer, "unet": unet}
    return parts | {"tokenizer_2": tokenizer_2, "scheduler": schedulers.EulerDiscreteScheduler()}


@cache
def sdxl() -> Any:
    return quiet(diffusers.StableDiffusionXLPipeline(**sdxl_parts(), add_watermarker=False))


@cache
def sd3() -> Any:
    sizes = {
        "num_layers": 2,
        "attention_head_dim": 4,
        "num_attention_heads": 2,
        "sample_size": 8,
        "pos_embed_max_size": 8,
    }
    widths = {"joint_attention_dim": 8, "caption_projection_dim": 8, "pooled_projection_dim": 8}
    model = build(diffusers.SD3Transformer2DModel, in_channels=4, out_channels=4, **sizes, **widths)
    none = dict.fromkeys([f"{kind}{end}" for kind in ("text_encoder", "tokenizer") for end in ("", "_2", "_3")])
    scheduler = schedulers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return quiet(diffusers.StableDiffusion3Pipeline(model, scheduler, vae=vae(), **none))


@cache
def flux() -> Any:
    sizes = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
    }
    widths = {
        "joint_attention_dim": 8,
        "pooled_projection_dim": 8,
        "axes_dims_rope": (2, 4, 2),
        "guidance_embeds": True,
    }
    model = build(diffusers.FluxTransformer2DModel, **sizes, **widths)
    none = dict.fromkeys(["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"])
    scheduler = schedulers.FlowMatchEulerDiscreteScheduler()
    return quiet(diffusers.FluxPipeline(scheduler, vae=vae(), transformer=model, **none))


@cache
def sana() -> Any:
    sizes = {"in_channels": 4, "out_channels": 4, "num_layers": 1, "sample_size": 4, "num_attention_heads": 2}
    cross = {
        "attention_head_dim": 4,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 4,
        "cross_attention_dim": 8,
    }
    model = build(diffusers.SanaTransformer2DModel, caption_channels=8, timestep_scale=0.001, **sizes, **cross)
    scheduler = schedulers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    return quiet(diffusers.SanaPipeline(None, None, None, model, scheduler))


def pixart() -> Any:
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "num_layers": 1,
        "sample_size": 4,
        "cross_attention_dim": 8,
    }
    return build(
        diffusers.PixArtTransformer2DModel,
        in_channels=4,
        out_channels=8,
        caption_channels=8,
        norm_num_groups=4,
        **sizes,
    )


def embeds(batch: int, length: int = 5, width: int = 8, seed: int = 5) -> torch.Tensor:
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed))


def arguments(kind: str, batch: int = 2) -> dict[str, Any]:
    """Arguments of each pipeline's call, its own guidance off, the noise fixed, latents or arrays out."""
    noise = torch.Generator().manual_seed(7)
    text = {"prompt_embeds": embeds(batch), "height": 8, "width": 8, "guidance_scale": 1.0, "output_type": "latent"}
    pooled = {"pooled_prompt_embeds": embeds(batch, seed=6)[:, 0]}
    each: dict[str, dict[str, Any]] = {
        "dit": {"class_labels": [3, 7, 1, 0][:batch], "guidance_scale": 1.0, "output_type": "np"},
        "ddpm": {"batch_size": batch, "output_type": "np"},
        "ddim": {"batch_size": batch, "output_type": "np"},
        "ldm": {"batch_size": batch, "output_type": "np"},
        "stable_diffusion": text,
        "sdxl": text | {"prompt_embeds": embeds(batch, width=16)} | pooled,
        "sd3": text | pooled,
        "flux": text | pooled | {"true_cfg_scale": 1.0, "max_sequence_length": 5},
        "sana": text
        | {"height": 128, "width": 128, "use_resolution_binning": False, "max_sequence_length": 5}
        | {"prompt_attention_mask": torch.ones(batch, 5, dtype=torch.long), "negative_prompt": ""},
    }
    return each[kind] | {"generator": noise, "num_inference_steps": 4}


def sample(kind: str, batch: int = 2, pipe: Any = None, **changes: Any) -> torch.Tensor:
    pipe = pipe or globals()[kind]()
    return torch.as_tensor(pipe(**(arguments(kind, batch) | changes)).images)


FAMILIES = ("dit", "ddpm", "ddim", "ldm", "stable_diffusion", "sdxl", "sd3", "flux", "sana")
CONDITIONAL = tuple(kind for kind in FAMILIES if kind not in ("ddpm", "ddim", "ldm"))


def network(kind: str) -> Any:
    pipe = globals()[kind]()
    return getattr(pipe, "transformer", None) or pipe.unet


class Calls:
    """Counts a network's forwards within a ``with`` block."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.count = module, 0

    def __enter__(self) -> Calls:
        self.handle = self.module.register_forward_hook(self.add)
        return self

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()

    def add(self, module: nn.Module, args: Any, output: Any) -> None:
        self.count += 1


def run(kind: str, guider: Any, batch: int = 2, **options: Any) -> tuple[torch.Tensor, int]:
    """(images, network calls), with a fixed noise, inside ``guided``."""
    with guided(globals()[kind](), guider, **options), Calls(network(kind)) as calls:
        images = sample(kind, batch)
    return images, calls.count
