"""Tiny train-disco configs, data and networks for tests."""

import dataclasses

import numpy as np
import torch

from toolkit.data.sets import Dataset, MemorySplit
from toolkit.disco.config import EncoderConfig, Latents, PriorConfig, TrainDisco
from toolkit.zoo.config import ADMConfig, MLPConfig, NetworkConfig


def images(num: int = 48, channels: int = 1, size: int = 8, num_classes: int = 0) -> Dataset:
    """Random images with labels 0..3; they condition the network only with ``num_classes``."""
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.integers(0, 256, (num, channels, size, size), dtype=np.uint8))
    split = MemorySplit(values, rng.integers(0, 4, num), conditional=num_classes > 0)
    return Dataset("random", split, split, split, num_classes, tuple("abcd"), "generated", "generated")


def config(
    network: NetworkConfig | None = None, *, kind: str = "discrete", num_groups: int = 1, **changes
) -> TrainDisco:
    """A config whose networks have a few hundred weights; ``changes`` are keys of TrainDisco."""
    if network is None:
        network = ADMConfig(width=8, width_multipliers=[1, 2], num_blocks=1, attention_resolutions=[8, 4], dropout=0.0)
        network.channels_per_head = 8
    encoder = EncoderConfig(width=8, depth=1, num_heads=2, patch_size=4)
    latents = Latents(kind=kind, num_latents=2, codebook_size=3, width=8, num_layers=0, num_heads=2, encoder=encoder)
    latents.num_groups = num_groups
    prior = PriorConfig(width=8, depth=1, num_heads=2)
    return dataclasses.replace(TrainDisco(network=network, latents=latents, prior=prior), **changes)


def mlp() -> MLPConfig:
    """The smallest MLP."""
    return MLPConfig(width=8, depth=2)
