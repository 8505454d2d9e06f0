"""Official VEnhancer weights (v1 "paper" and v2, one layout) into ours, strictly: every tensor is used once.

The source is a folder with ``config.json`` (the constructor's arguments: in_dim, dim, dim_mult, ...) and
``model.safetensors``, or the release's ``venhancer_paper.pt`` / ``venhancer_v2.pt`` (read with ``weights_only``), or a
safetensors file of the same names; without a config beside it a file has the published size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import UserError, did_you_mean
from toolkit.zoo.importing import (
    load_tensors,
    read_config,
    read_tensors,
    refuse_existing,
    refuse_tensors,
    write_network,
)
from toolkit.zoo.sizes import build_on_meta
from toolkit.zoo.video.controlled_unet import ControlledVideoUNet

NOTICE = (
    "VEnhancer's repository states no licence for code or weights, and its base MS-Vid2Vid-XL is for non-commercial "
    "use without derivatives (CC BY-NC-ND 4.0): use imported weights for your own research, do not redistribute them."
)
# The released networks (both versions), and what else a config may say about how they were run.
RELEASE = {
    "in_dim": 4,
    "out_dim": 4,
    "dim": 320,
    "dim_mult": [1, 2, 4, 4],
    "context_dim": 1024,
    "num_heads": 8,
    "head_dim": 64,
    "num_res_blocks": 2,
    "attn_scales": [1.0, 0.5, 0.25],
}
_EXECUTION_KEYS = ("guide_scale", "guide_rescale", "heun_steps", "discretization", "y_dim", "dropout", "use_checkpoint")
CONTROL = "VideoControlNet."

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_CONTROL = {
    "cond_conv_in": "input_hint_block",
    "noise_proj": "hint_time_zero_linear",
    "scale_embedding.linear_1": "scale_cond.0",
    "scale_embedding.linear_2": "scale_cond.2",
    "controlnet_mid_block": "middle_block_out.0",
}


def import_venhancer(source: str | Path, dest: str | Path) -> str:
    """Convert official weights to a ``save_pretrained`` folder that ``toolkit.zoo.load`` reads.

    Args:
        source: see the module's docstring.
        dest: folder to make; it must not exist, or be empty. Weights keep the precision they have.

    Returns:
        The notice about the licence.

    Raises:
        UserError: a file is missing, damaged or of another kind, a key is unknown, tensors are missing, extra or of a
            wrong shape, or dest is in use. Nothing is written then.
    """
    source, dest = Path(source), Path(dest)
    refuse_existing(dest)
    config_file, weights_file = _locate(source)
    config = read_config(config_file) if config_file else RELEASE
    weights = _read(weights_file)
    network = build(config, config_file or weights_file, weights if config_file else None)
    write_network(network, weights_file, lambda: from_official(network, weights), dest)
    return NOTICE


def from_official(network: ControlledVideoUNet, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official state dict -> that of ``network`` (which may be on the meta device).

    Raises UserError naming the tensors that are missing, extra or of a wrong shape.
    """
    names = official_names(network)
    refuse_tensors("missing", set(names.values()) - set(weights))
    refuse_tensors("unexpected", set(weights) - set(names.values()))
    state = {}
    for ours, parameter in network.state_dict().items():
        tensor, expected = weights[names[ours]], _official_shape(ours, parameter)
        if tuple(tensor.shape) != expected:
            raise UserError(f"{names[ours]}: shape {tuple(tensor.shape)}, expected {expected}")
        state[ours] = tensor.reshape(parameter.shape)
    return state


def to_official(network: ControlledVideoUNet) -> dict[str, Tensor]:
    """The inverse of ``from_official``."""
    names = official_names(network)
    return {names[ours]: one.reshape(_official_shape(ours, one)) for ours, one in network.state_dict().items()}


def official_names(network: ControlledVideoUNet) -> dict[str, str]:
    """Our tensor name -> official name, for every tensor."""
    modules = {f"unet.{ours}": official for ours, official in _modules(network.unet)}
    modules |= {f"controlnet.{ours}": CONTROL + official for ours, official in _modules(network.controlnet)}
    modules |= {f"controlnet.{ours}": CONTROL + official for ours, official in _CONTROL.items()}
    for index in range(len(network.controlnet.controlnet_down_blocks)):
        modules[f"controlnet.controlnet_down_blocks.{index}"] = f"{CONTROL}zero_convs.{index}.0"
    names = {}
    for ours in network.state_dict():
        prefix = max((one for one in modules if ours.startswith(f"{one}.")), key=len)
        names[ours] = modules[prefix] + ours.removeprefix(prefix)
    return names


def _modules(network: Any) -> Iterator[tuple[str, str]]:
    """(our module path, official module path) of the encoder, the middle and, for the base, the decoder."""
    yield from (("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"))
    yield from (("conv_in", "input_blocks.0.0"), ("transformer_in", "input_blocks.0.1"))
    place = 1
    for level, block in enumerate(network.down_blocks):
        for index in range(len(block.resnets)):
            yield from _layer(f"down_blocks.{level}", index, f"input_blocks.{place}", block)
            place += 1
        if block.downsamplers:
            yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{place}.op"
            place += 1
    yield from _resnet("mid_block", 0, "middle_block.0")
    yield from (("mid_block.attentions.0", "middle_block.1"), ("mid_block.temp_attentions.0", "middle_block.2"))
    yield from _resnet("mid_block", 1, "middle_block.3")
    place = 0
    for level, block in enumerate(getattr(network, "up_blocks", ())):
        for index in range(len(block.resnets)):
            yield from _layer(f"up_blocks.{level}", index, f"output_blocks.{place}", block)
            place += 1
        if block.upsamplers:
            last = 3 if hasattr(block, "attentions") else 1
            yield f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{place - 1}.{last}.conv"
    yield from (("conv_norm_out", "out.0"), ("conv_out", "out.2"))


def _layer(level: str, index: int, official: str, block: Any) -> Iterator[tuple[str, str]]:
    yield from _resnet(level, index, f"{official}.0")
    if hasattr(block, "attentions"):
        yield f"{level}.attentions.{index}", f"{official}.1"
        yield f"{level}.temp_attentions.{index}", f"{official}.2"


def _resnet(level: str, index: int, official: str) -> Iterator[tuple[str, str]]:
    for ours, theirs in _RESNET.items():
        yield f"{level}.resnets.{index}.{ours}", f"{official}.{theirs}"
    yield f"{level}.temp_convs.{index}", f"{official}.temopral_conv"  # so it is spelt


def _official_shape(ours: str, tensor: Tensor) -> tuple[int, ...]:
    """The release writes the projections of temporal transformers as convolutions of size 1."""
    temporal = "temp_attentions." in ours or "transformer_in." in ours
    as_conv = temporal and ours.endswith((".proj_in.weight", ".proj_out.weight"))
    return (*tensor.shape, 1) if as_conv else tuple(tensor.shape)


def build(config: dict[str, Any], path: Path, weights: dict[str, Tensor] | None = None) -> ControlledVideoUNet:
    """The network of an official config, on the meta device, for ``weights``. Raises UserError naming ``path``."""
    for key in config:
        if key not in RELEASE and key not in _EXECUTION_KEYS:
            raise UserError(f"{path}: unknown key '{key}'. {did_you_mean(key, RELEASE)}known: {', '.join(RELEASE)}")
    multipliers = config.get("dim_mult", RELEASE["dim_mult"])
    if not isinstance(multipliers, list) or multipliers[:1] != [1]:
        raise UserError(f"{path}: dim_mult={multipliers}: must be a list that begins with 1")
    return build_on_meta(lambda: ControlledVideoUNet(**_arguments(RELEASE | config)), weights, path)


def _arguments(official: dict[str, Any]) -> dict[str, Any]:
    multipliers = official["dim_mult"]
    shared = {
        "in_channels": official["in_dim"],
        "block_out_channels": [official["dim"] * one for one in multipliers],
        "attention_levels": [0.5**level in official["attn_scales"] for level in range(len(multipliers))],
        "layers_per_block": official["num_res_blocks"],
        "cross_attention_dim": official["context_dim"],
        "attention_head_dim": official["head_dim"],
        "entry_heads": official["num_heads"],
        "asymmetric": True,
    }
    return {
        "unet_config": shared | {"out_channels": official["out_dim"]},
        "controlnet_config": shared | {"conditioning_channels": official["in_dim"]},
    }


def _locate(source: Path) -> tuple[Path | None, Path]:
    """(config file or None, weights file)."""
    if source.is_file():
        beside = source.parent / "config.json"
        return beside if beside.exists() else None, source
    if not source.is_dir():
        raise UserError(
            f"{source}: not found (expected a folder with config.json and model.safetensors, or a .pt file)"
        )
    pickled = sorted(source.glob("*.pt"))
    only = pickled[0] if len(pickled) == 1 and not (source / "model.safetensors").exists() else None
    return source / "config.json", only or source / "model.safetensors"


def _read(path: Path) -> dict[str, Tensor]:
    """The official state dict. Raises UserError where the file is damaged or holds something else."""
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        content: Any = load_tensors(path)
    except ValueError as error:
        raise UserError(f"{path}: not a checkpoint that can be read safely: {error}") from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(torch.is_tensor(one) for one in content.values()):
        raise UserError(f"{path}: expected a state dict, tensors by name")
    return content
