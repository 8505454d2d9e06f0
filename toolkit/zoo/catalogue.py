"""The zoo's catalogue: classes, named networks at the papers' sizes, layouts of official weights.

Nothing heavy is imported until a network is built, so that the command line can read the catalogue quickly. A new paper
adds its classes to CLASSES, its networks to NAMED and its official weights to LAYOUTS.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]

# class name, as in the "_class_name" of a config.json -> module
CLASSES = {
    "ADMUNet": "toolkit.zoo.edm.unet",
    "SongUNet": "toolkit.zoo.edm.unet",
    "UViT": "toolkit.zoo.edm.uvit",
    "EDM2UNet": "toolkit.zoo.edm.edm2",
    "MLPDenoiser": "toolkit.zoo.edm.mlp",
    "ToyScoreDenoiser": "toolkit.zoo.edm.mlp",
    "MLPEncoder": "toolkit.zoo.disco.encoders",
    "ViTEncoder": "toolkit.zoo.disco.encoders",
    "AutoregressivePrior": "toolkit.zoo.disco.prior",
    "MarginalPrior": "toolkit.zoo.disco.prior",
    "UniformPrior": "toolkit.zoo.disco.prior",
    "LatentDiffusionPrior": "toolkit.zoo.disco.prior",
    "CompressiveVQModel": "toolkit.zoo.world.tokenizer",
    "WorldModel": "toolkit.zoo.world.model",
    "VideoUNet": "toolkit.zoo.video.unet",
    "VideoControlNetModel": "toolkit.zoo.video.controlnet",
    "ControlledVideoUNet": "toolkit.zoo.video.controlled_unet",
    "FrameUpscaler": "toolkit.zoo.video.upscaler",
}


@dataclass(frozen=True)
class Entry:
    """A network by name: ``target`` is "module:callable", ``config`` its arguments.

    inputs: argument name -> (dtype, shape) of one forward at batch 1, for counting FLOPs; or the "module:callable" that
    gives the arguments, where they are not tensors alone.
    """

    target: str
    config: Mapping[str, Any]
    inputs: Shapes | str
    paper: str
    note: str

    def build(self) -> nn.Module:
        """The network with random weights, on torch's default device (``with torch.device("meta")`` costs nothing)."""
        return resolve(self.target)(**self.config)


@dataclass(frozen=True)
class Layout:
    """Official weights that can be imported: ``target`` is "module:function", called as (source, dest) -> notice."""

    target: str
    source: str
    licence: str


def _image_inputs(size: int, channels: int = 3, num_classes: int = 0) -> Shapes:
    inputs: dict[str, tuple[str, tuple[int, ...]]] = {"x": ("float32", (1, channels, size, size))}
    inputs["sigma"] = ("float32", (1,))
    return inputs | ({"class_labels": ("float32", (1, num_classes))} if num_classes else {})


def _latent_clip_inputs(frames: int, height: int, width: int, key_frames: int = 0) -> Shapes:
    """A clip of latents as the released VEnhancer takes it; with key frames, what its control network reads too."""
    inputs: dict[str, tuple[str, tuple[int, ...]]] = {"y": ("float32", (1, 77, 1024))}
    if not key_frames:
        clip = ("float32", (1, 4, frames, height, width))
        return {"sample": clip, "timestep": ("int64", (1,)), "encoder_hidden_states": inputs["y"]}
    inputs |= {"x": ("float32", (1, 4, frames, height, width)), "t": ("int64", (1,))}
    inputs |= {"hint": ("float32", (1, 4, key_frames, height, width)), "t_hint": ("int64", (1,))}
    return inputs | {"up_scale": ("float32", (1,)), "mask_cond": ("int64", (1, frames))}


_KARRAS = "Karras et al. 2022 (EDM)"
_VENHANCER = "He et al. 2024 (VEnhancer)"
_DISCO = "Xu et al. 2024 (DisCo-Diff)"
_NCSNPP = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": (1, 3, 3, 1),
}
_LATENTS = {"num_latents": 10, "codebook_size": 100, "latent_width": 192, "latent_layers": 6}
_ADM = "toolkit.zoo.edm.unet:ADMUNet"
_SONG = "toolkit.zoo.edm.unet:SongUNet"
_VIT = "toolkit.zoo.disco.encoders:ViTEncoder"
_IVIDEOGPT = "Wu et al. 2024 (iVideoGPT)"
_VQ = "toolkit.zoo.world.tokenizer:CompressiveVQModel"
_VIDEO = "toolkit.zoo.world.transformer:build_video_transformer"
_VQ_256 = {
    "down_block_types": ("DownEncoderBlock2D",) * 5,
    "up_block_types": ("UpDecoderBlock2D",) * 5,
    "block_out_channels": (128, 256, 256, 512, 768),
    "resolution": 256,
    "max_att_resolution": 32,
}
_MEDIUM = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}


def _clip_inputs(size: int, num_context: int = 2) -> Shapes:
    return {
        "context": ("float32", (1, num_context, 3, size, size)),
        "future": ("float32", (1, 16 - num_context, 3, size, size)),
    }


NAMED: dict[str, Entry] = {
    "edm_adm_imagenet64": Entry(
        _ADM, {"num_classes": 1000}, _image_inputs(64, num_classes=1000), _KARRAS, "ImageNet-64, class-conditional"
    ),
    "edm_ddpmpp_cifar10": Entry(_SONG, {"dropout": 0.13}, _image_inputs(32), _KARRAS, "CIFAR-10, DDPM++"),
    "edm_ncsnpp_cifar10": Entry(_SONG, {"dropout": 0.13, **_NCSNPP}, _image_inputs(32), _KARRAS, "CIFAR-10, NCSN++"),
    "edm2_xs_imagenet512": Entry(
        "toolkit.zoo.edm.edm2:EDM2UNet",
        {"model_channels": 128},
        _image_inputs(64, 4, num_classes=1000),
        "Karras et al. 2024 (EDM2)",
        "latents of ImageNet-512, XS",
    ),
    "disco_imagenet64": Entry(
        _ADM,
        {"num_classes": 1000, **_LATENTS},
        _image_inputs(64, num_classes=1000),
        _DISCO,
        "ADM with cross-attention to 10 latents of 100 codes",
    ),
    "disco_imagenet64_grouped": Entry(
        _ADM,
        {"num_classes": 1000, **_LATENTS, "num_latents": 30, "latent_groups": 3},
        _image_inputs(64, num_classes=1000),
        _DISCO,
        "three groups of 10 latents, one per resolution of the up path",
    ),
    "disco_imagenet128": Entry(
        "toolkit.zoo.edm.uvit:UViT",
        {"num_classes": 1000, **_LATENTS},
        _image_inputs(128, num_classes=1000),
        _DISCO,
        "U-ViT with cross-attention to 10 latents of 100 codes",
    ),
    "disco_encoder_imagenet64": Entry(
        _VIT, {"image_size": 64, "patch_size": 8}, {"y": ("float32", (1, 3, 64, 64))}, _DISCO, "ViT-B encoder of z"
    ),
    "disco_encoder_imagenet128": Entry(
        _VIT, {"image_size": 128, "patch_size": 16}, {"y": ("float32", (1, 3, 128, 128))}, _DISCO, "ViT-B encoder of z"
    ),
    "disco_prior_imagenet": Entry(
        "toolkit.zoo.disco.prior:AutoregressivePrior",
        {"num_classes": 1000},
        {"codes": ("int64", (1, 10)), "class_labels": ("int64", (1,))},
        _DISCO,
        "autoregressive prior of z given the class",
    ),
    "ivideogpt_tokenizer_64": Entry(
        _VQ, {}, _clip_inputs(64), _IVIDEOGPT, "64x64, 2 context frames; flops of 16 frames"
    ),
    "ivideogpt_tokenizer_64_context1": Entry(
        _VQ, {"context_length": 1}, _clip_inputs(64, 1), _IVIDEOGPT, "64x64, 1 context frame; flops of 16 frames"
    ),
    "ivideogpt_tokenizer_256": Entry(
        _VQ, _VQ_256, _clip_inputs(256), _IVIDEOGPT, "256x256, 2 context frames; flops of 16 frames"
    ),
    "ivideogpt_transformer_small": Entry(
        _VIDEO, {}, f"{_VIDEO}_inputs", _IVIDEOGPT, "12 layers; flops of 16 frames, 751 tokens"
    ),
    "ivideogpt_transformer_medium": Entry(
        _VIDEO, _MEDIUM, f"{_VIDEO}_inputs", _IVIDEOGPT, "24 layers; flops of 16 frames, 751 tokens"
    ),
    "venhancer": Entry(
        "toolkit.zoo.video.controlled_unet:ControlledVideoUNet",
        {"unet_config": {"asymmetric": True}, "controlnet_config": {"asymmetric": True}},
        _latent_clip_inputs(5, 90, 160, key_frames=3),
        _VENHANCER,
        "base and control network; FLOPs of 5 frames of 720x1280",
    ),
    "venhancer_base": Entry(
        "toolkit.zoo.video.unet:VideoUNet",
        {"asymmetric": True},
        _latent_clip_inputs(5, 90, 160),
        _VENHANCER,
        "the frozen base (MS-Vid2Vid-XL) alone",
    ),
    "upscaler_x4": Entry(
        "toolkit.zoo.video.upscaler:FrameUpscaler",
        {},
        {"x": ("float32", (1, 3, 180, 320))},
        "ours, in the form of Lim et al. 2017 (EDSR)",
        "enlarges single frames by 4; FLOPs of 180x320",
    ),
}

LAYOUTS: dict[str, Layout] = {
    "edm": Layout(
        "toolkit.zoo.edm.import_edm:import_edm",
        "folder with config.json and model.safetensors of NVlabs/edm (ADM, DDPM++, NCSN++)",
        "CC BY-NC-SA 4.0, non-commercial",
    ),
    "edm2": Layout(
        "toolkit.zoo.edm.import_edm2:import_edm2",
        "folder with config.json and model.safetensors of NVlabs/edm2",
        "CC BY-NC-SA 4.0, non-commercial",
    ),
    "ivideogpt": Layout(
        "toolkit.zoo.world.release:import_ivideogpt",
        "folder with tokenizer/ and transformer/ of thuml/iVideoGPT",
        "MIT",
    ),
    "venhancer": Layout(
        "toolkit.zoo.video.import_venhancer:import_venhancer",
        "folder with config.json and model.safetensors, or venhancer_paper.pt / venhancer_v2.pt of Vchitect/VEnhancer",
        "none stated; base CC BY-NC-ND 4.0 (non-commercial)",
    ),
}


def resolve(target: str) -> Any:
    """What "module:name" stands for."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Published:
    """hub: id on the Hugging Face hub. tokenizer, transformer: the entries of NAMED that give their sizes."""

    hub: str
    tokenizer: str
    transformer: str
    action_dim: int
    note: str
    licence: str = "MIT"
    paper: str = "Wu et al. 2024 (iVideoGPT)"


def _ivideogpt(
    name: str, note: str, action_dim: int = 0, tokenizer: str = "64", transformer: str = "small"
) -> tuple[str, Published]:
    hub = f"thuml/ivideogpt-{name}"
    parts = f"ivideogpt_tokenizer_{tokenizer}", f"ivideogpt_transformer_{transformer}"
    return f"ivideogpt_{name.replace('-', '_')}", Published(hub, *parts, action_dim, note)


PUBLISHED: dict[str, Published] = dict(
    [
        _ivideogpt("oxe-64-act-free", "pre-trained on Open X-Embodiment, without actions"),
        _ivideogpt("oxe-64-act-free-medium", "the same with the medium transformer", transformer="medium"),
        _ivideogpt("oxe-64-goal-cond", "the first context frame is the goal"),
        _ivideogpt("oxe-256-act-free", "256x256; less trained than the others, say its authors", tokenizer="256"),
        _ivideogpt("bair-64-act-free", "BAIR robot pushing, one context frame", tokenizer="64_context1"),
        _ivideogpt("bair-64-act-cond", "BAIR robot pushing, one context frame", 4, tokenizer="64_context1"),
        _ivideogpt("robonet-64-act-cond", "RoboNet", 5),
        _ivideogpt("vp2-robosuite-64-act-cond", "VP2, Robosuite", 4),
        _ivideogpt("vp2-robodesk-64-act-cond", "VP2, RoboDesk", 5),
    ]
)


def hub_id(name: str) -> str:
    """The hub id of a published name; any other name as it is."""
    return PUBLISHED[name].hub if name in PUBLISHED else name


@dataclass(frozen=True)
class Shipped:
    """A model of ours that comes with the package. folder: below the package, a run's or of ``save_pretrained``."""

    folder: str
    note: str
    licence: str = "Apache-2.0"


SHIPPED: dict[str, Shipped] = {
    "mnist28": Shipped("disco/weights/mnist28", "DisCo-Diff of MNIST by class, 28x28, and its baseline"),
    "faces32": Shipped("disco/weights/faces32", "DisCo-Diff of drawn faces by hair style, 32x32, and its baseline"),
    "push_world": Shipped("ivideogpt/weights/push_world", "the world that toolkit play drives: push-sprite, 32x32"),
    "video_small": Shipped("venhancer/weights", "enhance-video's model=small, and the upscaler below"),
    "video_upscaler": Shipped("venhancer/weights/upscaler", "enhance-video's keys=upscaler, a regression network"),
}


def local(source: str | Path) -> Path:
    """The folder of a model that ships with the package, by its name; anything else, and every ``Path``, as a path."""
    is_name = isinstance(source, str) and source in SHIPPED
    return Path(__file__).parent.parent / SHIPPED[str(source)].folder if is_name else Path(source)
