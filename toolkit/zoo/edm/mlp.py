"""Denoisers for points and very small images: a residual MLP with FiLM, and the toy network of DisCo-Diff.

Shapes: B batch (or 1 where every sample shares sigma), d numbers per sample, W width, E embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.zoo.edm.denoiser import Denoiser
from toolkit.zoo.edm.latents import LatentEmbedding


def normal_linear(inputs: int, outputs: int, bias: bool = True, gain: float = 1.0) -> nn.Linear:
    """A linear layer with weights of standard deviation gain / sqrt(inputs) and zero bias.

    PyTorch's own default has a third of the variance, which with SiLU shrinks the signal layer by layer: small
    networks then sit for thousands of steps at the loss of the linear denoiser.
    """
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=gain * inputs**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class NoiseFeatures(nn.Module):
    """c_noise (B,) -> (B, 2 * num_frequencies): sines and cosines, one to a few hundred noise levels per period."""

    frequencies: Tensor

    def __init__(self, num_frequencies: int = 16, lowest: float = 0.125, highest: float = 4.0) -> None:
        super().__init__()
        self.width = 2 * num_frequencies
        frequencies = 2 * math.pi * torch.logspace(math.log2(lowest), math.log2(highest), num_frequencies, base=2)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = torch.outer(c_noise, self.frequencies)
        return torch.cat([phase.cos(), phase.sin()], dim=-1) * 2**0.5


SILU_GAIN = 1.68
"""1 / sqrt(E[silu(u)^2]) for unit normal u: the weight gain that keeps the variance after a SiLU."""


class FiLMResidualMLP(nn.Module):
    """(B, d), (B, E) -> (B, d): blocks h + W2 silu((1 + scale) * (W1 h) + shift), scale and shift from the embedding.

    layer_norm: normalise before the last layer, which keeps the output in range where conditions scale the features.
    """

    def __init__(self, size: int, width: int, depth: int, embedding_width: int, layer_norm: bool = False) -> None:
        super().__init__()
        self.layer_norm = layer_norm
        self.inputs = normal_linear(size, width)
        # one product for the scales and shifts of all blocks: small layers cost their launch, not their arithmetic
        self.film = normal_linear(embedding_width, 2 * depth * width, gain=0.5 * SILU_GAIN)
        self.first = nn.ModuleList(normal_linear(width, width) for _ in range(depth))
        self.second = nn.ModuleList(normal_linear(width, width, gain=SILU_GAIN * depth**-0.5) for _ in range(depth))
        self.outputs = normal_linear(width, size, gain=SILU_GAIN)

    def forward(self, x_Bd: Tensor, embedding_BE: Tensor) -> Tensor:
        h = self.inputs(x_Bd)
        film = self.film(embedding_BE).chunk(2 * len(self.first), dim=-1)
        for index, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            scale, shift = film[2 * index], film[2 * index + 1]
            u = first(h)
            h = h + second(F.silu(torch.addcmul(u + shift, u, scale)))
        return self.outputs(F.silu(F.layer_norm(h, h.shape[-1:]) if self.layer_norm else h))


class MLPDenoiser(Denoiser):
    """EDM denoiser of ``sample_shape`` (d,) or (C, H, W), flattened: residual MLP blocks with FiLM.

    Noise level, class label and latent tokens (all slots side by side) each enter the FiLM embedding by a linear map;
    that of the tokens starts at zero, so that latents added to a trained network leave its output unchanged.

    input_gain: add the input times a gain, learned as a function of the embedding and 0 at first. At small noise the
    output must undo the noise in every direction that the data does not have, and more numbers than the width do not
    pass through the blocks; with the gain these predict clean samples, which have few directions.
    """

    latent_keys = ("num_latents", "codebook_size", "latent_width", "latent_layers", "latent_heads", "latent_kind")

    @register_to_config
    def __init__(
        self,
        sample_shape: Sequence[int] = (2,),
        width: int = 128,
        depth: int = 4,
        embedding_width: int = 64,
        layer_norm: bool = False,
        input_gain: bool = False,
        sigma_data: float = 0.5,
        num_classes: int = 0,
        num_latents: int = 0,
        codebook_size: int = 0,
        latent_width: int = 32,
        latent_layers: int = 0,
        latent_heads: int = 4,
        latent_kind: str = "discrete",
    ) -> None:
        super().__init__()
        self.features = NoiseFeatures()
        self.embed_noise = normal_linear(self.features.width, embedding_width)
        self.embed_class = normal_linear(num_classes, embedding_width, bias=False) if num_classes else None
        self.embed_latents = None
        if num_latents:
            self.embed_latents = normal_linear(num_latents * latent_width, embedding_width, bias=False, gain=0.0)
        self.body = FiLMResidualMLP(math.prod(sample_shape), width, depth, embedding_width, layer_norm)
        self.gain = normal_linear(embedding_width, 1, gain=0.0) if input_gain else None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.config.sample_shape)

    def _network(
        self, x_in: Tensor, c_noise: Tensor, class_onehot: Tensor | None, tokens: Tensor | None, **conditions: Any
    ) -> Tensor:
        embedding = self.embed_noise(self.features(c_noise))
        if self.embed_class is not None:
            embedding = embedding + self.embed_class(class_onehot * self.config.num_classes**0.5)
        if self.embed_latents is not None and tokens is not None:
            embedding = embedding + self.embed_latents(tokens.flatten(1))
        embedding, x_Bd = F.silu(embedding), x_in.flatten(1)
        output = self.body(x_Bd, embedding)
        if self.gain is not None:
            output = torch.addcmul(output, self.gain(embedding), x_Bd)
        return output.view_as(x_in)


class ToyScoreDenoiser(Denoiser):
    """The paper's own toy network (Xu et al. 2024, appendix F.2), written as a denoiser.

    Its score is G(x, t, z) = (F(z) - x) / (t^2 + s1^2) + H(x, t): F(z) a learned point per code (summed over slots),
    s1 = ``component_std``, the known deviation of one mixture component, H a four-layer MLP that does not see z. Then
    D = x + t^2 G. The paper leaves the scale of H open; here t^2 H is the MLP's output times EDM's c_out, so that it
    vanishes with t and stays bounded for large t. Without latents F is 0.
    """

    latent_keys = ("num_latents", "codebook_size", "latent_kind")

    @register_to_config
    def __init__(
        self,
        sample_shape: Sequence[int] = (2,),
        width: int = 96,
        depth: int = 4,
        component_std: float = 0.2,
        sigma_data: float = 2.13,
        num_classes: int = 0,
        num_latents: int = 0,
        codebook_size: int = 0,
        latent_kind: str = "discrete",
    ) -> None:
        if num_classes:
            raise ValueError(f"num_classes={num_classes}: the toy network takes no class labels")
        super().__init__()
        self.features = NoiseFeatures()
        size = math.prod(sample_shape)
        sizes = [size + self.features.width] + [width] * (depth - 1) + [size]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.SiLU(), normal_linear(inputs, outputs, gain=SILU_GAIN if layers else 1.0)]
        self.body = nn.Sequential(*layers[1:])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.config.sample_shape)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        latents: Tensor | None = None,
        drop: Tensor | None = None,
        **conditions: Any,
    ) -> Tensor:
        """As ``Denoiser.forward``, except for how x and the MLP's output are combined."""
        self._one_hot(class_labels, len(x), x.device)  # refuses labels
        x_Bd, tokens = x.float().flatten(1), self._tokens(latents, len(x), drop)
        t = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1, 1)
        centre_Bd = torch.zeros_like(x_Bd) if tokens is None else tokens.sum(1)
        total = (t.square() + self.sigma_data**2).sqrt()
        h_Bd = self._network(x_Bd / total, t[:, 0].log() / 4, None, None)
        s1_squared = self.config.component_std**2
        component_Bd = (s1_squared * x_Bd + t.square() * centre_Bd) / (t.square() + s1_squared)
        return (component_Bd + t * self.sigma_data / total * h_Bd).view_as(x)

    def _network(
        self, x_in: Tensor, c_noise: Tensor, class_onehot: Tensor | None, tokens: Tensor | None, **conditions: Any
    ) -> Tensor:
        features = self.features(c_noise).expand(len(x_in), -1)
        return self.body(torch.cat([x_in, features], dim=-1)).float()

    def _build_latent_embedding(self) -> nn.ModuleList:
        size = math.prod(self.config.sample_shape)
        return nn.ModuleList([LatentEmbedding(self.num_latents, self.codebook_size, size, kind=self.latent_kind)])
