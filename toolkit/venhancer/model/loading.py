"""Autoencoders and text encoders by folder or hub id, with one line where they cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from torch import Tensor

from toolkit.errors import UserError
from toolkit.plain_files import read_object
from toolkit.zoo.loading import load_or_refuse

_VAES = {"AutoencoderKL": AutoencoderKL, "AutoencoderKLTemporalDecoder": AutoencoderKLTemporalDecoder}


def penultimate(encoder: Any, output: Any) -> Tensor:
    """What Stable Diffusion 2 conditions on: the last layer but one of ViT-H's 24, with the final norm.

    SD 2.1's own text encoder has only 23 layers and gives it as its last.
    """
    if encoder.config.num_hidden_layers == 24:
        inner = getattr(encoder, "text_model", encoder)  # transformers 5 has no text_model inside
        return inner.final_layer_norm(output.hidden_states[-2])
    return output.last_hidden_state


def load_vae(source: str) -> Any:
    """An autoencoder by folder or hub id, directly there or in "vae". Raises UserError."""
    config, where = _find_config(source, "vae", "vae")
    kind = _VAES.get(config.get("_class_name", ""))
    if kind is None:
        raise UserError(f"vae={source}: {config.get('_class_name')} there, expected one of {', '.join(_VAES)}")
    return load_or_refuse("vae", source, lambda: kind.from_pretrained(source, use_safetensors=True, **where))


def load_text_encoder(source: str) -> tuple[Any, Any]:
    """(CLIPTextModel, CLIPTokenizer) by folder or hub id, directly there or in "text_encoder" and "tokenizer"."""
    from transformers import CLIPTextModel, CLIPTokenizer

    _, where = _find_config(source, "text_encoder", "text_encoder")
    encoder = load_or_refuse(
        "text_encoder", source, lambda: CLIPTextModel.from_pretrained(source, use_safetensors=True, **where)
    )
    inside = {"subfolder": "tokenizer"} if where else {}
    return encoder, load_or_refuse("text_encoder", source, lambda: CLIPTokenizer.from_pretrained(source, **inside))


def _find_config(source: str, part: str, key: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The config of ``part`` and where it lies: {} or {"subfolder": part}."""
    if not Path(source).exists():
        from diffusers import ConfigMixin

        loaded: Any = load_or_refuse(key, source, lambda: ConfigMixin.load_config(source, subfolder=part))
        return loaded, {"subfolder": part}
    for where in ({}, {"subfolder": part}):
        file = Path(source, *where.values(), "config.json")
        if file.exists():
            return read_object(file), where
    raise UserError(f"{key}={source}: no config.json there, nor in {part}/")
