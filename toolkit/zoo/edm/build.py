"""From the config group ``network`` to a denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.errors import UserError
from toolkit.zoo.config import ADMConfig, MLPConfig, NetworkConfig, SongConfig, ToyScoreConfig, UViTConfig
from toolkit.zoo.edm.denoiser import Denoiser
from toolkit.zoo.edm.mlp import MLPDenoiser, ToyScoreDenoiser
from toolkit.zoo.edm.unet import ADMUNet, SongUNet


def build_network(
    network: NetworkConfig,
    shape: Sequence[int],
    sigma_data: float,
    num_classes: int = 0,
    latents: Mapping[str, Any] | None = None,
) -> Denoiser:
    """The denoiser that ``network`` describes, with random weights.

    Args:
        shape: of one sample, (C, H, W) or (d,). sigma_data, num_classes: see Denoiser.
        latents: the latent keys of Denoiser; those that the network does not have are left out.

    Raises:
        UserError: a network for images, and samples that are no square images.
    """
    common: dict[str, Any] = {"sigma_data": sigma_data, "num_classes": num_classes}
    latents = dict(latents or {})
    if isinstance(network, (MLPConfig, ToyScoreConfig)):
        common |= {"sample_shape": list(shape), "width": network.width, "depth": network.depth}
        if isinstance(network, ToyScoreConfig):
            return ToyScoreDenoiser(
                component_std=network.component_std, **common, **known_latents(ToyScoreDenoiser, latents)
            )
        common |= {"layer_norm": network.layer_norm, "input_gain": network.input_gain}
        return MLPDenoiser(**common, **known_latents(MLPDenoiser, latents))
    channels, height, _ = image_shape(shape, f"network.family={network.family}")
    common |= {"image_size": height, "in_channels": channels} | latents
    return _unet(network, common)


def image_shape(shape: Sequence[int], asked_by: str) -> tuple[int, int, int]:
    """(C, H, W). Raises UserError, naming the key ``asked_by``, for samples that are no square images."""
    if len(shape) != 3 or shape[1] != shape[2]:
        raise UserError(f"{asked_by}: needs square images, but the data has samples of shape {tuple(shape)}")
    channels, height, width = shape
    return channels, height, width


def _unet(network: NetworkConfig, common: dict[str, Any]) -> Denoiser:
    assert isinstance(network, (ADMConfig, SongConfig, UViTConfig))
    common |= {
        "dropout": network.dropout,
        "model_channels": network.width,
        "channel_mult": network.width_multipliers,
        "num_blocks": network.num_blocks,
    }
    if isinstance(network, UViTConfig):
        from toolkit.zoo.edm.uvit import UViT

        return UViT(depth=network.depth, **common)
    common |= {"attn_resolutions": network.attention_resolutions}
    if isinstance(network, ADMConfig):
        return ADMUNet(channels_per_head=network.channels_per_head, **common)
    if network.variant == "ncsnpp":
        common |= {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual"}
        common |= {"resample_filter": [1, 3, 3, 1]}
    return SongUNet(**common)


def known_latents(family: type[Denoiser], latents: dict[str, Any]) -> dict[str, Any]:
    """Those of a config's latent options that the networks of ``family`` have."""
    return {key: latents[key] for key in family.latent_keys if key in latents}
