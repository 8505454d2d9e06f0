"""Parts that tiny pipelines share, with random weights of fixed seeds, and the list of the pipelines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import schedulers
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
)

from tests.icg import tiny

WIDTH, LENGTH = 8, 7
PROMPT = {"prompt": "ab cd"}
OFF = {"guidance_scale": 1.0}
SMALL = {"height": 16, "width": 16}


@dataclass
class Case:
    """A pipeline, its call, and what of its network's arguments is to be exchanged.

    drawn: names of the arguments that carry the condition. time: the module that embeds the time. learned: whether half
    of the output's channels are a variance. num_classes: of ``class_labels``.
    """

    pipe: Any
    call: dict[str, Any]
    drawn: tuple[str, ...] = ("encoder_hidden_states",)
    time: str = "time_embedding"
    learned: bool = False
    num_classes: int = 0
    network: Any = field(init=False)

    def __post_init__(self) -> None:
        self.pipe.set_progress_bar_config(disable=True)
        self.network = getattr(self.pipe, "transformer", None) or self.pipe.unet

    def run(self) -> torch.Tensor:
        """What one call of the pipeline makes."""
        torch.manual_seed(11)
        generator = torch.Generator().manual_seed(3)
        made = self.pipe(**{"generator": generator, "num_inference_steps": 2, "return_dict": False} | self.call)[0]
        return made if isinstance(made, torch.Tensor) else torch.as_tensor(made[0] if isinstance(made, list) else made)


CASES: dict[str, Callable[[], Case]] = {}


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    """The builder is called as the class is."""
    CASES[build.__name__] = build
    return build


def pipeline(name: str, **parts: Any) -> Any:
    """A pipeline whose other optional parts are None."""
    import inspect

    cls = getattr(diffusers, name)
    for one, parameter in inspect.signature(cls.__init__).parameters.items():
        if one != "self" and one not in parts and parameter.default is parameter.empty:
            parts[one] = None
    if "requires_safety_checker" in inspect.signature(cls.__init__).parameters:
        parts["requires_safety_checker"] = False
    return cls(**parts)


@cache
def clip_text(width: int = WIDTH) -> dict[str, Any]:
    tokenizer, encoder = tiny.clip(CLIPTextModel, width)
    return {"tokenizer": tokenizer, "text_encoder": encoder}


@cache
def clip_text_2(width: int = WIDTH) -> dict[str, Any]:
    tokenizer, encoder = tiny.clip(CLIPTextModelWithProjection, width)
    return {"tokenizer_2": tokenizer, "text_encoder_2": encoder}


def words() -> CLIPTokenizer:
    """A tokenizer of sixty words, for encoders of any kind."""
    return clip_text()["tokenizer"]


@cache
def t5(width: int = WIDTH) -> Any:
    torch.manual_seed(4)
    return T5EncoderModel(T5Config(vocab_size=60, d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).eval()


def t5_text(width: int = WIDTH) -> dict[str, Any]:
    return {"tokenizer": words(), "text_encoder": t5(width)}


@cache
def gemma() -> Any:
    torch.manual_seed(4)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 4}
    return Gemma2Model(Gemma2Config(vocab_size=60, num_key_value_heads=2, pad_token_id=1, **sizes)).eval()


@cache
def bert() -> Any:
    torch.manual_seed(4)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertModel(BertConfig(vocab_size=60, max_position_embeddings=80, **sizes)).eval()


@cache
def vision(width: int = WIDTH, image_size: int = 32) -> Any:
    torch.manual_seed(4)
    sizes = {"hidden_size": width, "projection_dim": width, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPVisionConfig(image_size=image_size, patch_size=16, intermediate_size=8, **sizes)
    return CLIPVisionModelWithProjection(config).eval()


def vae(channels: int = 4, **config: Any) -> Any:
    blocks = {"down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}
    return tiny.build(
        diffusers.AutoencoderKL,
        **blocks | {"block_out_channels": [4], "norm_num_groups": 2, "latent_channels": channels} | config,
    )


def wan_vae() -> Any:
    sizes = {"base_dim": 3, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    return tiny.build(diffusers.AutoencoderKLWan, temperal_downsample=[False, True, True], **sizes)


def qwen_vae() -> Any:
    sizes = {"base_dim": 24, "z_dim": 4, "dim_mult": [1, 2, 4], "num_res_blocks": 1, "latents_mean": [0.0] * 4}
    return tiny.build(
        diffusers.AutoencoderKLQwenImage, temperal_downsample=[False, True], latents_std=[1.0] * 4, **sizes
    )


def ddim(**config: Any) -> Any:
    return schedulers.DDIMScheduler(clip_sample=False, **config)


def flow(**config: Any) -> Any:
    return schedulers.FlowMatchEulerDiscreteScheduler(**config)


def picture(size_px: int = 16) -> Image.Image:
    return Image.new("RGB", (size_px, size_px), (200, 90, 30))


def mask(size_px: int = 16) -> Image.Image:
    made = Image.new("L", (size_px, size_px))
    made.paste(255, (0, 0, size_px // 2, size_px))
    return made


def embeds(name: str = "prompt_embeds", width: int = WIDTH, length: int = LENGTH) -> dict[str, Any]:
    return {name: tiny.embeds(1, length=length, width=width)}
