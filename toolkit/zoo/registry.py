"""The zoo's catalogue: classes, named networks at the papers' sizes, layouts of official weights, and loading.

Nothing heavy is imported until a network is built, so that the command line can read the catalogue quickly. A new paper
adds its classes to CLASSES, its networks to NAMED and its official weights to LAYOUTS.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.schema import UserError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]

# class name, as in the "_class_name" of a config.json -> module
CLASSES = {
    "ADMUNet": "toolkit.zoo.unet",
    "SongUNet": "toolkit.zoo.unet",
    "UViT": "toolkit.zoo.uvit",
    "MLPDenoiser": "toolkit.zoo.mlp",
    "ToyScoreDenoiser": "toolkit.zoo.mlp",
    "MLPEncoder": "toolkit.zoo.encoders",
    "ViTEncoder": "toolkit.zoo.encoders",
    "AutoregressivePrior": "toolkit.zoo.prior",
    "MarginalPrior": "toolkit.zoo.prior",
    "UniformPrior": "toolkit.zoo.prior",
    "LatentDiffusionPrior": "toolkit.zoo.prior",
    "VideoUNet": "toolkit.zoo.video_unet",
    "VideoControlNetModel": "toolkit.zoo.video_controlnet",
    "ControlledVideoUNet": "toolkit.zoo.controlled_video_unet",
}


@dataclass(frozen=True)
class Entry:
    """A network by name: ``target`` is "module:callable", ``config`` its arguments.

    inputs: argument name -> (dtype, shape) of one forward at batch 1, for counting FLOPs.
    """

    target: str
    config: Mapping[str, Any]
    inputs: Shapes
    paper: str
    note: str

    def build(self) -> nn.Module:
        """The network with random weights, on torch's default device (``with torch.device("meta")`` costs nothing)."""
        return _resolve(self.target)(**self.config)


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


def _clip_inputs(frames: int, height: int, width: int, key_frames: int = 0) -> Shapes:
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
_ADM = "toolkit.zoo.unet:ADMUNet"
_SONG = "toolkit.zoo.unet:SongUNet"
_VIT = "toolkit.zoo.encoders:ViTEncoder"

NAMED: dict[str, Entry] = {
    "edm_adm_imagenet64": Entry(
        _ADM, {"num_classes": 1000}, _image_inputs(64, num_classes=1000), _KARRAS, "ImageNet-64, class-conditional"
    ),
    "edm_ddpmpp_cifar10": Entry(_SONG, {"dropout": 0.13}, _image_inputs(32), _KARRAS, "CIFAR-10, DDPM++"),
    "edm_ncsnpp_cifar10": Entry(_SONG, {"dropout": 0.13, **_NCSNPP}, _image_inputs(32), _KARRAS, "CIFAR-10, NCSN++"),
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
        "toolkit.zoo.uvit:UViT",
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
        "toolkit.zoo.prior:AutoregressivePrior",
        {"num_classes": 1000},
        {"codes": ("int64", (1, 10)), "class_labels": ("int64", (1,))},
        _DISCO,
        "autoregressive prior of z given the class",
    ),
    "venhancer": Entry(
        "toolkit.zoo.controlled_video_unet:ControlledVideoUNet",
        {"unet_config": {"asymmetric": True}, "controlnet_config": {"asymmetric": True}},
        _clip_inputs(5, 90, 160, key_frames=3),
        _VENHANCER,
        "base and control network; FLOPs of 5 frames of 720x1280",
    ),
    "venhancer_base": Entry(
        "toolkit.zoo.video_unet:VideoUNet",
        {"asymmetric": True},
        _clip_inputs(5, 90, 160),
        _VENHANCER,
        "the frozen base (MS-Vid2Vid-XL) alone",
    ),
}

LAYOUTS: dict[str, Layout] = {
    "edm": Layout(
        "toolkit.zoo.importing_edm:import_edm",
        "folder with config.json and model.safetensors of NVlabs/edm (ADM, DDPM++, NCSN++)",
        "CC BY-NC-SA 4.0, non-commercial",
    ),
    "venhancer": Layout(
        "toolkit.zoo.importing_venhancer:import_venhancer",
        "folder with config.json and model.safetensors, or venhancer_paper.pt / venhancer_v2.pt of Vchitect/VEnhancer",
        "none stated; base CC BY-NC-ND 4.0 (non-commercial)",
    ),
}


def list_networks() -> list[dict[str, Any]]:
    """One row per named network: name, class, parameters, gflops (one forward at batch 1), paper, note."""
    return [_summary(name) for name in NAMED]


def show_network(name: str) -> dict[str, Any]:
    """What ``list_networks`` says of one network, and its "config" and "parts" (top-level module -> parameters).

    ``name`` may also be a folder or hub id that ``load`` reads; then there are no gflops.
    """
    if name in NAMED:
        network, row = build_on_meta(name), _summary(name)
    elif Path(name).exists():
        network = load(name)
        row = {"name": name, "class": type(network).__name__, "parameters": count_parameters(network)}
    else:
        raise UserError(f"{name}: {did_you_mean(name, NAMED)}no folder and none of {', '.join(NAMED)}")
    config = {key: value for key, value in network.config.items() if not key.startswith("_")}
    parts = {key: count_parameters(part) for key, part in network.named_children()}
    return row | {"config": config, "parts": parts}


def list_layouts() -> list[dict[str, str]]:
    """One row per layout of official weights: layout, source, licence."""
    return [{"layout": name, "source": one.source, "licence": one.licence} for name, one in LAYOUTS.items()]


def import_weights(layout: str, source: str | Path, dest: str | Path) -> str:
    """Convert official weights at ``source`` to a ``save_pretrained`` folder ``dest``; returns the licence notice.

    Raises UserError: unknown layout, or what the layout's importer refuses.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout {layout}: {did_you_mean(layout, LAYOUTS)}choose one of {', '.join(LAYOUTS)}")
    return _resolve(LAYOUTS[layout].target)(source, dest)


def build_on_meta(name: str) -> Any:
    """A named network without memory for its weights."""
    import torch

    with torch.device("meta"):
        return NAMED[name].build()


def count_parameters(network: nn.Module) -> int:
    """Numbers that training changes (buffers are not counted)."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_flops(network: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Floating-point operations of one forward (a multiply-add is two) of matrix products, convolutions, attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        network(**inputs)
    return counter.get_total_flops()


def load(source: str | Path, part: str | None = None, device: str | torch.device = "cpu") -> Any:
    """A network with its weights, in eval mode.

    Args:
        source: run folder (the network is ``model/<part>`` in it), folder of ``save_pretrained``, or hub id.
        part: "denoiser" unless given, such as "encoder" or "prior"; for folders that hold several networks.
        device: where to put it.

    Raises:
        UserError: nothing there, the hub cannot be reached, an unknown class, or weights that do not fit the config.
    """
    folder = Path(source)
    if folder.exists():
        network = _load_folder(_locate(folder, part))
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        network = _load_hub(str(source), part)
    else:
        raise UserError(f"{source}: not found (expected a run, a folder with config.json, or a hub id)")
    return network.to(device).eval()


def _locate(folder: Path, part: str | None) -> Path:
    """The folder with the config.json of ``part``."""
    if part is None and (folder / "config.json").is_file():
        return folder
    part = part or "denoiser"
    for place in (folder / "model" / part, folder / part):
        if (place / "config.json").is_file():
            return place
    parts = sorted(path.parent.name for path in [*folder.glob("*/config.json"), *folder.glob("model/*/config.json")])
    raise UserError(f"{folder}: no network '{part}' there (found: {', '.join(parts) or 'none'})")


def _load_folder(folder: Path) -> Any:
    try:
        config = json.loads((folder / "config.json").read_text())
        network_class = _find_class(config["_class_name"])
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error) if isinstance(error, UserError) else "not the config of a network"
        raise UserError(f"{folder / 'config.json'}: {reason}") from None
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: no *.safetensors file beside config.json")
    return _load_strictly(network_class, str(folder))


def _load_hub(name: str, part: str | None) -> Any:
    from toolkit.zoo.denoiser import Denoiser

    reachable = _hub_answers()
    where: dict[str, Any] = {"local_files_only": not reachable} | ({"subfolder": part} if part else {})
    try:
        config: Any = Denoiser.load_config(name, **where)
    except OSError as error:
        why = str(error).strip().splitlines()[0] if reachable else "no connection, and not in its cache"
        raise UserError(f"{name}: no such folder, and not to be had from the hub: {why}") from None
    return _load_strictly(_find_class(config.get("_class_name", "")), name, **where)


def _hub_answers() -> bool:
    """False where the hub is switched off or, after 3 s, not reached (its own client retries for half a minute)."""
    import socket
    import urllib.request
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies().get("https"):
        return True
    url = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((url.hostname or "", url.port or 443), timeout=3).close()
    except OSError:
        return False
    return True


def _load_strictly(network_class: Any, source: str, **where: Any) -> Any:
    """``from_pretrained`` without pickles, and without the tensors it would leave random or ignore."""
    from safetensors import SafetensorError

    try:
        network, info = network_class.from_pretrained(source, use_safetensors=True, output_loading_info=True, **where)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{source}: cannot be loaded: {' '.join(str(error).split())}") from error
    for what in ("missing_keys", "unexpected_keys"):
        if info[what]:
            raise UserError(f"{source}: {what.replace('_', ' ')} in the weights: {', '.join(sorted(info[what])[:8])}")
    return network


def _find_class(name: str) -> Any:
    """Ours by CLASSES, then any imported ModelMixin (a paper's own network), then diffusers'."""
    import diffusers

    if name in CLASSES:
        return getattr(importlib.import_module(CLASSES[name]), name)
    pending = [diffusers.ModelMixin]
    while pending:
        known = pending.pop()
        if known.__name__ == name:
            return known
        pending += known.__subclasses__()
    found = getattr(diffusers, name, None) if name else None
    if not isinstance(found, type) or not issubclass(found, diffusers.ModelMixin):
        raise UserError(f"unknown network class '{name}': {did_you_mean(name, CLASSES)}known: {', '.join(CLASSES)}")
    return found


def _resolve(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _summary(name: str) -> dict[str, Any]:
    import torch

    entry, network = NAMED[name], build_on_meta(name)
    inputs = {
        key: torch.zeros(shape, dtype=getattr(torch, dtype), device="meta")
        for key, (dtype, shape) in entry.inputs.items()
    }
    return {
        "name": name,
        "class": type(network).__name__,
        "parameters": count_parameters(network),
        "gflops": count_flops(network.eval(), inputs) / 1e9,
        "paper": entry.paper,
        "note": entry.note,
    }
