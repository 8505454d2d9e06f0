"""Encoders: a clean sample -> the logits of its m categorical latents (DisCo-Diff, Xu et al. 2024, appendix D.1).

Shapes: B batch, m slots, k codes per slot, P patches, W width. Logits are float32, under autocast too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from toolkit.zoo.edm.latents import SlotLinear
from toolkit.zoo.edm.mlp import SILU_GAIN, normal_linear
from toolkit.zoo.edm.transformer import Transformer


class LatentEncoder(ModelMixin, ConfigMixin):
    """E(y): clean samples (B, *shape) -> logits (B, m, k) float32.

    A subclass implements ``_features`` and sets ``self.head``. For continuous latents, ``codebook_size`` is the number
    of outputs per slot (mean and log-variance of each dimension).
    """

    config_name = "config.json"
    head: nn.Module

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) or (d,)."""
        raise NotImplementedError

    def forward(self, y: Tensor) -> Tensor:
        """Logits (B, m, k). Raises ValueError where y is not (B, *shape)."""
        if tuple(y.shape[1:]) != self.shape:
            raise ValueError(f"samples of shape {tuple(y.shape[1:])}: the encoder was built for {self.shape}")
        features = self._features(y)
        device_type = "cpu" if y.is_meta else y.device.type  # autocast knows no meta device
        with torch.autocast(device_type, enabled=False):
            logits = self.head(features.float())
        return logits.view(len(y), self.config.num_latents, self.config.codebook_size)

    def _features(self, y: Tensor) -> Tensor:
        raise NotImplementedError


class MLPEncoder(LatentEncoder):
    """``depth`` SiLU layers on the flattened sample (points, very small images), then one linear head per slot."""

    @register_to_config
    def __init__(
        self,
        sample_shape: Sequence[int] = (2,),
        num_latents: int = 1,
        codebook_size: int = 8,
        width: int = 128,
        depth: int = 2,
        sigma_data: float = 1.0,
    ) -> None:
        super().__init__()
        sizes = [math.prod(sample_shape)] + [width] * depth
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(pairwise(sizes)):
            layers += [normal_linear(inputs, outputs, gain=SILU_GAIN if index else 1.0), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = normal_linear(sizes[-1], num_latents * codebook_size, gain=SILU_GAIN)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.config.sample_shape)

    def _features(self, y: Tensor) -> Tensor:
        return self.body(y.flatten(1) / self.config.sigma_data)


class ViTEncoder(LatentEncoder):
    """A Vision Transformer with one extra class token per slot, each read by a linear head of its own.

    The paper's: depth 12, width 768, 12 heads, patch 8 at 64 x 64 and 16 at 128 x 128.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 64,
        in_channels: int = 3,
        patch_size: int = 8,
        num_latents: int = 10,
        codebook_size: int = 100,
        width: int = 768,
        depth: int = 12,
        num_heads: int = 12,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patch_size={patch_size}: must divide image_size={image_size}")
        num_patches = (image_size // patch_size) ** 2
        self.patches = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.position = nn.Parameter(0.02 * torch.randn(num_patches, width))
        self.class_tokens = nn.Parameter(0.02 * torch.randn(num_latents, width))
        self.body = Transformer(width, depth, num_heads)
        self.head = SlotLinear(num_latents, width, codebook_size)

    @property
    def shape(self) -> tuple[int, ...]:
        size = self.config.image_size
        return (self.config.in_channels, size, size)

    def _features(self, y: Tensor) -> Tensor:
        patches_BPW = self.patches(y).flatten(2).transpose(1, 2) + self.position
        tokens = torch.cat([patches_BPW, self.class_tokens.expand(len(y), -1, -1)], dim=1)
        return self.body(tokens)[:, -len(self.class_tokens) :]
