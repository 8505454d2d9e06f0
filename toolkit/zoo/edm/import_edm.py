"""Official EDM weights into ours, strictly: every tensor is used once, shapes are checked, nothing is half-written.

EDM (NVlabs/edm) publishes pickles. Unpickling runs code, so this package never does it; make a folder with
``config.json`` and ``model.safetensors`` once, in an environment of your own with a clone of the official repository:

    import json, pickle
    from safetensors.torch import save_file
    network = pickle.load(open("edm-imagenet-64x64-cond-adm.pkl", "rb"))["ema"]
    save_file({name: t.contiguous() for name, t in network.state_dict().items()}, "edm/model.safetensors")
    json.dump(dict(network.init_kwargs), open("edm/config.json", "w"))

and then ``toolkit zoo import edm edm OUR_FOLDER``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import UserError, did_you_mean
from toolkit.zoo.edm.blocks import BOX, Resample, SelfAttention
from toolkit.zoo.edm.unet import ADMUNet, SongUNet
from toolkit.zoo.edm.unet_base import UNet
from toolkit.zoo.importing import read_config, read_tensors, refuse_existing, refuse_tensors, write_network
from toolkit.zoo.sizes import build_on_meta

EDM_NOTICE = (
    "The EDM code and weights are by NVIDIA under CC BY-NC-SA 4.0 (non-commercial, share alike); "
    "weights imported or fine-tuned from them keep that licence."
)

_COMMON_KEYS = {
    "img_resolution": "image_size",
    "img_channels": "in_channels",
    "label_dim": "num_classes",
    **{
        key: key
        for key in (
            "sigma_data",
            "augment_dim",
            "model_channels",
            "channel_mult",
            "channel_mult_emb",
            "num_blocks",
            "attn_resolutions",
            "dropout",
            "label_dropout",
        )
    },
}
_SONG_KEYS = ("embedding_type", "channel_mult_noise", "encoder_type", "decoder_type", "resample_filter")
_NETWORKS: dict[str, tuple[type[UNet], dict[str, str], dict[str, Any]]] = {
    # official class: our class, official key -> our key, official defaults that differ from ours
    "DhariwalUNet": (ADMUNet, _COMMON_KEYS, {}),
    "SongUNet": (SongUNet, _COMMON_KEYS | {key: key for key in _SONG_KEYS}, {"channel_mult": [1, 2, 2, 2]}),
}
# How it was run or sampled, not what it computes.
_EXECUTION_KEYS = ("model_type", "use_fp16", "sigma_min", "sigma_max", "class_name")
_BLOCK_PARTS = {
    "norm_in": "norm0",
    "conv_in": "conv0",
    "film": "affine",
    "norm_out": "norm1",
    "conv_out": "conv1",
    "shortcut": "skip",
    "attention.norm": "norm2",
    "attention.qkv": "qkv",
    "attention.out": "proj",
}


def import_edm(source: str | Path, dest: str | Path) -> str:
    """Convert an EDM network to a ``save_pretrained`` folder.

    Args:
        source: folder with config.json (constructor arguments of the official EDMPrecond, ``model_type`` included) and
            model.safetensors (the official state dict, names with or without "model.", resample filters optional).
        dest: folder to make; it must not exist, or be empty.

    Returns:
        The notice about the licence of the weights.

    Raises:
        UserError: a file is missing or damaged, a key is unknown, tensors are missing, extra or of a wrong shape, or
            dest is in use. Nothing is written then.
    """
    source, dest = Path(source), Path(dest)
    refuse_existing(dest)
    path = source / "config.json"
    config = read_config(path)
    weights = read_tensors(source / "model.safetensors")
    network = _build_edm(config, path, weights)
    write_network(network, source / "model.safetensors", lambda: from_official(network, weights), dest)
    return EDM_NOTICE


def from_official(network: UNet, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official EDM state dict -> the state dict of ``network`` (float32; the network may be on the meta device).

    Raises UserError naming the tensors that are missing, extra, of a wrong shape, or not what the config says.
    """
    if weights and all(name.startswith("model.") for name in weights):
        weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    names = official_names(network)
    kernels = _resample_kernels(network)
    refuse_tensors("missing", set(names.values()) - set(weights))
    refuse_tensors("unexpected", set(weights) - set(names.values()) - set(kernels))
    for name in set(weights) & set(kernels):
        if weights[name].shape != kernels[name].shape or not torch.allclose(weights[name].float(), kernels[name]):
            raise UserError(f"{name}: not the filter that config.json's resample_filter gives")
    heads = _attention_heads(network)
    state = {}
    for ours, parameter in network.state_dict().items():
        tensor, expected = weights[names[ours]], _official_shape(ours, parameter)
        if tuple(tensor.shape) != expected:
            raise UserError(f"{names[ours]}: shape {tuple(tensor.shape)}, expected {expected}")
        tensor = tensor.to(torch.float32).reshape(parameter.shape)
        state[ours] = _regroup(tensor, heads[ours]) if ours in heads else tensor
    return state


def to_official(network: UNet) -> dict[str, Tensor]:
    """The inverse of ``from_official``, without the prefix "model." and without the derived resample filters."""
    names, heads, weights = official_names(network), _attention_heads(network), {}
    for ours, tensor in network.state_dict().items():
        official = _interleave(tensor, heads[ours]) if ours in heads else tensor
        weights[names[ours]] = official.reshape(_official_shape(ours, tensor)).contiguous()
    return weights


def official_names(network: UNet) -> dict[str, str]:
    """Our tensor name -> official name (without the prefix "model."), for every tensor of a network without latents."""
    modules = _official_modules(network)
    names = {}
    for ours in network.state_dict():
        prefix = max((one for one in modules if f"{ours}.".startswith(f"{one}.")), key=len)
        names[ours] = modules[prefix] + ours.removeprefix(prefix)
    return names


def _official_modules(network: UNet) -> dict[str, str]:
    """Our module path -> official module path, for all modules that hold tensors or resample."""
    modules = {
        "noise_embedding": "map_noise",
        "map_in": "map_layer0",
        "map_out": "map_layer1",
        "map_class": "map_label",
        "map_augment": "map_augment",
    }
    sizes = network.resolutions
    for i, size in enumerate(sizes):
        level = f"enc.{size}x{size}"
        modules[f"encoder.{i}.entry"] = f"{level}_down" if i else f"{level}_conv"
        side = "skip" if network.config.get("encoder_type") == "skip" else "residual"
        modules[f"encoder.{i}.side.conv"] = f"{level}_aux_{side}"
        modules[f"encoder.{i}.side.down"] = f"{level}_aux_down"
        for j in range(len(network.encoder[i].blocks)):
            modules[f"encoder.{i}.blocks.{j}"] = f"{level}_block{j}"
    for j in range(2):
        modules[f"middle.{j}"] = f"dec.{sizes[-1]}x{sizes[-1]}_in{j}"
    for i, size in enumerate(reversed(sizes)):
        level = f"dec.{size}x{size}"
        modules[f"decoder.{i}.up"] = f"{level}_up"
        modules[f"decoder.{i}.head.up"] = f"{level}_aux_up"
        for j in range(len(network.decoder[i].blocks)):
            modules[f"decoder.{i}.blocks.{j}"] = f"{level}_block{j}"
        for part in ("norm", "conv"):
            adm = isinstance(network, ADMUNet)
            modules[f"decoder.{i}.head.{part}"] = f"out_{part}" if adm else f"{level}_aux_{part}"
    parts = {
        f"{ours}.{part}": f"{official}.{name}"
        for ours, official in modules.items()
        for part, name in _BLOCK_PARTS.items()
        if "blocks" in ours or "middle" in ours or ours.endswith((".up", ".entry"))
    }
    return modules | parts | {"noise_embedding.frequencies": "map_noise.freqs"}


def _resample_kernels(network: UNet) -> dict[str, Tensor]:
    """Official name -> value of the buffers that follow from the config."""
    modules = _official_modules(network)
    taps = torch.tensor(network.config.get("resample_filter", BOX), dtype=torch.float32)
    kernel = (torch.outer(taps, taps) / taps.sum().square())[None, None]
    paths = [path for path, module in network.named_modules() if isinstance(module, Resample)]
    return {f"{modules[path.removesuffix('.resample')]}.resample_filter": kernel for path in paths}


def _attention_heads(network: UNet) -> dict[str, int]:
    """Names of the tensors of the query-key-value projections -> number of heads."""
    return {
        f"{path}.qkv.{kind}": module.num_heads
        for path, module in network.named_modules()
        if isinstance(module, SelfAttention)
        for kind in ("weight", "bias")
    }


def _official_shape(ours: str, tensor: Tensor) -> tuple[int, ...]:
    """The release writes the linear layers of attention as 1x1 convolutions."""
    as_conv = ours.endswith((".attention.qkv.weight", ".attention.out.weight"))
    return (*tensor.shape, 1, 1) if as_conv else tuple(tensor.shape)


def _regroup(qkv: Tensor, num_heads: int) -> Tensor:
    """Rows ordered (head, channel, q|k|v), as in the release, to (q|k|v, head, channel), as in ours."""
    return qkv.unflatten(0, (num_heads, -1, 3)).movedim(2, 0).flatten(0, 2)


def _interleave(qkv: Tensor, num_heads: int) -> Tensor:
    """The inverse of ``_regroup``."""
    return qkv.unflatten(0, (3, num_heads, -1)).movedim(0, 2).flatten(0, 2)


def _build_edm(config: dict[str, Any], path: Path, weights: dict[str, Tensor]) -> UNet:
    """The network of an official config.json, on the meta device, no larger than ``weights``."""
    model_type = config.get("model_type", "DhariwalUNet")
    if model_type not in _NETWORKS:
        raise UserError(f"{path}: model_type={model_type}: choose one of {', '.join(_NETWORKS)}")
    if not str(config.get("class_name", "EDMPrecond")).endswith("EDMPrecond"):
        raise UserError(f"{path}: class_name={config['class_name']}: only EDMPrecond networks can be imported")
    network, keys, defaults = _NETWORKS[model_type]
    for key in config:
        if key not in keys and key not in _EXECUTION_KEYS:
            raise UserError(f"{path}: unknown key '{key}'. {did_you_mean(key, keys)}known: {', '.join(keys)}")
    for key in ("img_resolution", "img_channels"):
        if key not in config:
            raise UserError(f"{path}: key '{key}' is missing")
    config = defaults | {key: value for key, value in config.items() if key in keys}
    return build_on_meta(lambda: network(**{keys[key]: value for key, value in config.items()}), weights, path)
