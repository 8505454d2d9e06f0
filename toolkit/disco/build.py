"""From config to networks: the denoiser with or without latents, the encoder, the prior."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from toolkit import zoo
from toolkit.data.sets import Dataset
from toolkit.disco.baselines import build_baseline_encoder
from toolkit.disco.config import TrainDisco
from toolkit.errors import UserError
from toolkit.zoo.config import MLPConfig, NetworkConfig, ToyScoreConfig
from toolkit.zoo.counting import count_parameters
from toolkit.zoo.disco.encoders import LatentEncoder, MLPEncoder, ViTEncoder
from toolkit.zoo.disco.prior import AutoregressivePrior, LatentDiffusionPrior, MarginalPrior, UniformPrior
from toolkit.zoo.edm.build import build_network, image_shape, known_latents
from toolkit.zoo.edm.denoiser import Denoiser


def wants_classes(config: TrainDisco) -> bool:
    """Whether classes were asked for in so many words.

    The key is true without being given; then data that have none are trained on without classes.
    """
    return "data.class_labels=true" in {word.lstrip("+").lower() for word in config.asked}


def check_classes(config: TrainDisco, dataset: Dataset) -> None:
    """Raises UserError where classes were asked for in so many words, and the data have none."""
    if wants_classes(config) and not dataset.class_names:
        raise UserError(
            f"data.class_labels=true: data.name={config.data.name} ({dataset.source}) has no classes; give data that "
            "have, such as a folder for each class, or leave the key out"
        )


def latent_shape(config: TrainDisco, num_labels: int) -> tuple[int, int]:
    """(m, k) of the latents; true labels as z are one slot with a code per class."""
    if config.latents.kind == "labels":
        if num_labels < 2:
            raise UserError(f"latents.kind=labels: data.name={config.data.name} has no labels")
        return 1, num_labels
    return config.latents.num_latents, config.latents.codebook_size


def build_stage(config: TrainDisco, dataset: Dataset, stage: str) -> tuple[Denoiser, LatentEncoder | None]:
    """The networks of stage ``denoiser`` or ``baseline``: the denoiser, and its encoder where it has one."""
    if stage == "denoiser":
        return build_denoiser(config, dataset, config.latents.kind != "none"), build_encoder(config, dataset)
    if config.baseline == "same_width":
        return build_denoiser(config, dataset, with_latents=False), None
    with torch.device("meta"):
        parts = [build_denoiser(config, dataset), build_prior(config, dataset)]
        parts += [build_encoder(config, dataset)] if config.baseline == "matched_total" else []
    return build_matched(config, dataset, count_parameters(*parts)), None


def build_denoiser(config: TrainDisco, dataset: Dataset, with_latents: bool = True) -> Denoiser:
    """D with the latents that the config names, or the same network without them. ``config.init`` gives the weights.

    Raises UserError where these are no denoiser's, are for other data, or have latents already.
    """
    latents = _latent_options(config, dataset) if with_latents else {}
    if config.init is None:
        return _from_network(config.network, config, dataset, latents)
    base = zoo.load(config.init)
    if not isinstance(base, Denoiser):
        raise UserError(f"init={config.init}: holds a {type(base).__name__}; expected a denoiser of this toolkit")
    if tuple(base.shape) != tuple(dataset.shape) or base.num_classes != dataset.num_classes:
        raise UserError(
            f"init={config.init}: a network for samples {tuple(base.shape)} and {base.num_classes} classes; "
            f"the data has {tuple(dataset.shape)} and {dataset.num_classes} (see data.size_px, data.class_labels)"
        )
    if base.num_latents:
        raise UserError(
            f"init={config.init}: has {base.num_latents} latents already; give one without, as model/baseline of a run"
        )
    return type(base).from_base(base, **(known_latents(type(base), latents) or latents))


def build_matched(config: TrainDisco, dataset: Dataset, num_parameters: int) -> Denoiser:
    """The no-latent network, widened to at least ``num_parameters``; the width of the config must be a possible one."""
    step = 4 if isinstance(config.network, (MLPConfig, ToyScoreConfig)) else 8
    network: Any = config.network
    while _size(network, config, dataset, must=network is config.network) < num_parameters:
        network = dataclasses.replace(network, width=network.width + step)
    return _from_network(network, config, dataset, {})


def _size(network: NetworkConfig, config: TrainDisco, dataset: Dataset, must: bool) -> int:
    """Parameters without latents; 0 for a width that groups or heads do not divide, unless it ``must`` be possible."""
    try:
        with torch.device("meta"):
            return count_parameters(_from_network(network, config, dataset, {}))
    except UserError:
        if must:
            raise
        return 0


def build_encoder(config: TrainDisco, dataset: Dataset) -> LatentEncoder | None:
    """E(y) -> logits (B, m, k), or what stands in for it; None without latents."""
    latents, encoder = config.latents, config.latents.encoder
    if latents.kind == "none":
        return None
    if latents.kind in ("labels", "kmeans"):
        return build_baseline_encoder(config, dataset)
    size = 2 * latents.codebook_size if latents.kind == "continuous" else latents.codebook_size
    if encoder.kind == "mlp":
        network: LatentEncoder = MLPEncoder(
            dataset.shape, latents.num_latents, size, encoder.width, encoder.depth, dataset.sigma_data
        )
    else:
        channels, height, _ = image_shape(dataset.shape, "latents.encoder.kind=vit")
        if height % encoder.patch_size:
            raise UserError(f"latents.encoder.patch_size={encoder.patch_size}: must divide the image size {height}")
        network = ViTEncoder(
            height, channels, encoder.patch_size, latents.num_latents, size, encoder.width, encoder.depth,
            encoder.num_heads,
        )  # fmt: skip
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.mul_(encoder.init_scale)
    return network.requires_grad_(latents.kind != "random")


def build_prior(config: TrainDisco, dataset: Dataset) -> nn.Module | None:
    """A(z | class); the small diffusion prior where the latents are continuous; None without latents."""
    latents, prior = config.latents, config.prior
    if latents.kind == "none":
        return None
    if latents.kind == "continuous":
        return LatentDiffusionPrior(
            latents.num_latents, latents.codebook_size, prior.width, prior.depth, dataset.num_classes
        )
    num_latents, codebook_size = latent_shape(config, len(dataset.class_names))
    if prior.kind == "autoregressive":
        return AutoregressivePrior(
            num_latents, codebook_size, prior.width, prior.depth, prior.num_heads, dataset.num_classes, prior.dropout
        )
    kind = {"marginal": MarginalPrior, "uniform": UniformPrior}[prior.kind]
    return kind(num_latents, codebook_size, dataset.num_classes)


def _latent_options(config: TrainDisco, dataset: Dataset) -> dict[str, Any]:
    latents = config.latents
    if latents.kind == "none":
        return {}
    num_latents, codebook_size = latent_shape(config, len(dataset.class_names))
    return {
        "num_latents": num_latents,
        "codebook_size": codebook_size,
        "latent_kind": "continuous" if latents.kind == "continuous" else "discrete",
        "latent_width": latents.width,
        "latent_layers": latents.num_layers,
        "latent_heads": latents.num_heads,
        "latent_groups": latents.num_groups,
        "latent_film": latents.film,
        "null_kv": latents.null_kv,
    }


def _from_network(network: NetworkConfig, config: TrainDisco, dataset: Dataset, latents: dict[str, Any]) -> Denoiser:
    sigma_data = config.loss.sigma_data or dataset.sigma_data
    return build_network(network, dataset.shape, sigma_data, dataset.num_classes, latents)


def memory_bytes(*networks: nn.Module | None) -> int:
    """Bytes to train these with Adam and one average: weights, gradients, two moments, EMA, all float32."""
    return 4 * 5 * count_parameters(*networks)
