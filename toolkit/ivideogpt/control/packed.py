"""A world model in one small file: 8-bit weights with a scale per row, configs in the header. For what ships."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import LlamaConfig

from toolkit.errors import UserError
from toolkit.runs.files import write_atomic
from toolkit.zoo.sizes import no_larger_than, sizes
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.tokenizer import CompressiveVQModel
from toolkit.zoo.world.transformer import VideoTransformer

LEVELS = 127
SCALE = ".scale"


def pack(world: WorldModel, path: str | Path) -> Path:
    """Write ``world`` as safetensors: matrices and kernels as int8 with one scale per row, the rest as float16."""
    tensors: dict[str, Tensor] = {}
    for part in ("tokenizer", "transformer"):
        for name, tensor in getattr(world, part).state_dict().items():
            tensors |= _packed(f"{part}.{name}", tensor.detach().cpu().float())
    tokenizer = {key: value for key, value in world.tokenizer.config.items() if not key.startswith("_")}
    configs = {"world": world.config, "tokenizer": tokenizer, "transformer": world.transformer.config.to_dict()}
    return write_atomic(path, save(tensors, {name: json.dumps(config) for name, config in configs.items()}))


def unpack(path: str | Path) -> WorldModel:
    """The world model that ``pack`` wrote. Raises UserError where it did not."""
    try:
        with safe_open(str(path), "pt") as file:
            configs = {name: json.loads(text) for name, text in (file.metadata() or {}).items() if name != "format"}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        with no_larger_than(sizes(tensors), Path(path)):
            tokenizer = CompressiveVQModel(**configs["tokenizer"])
            transformer = VideoTransformer(LlamaConfig(**configs["transformer"]))
        world = configs["world"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path}: not a packed world model ({' '.join(str(error).split())})") from None
    for part, network in (("tokenizer", tokenizer), ("transformer", transformer)):
        network.load_state_dict(_unpacked(tensors, f"{part}."))
    transformer.bind(tokenizer)
    kept: dict[str, Any] = {key: value for key, value in world.items() if not key.startswith("_")}
    return WorldModel(tokenizer, transformer, **kept)


def _packed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if tensor.dim() < 2:
        return {name: tensor.half()}
    rows = tensor.flatten(1)
    scale = (rows.abs().amax(1) / LEVELS).clamp_min(1e-12)
    whole = (rows / scale[:, None]).round().to(torch.int8)
    return {name: whole.view(tensor.shape), name + SCALE: scale}


def _unpacked(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        if not name.startswith(prefix) or name.endswith(SCALE):
            continue
        scale = tensors.get(name + SCALE)
        plain = tensor.float()
        if scale is not None:
            plain = (plain.flatten(1) * scale[:, None]).view(tensor.shape)
        found[name.removeprefix(prefix)] = plain
    return found
