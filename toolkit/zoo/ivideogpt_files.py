"""Folders of iVideoGPT: ``tokenizer/`` and ``transformer/`` of the release, read strictly and written back.

Neither action width nor reward head stands in the release's configs: both are read from the tensors.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig

from toolkit.schema import UserError
from toolkit.zoo.importing import read_config, read_tensors, refuse_tensors
from toolkit.zoo.video_transformer import VideoTransformer
from toolkit.zoo.vq_tokenizer import CompressiveVQModel
from toolkit.zoo.world_model import WorldModel

TOKENIZER_WEIGHTS = "diffusion_pytorch_model.safetensors"
TRANSFORMER_WEIGHTS = "model.safetensors"
# Of a file's config: what it was written with, and generation defaults that no picture needs.
_DROPPED = ("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "max_length")
_OURS = ("action_dim", "has_reward", "has_action_recon", "spatial_embedding")  # told by the tensors
_WRITTEN = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "initializer_range",
    "attention_bias",
    "mlp_bias",
    "attention_dropout",
    "tie_word_embeddings",
    "rope_parameters",
    "tokenizer_fingerprint",
)
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_world_model(folder: Path) -> WorldModel:
    """Both networks and, where there is one, the ``config.json`` beside them. Raises UserError naming the file."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not found (expected a folder with tokenizer/ and transformer/)")
    for part in ("tokenizer", "transformer"):
        if not (folder / part).is_dir():
            raise UserError(f"{folder}: no {part}/ there (expected a folder with tokenizer/ and transformer/)")
    tokenizer = read_tokenizer(folder / "tokenizer")
    transformer = read_transformer(folder / "transformer")
    path = folder / "config.json"
    extras = {key: one for key, one in read_config(path).items() if key != "_class_name"} if path.exists() else {}
    try:
        return WorldModel(tokenizer, transformer, **extras)
    except TypeError as error:
        raise UserError(f"{path}: not the config of a world model: {error}") from None
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def read_tokenizer(folder: Path) -> CompressiveVQModel:
    """The tokenizer of ``folder`` in float32. Raises UserError naming the file and what does not fit."""
    path = folder / "config.json"
    config = read_config(path)
    unknown = [key for key in config if not key.startswith("_") and key not in _tokenizer_keys()]
    if unknown:
        raise UserError(f"{path}: unknown key '{unknown[0]}'; known: {', '.join(sorted(_tokenizer_keys()))}")
    try:
        with torch.device("meta"):
            network: Any = CompressiveVQModel.from_config(config)
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: no tokenizer can be built from it: {error}") from None
    _fill(network, read_tensors(folder / TOKENIZER_WEIGHTS), folder / TOKENIZER_WEIGHTS)
    return network.to(memory_format=torch.channels_last).eval()  # faster convolutions on a CPU


def read_transformer(folder: Path) -> VideoTransformer:
    """The transformer of ``folder`` in float32, whatever dtype its config names. Raises UserError as above."""
    path, weights_path = folder / "config.json", folder / TRANSFORMER_WEIGHTS
    config = read_config(path)
    if config.get("model_type") != "llama":
        raise UserError(f"{path}: model_type={config.get('model_type')}: only llama is known")
    weights = read_tensors(weights_path)
    if not any(name.startswith("llm.") for name in weights):
        weights = {f"llm.{name}": tensor for name, tensor in weights.items()}
    try:
        with torch.device("meta"):
            network = VideoTransformer(_llama_config(config, weights))
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError, StrictDataclassError) as error:
        raise UserError(f"{path}: no transformer can be built from it: {' '.join(str(error).split())}") from None
    network.llm.model.rotary_emb = type(network.llm.model.rotary_emb)(network.config)  # its table is no weight
    _fill(network, weights, weights_path)
    return network.eval()


def write_transformer(network: VideoTransformer, folder: Path) -> None:
    """The release's files: bare Llama tensors without actions, under "llm." beside the heads with them."""
    folder.mkdir(parents=True, exist_ok=True)
    has_heads = any(name != "llm" for name, _ in network.named_children())
    source: nn.Module = network if has_heads else network.llm
    ours = network.config.to_dict()
    config = {key: ours[key] for key in _WRITTEN if ours.get(key) is not None}
    rope = ours.get("rope_parameters") or ours  # where transformers 5 keeps it, and 4
    config |= {"architectures": ["LlamaForCausalLM"], "rope_theta": rope["rope_theta"], "torch_dtype": "float32"}
    write_tensors(source, folder / TRANSFORMER_WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_tensors(network: nn.Module, path: Path) -> None:
    """Its state dict, plainly laid out. transformers reads only files that say who wrote them."""
    save_file({name: one.contiguous() for name, one in network.state_dict().items()}, path, {"format": "pt"})


def _tokenizer_keys() -> set[str]:
    return set(inspect.signature(CompressiveVQModel.__init__).parameters) - {"self"}


def _llama_config(config: dict[str, Any], weights: dict[str, Tensor]) -> LlamaConfig:
    """Their keys, with what only the tensors tell."""
    kept = {key: one for key, one in config.items() if key not in (*_DROPPED, *_OURS)}
    action, recon = weights.get("action_linear.weight"), weights.get("action_recon_linear.weight")
    width = action.shape[1] if action is not None else recon.shape[0] if recon is not None else None
    heads: dict[str, Any] = {"has_reward": "reward_linear.weight" in weights, "has_action_recon": recon is not None}
    own, within = weights.get("spatial.own.weight"), weights.get("spatial.within.weight")
    if own is not None and within is not None:
        heads["spatial_embedding"] = [len(own) * len(within), len(own)]
    return LlamaConfig(**(kept | dict.fromkeys(_SPECIAL_TOKENS) | heads), action_dim=width)


def _fill(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Every tensor used once, every shape checked, all in float32."""
    expected = network.state_dict()
    try:
        refuse_tensors("missing", set(expected) - set(weights))
        refuse_tensors("unexpected", set(weights) - set(expected))
        for name, tensor in weights.items():
            if tensor.shape != expected[name].shape:
                raise UserError(f"{name}: shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}")
            if not tensor.is_floating_point():
                raise UserError(f"{name}: dtype {tensor.dtype}, expected floating point")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    network.load_state_dict({name: one.float() for name, one in weights.items()}, strict=True, assign=True)
