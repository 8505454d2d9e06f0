"""EDM2's UNet: every layer keeps the magnitude of what passes through it.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", figure 21 and appendix B (the
equations named below). The published networks were trained on ImageNet without dropping labels.

Shapes: B samples, C x H x W features, E embedding width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.errors import UserError
from toolkit.zoo.edm.denoiser import Denoiser

EPSILON = 1e-4
SILU_MAGNITUDE = 0.596  # eq. 81: the root mean square of silu(unit normal)
UNCERTAINTY_WIDTH = 128


def unit(x: Tensor, dims: Sequence[int]) -> Tensor:
    """x with root mean square 1 over ``dims`` (eq. 66; for pixels eq. 30)."""
    length = torch.linalg.vector_norm(x, dim=tuple(dims), keepdim=True, dtype=torch.float32)
    return x / (EPSILON + length * math.sqrt(length.numel() / x.numel())).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """SiLU that keeps magnitude (eq. 81)."""
    return F.silu(x) / SILU_MAGNITUDE


def blend(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """(1 - balance) a + balance b for uncorrelated a and b, magnitude kept (eq. 88)."""
    return torch.lerp(a, b, balance) / math.hypot(1 - balance, balance)


def concatenate(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """Channels side by side, weighed so that each contributes its share whatever its width (eq. 103)."""
    total = math.sqrt((a.shape[1] + b.shape[1]) / ((1 - balance) ** 2 + balance**2))
    return torch.cat(
        [a * (total * (1 - balance) / math.sqrt(a.shape[1])), b * (total * balance / math.sqrt(b.shape[1]))], dim=1
    )


class Weights(nn.Module):
    """A bias-free linear map (kernel 0) or convolution whose rows have unit length (eqs. 47 and 66).

    In training the stored weights are put back to unit length at every pass.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *[kernel] * (2 if kernel else 0)))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        dims = range(1, self.weight.dim())
        if self.training:
            with torch.no_grad():
                self.weight.copy_(unit(self.weight.float(), dims))
        weight = unit(self.weight.float(), dims) * (gain / math.sqrt(self.weight[0].numel()))
        weight = weight.to(x.dtype)
        return x @ weight.T if weight.dim() == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class FourierFeatures(nn.Module):
    """Random cosines of the noise level, each of unit magnitude (eq. 75)."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(width))
        self.register_buffer("phases", 2 * math.pi * torch.rand(width))

    def forward(self, c_noise: Tensor) -> Tensor:
        return torch.cos(torch.outer(c_noise.float(), self.frequencies) + self.phases) * math.sqrt(2)


class EDM2Block(nn.Module):
    """Residual block with optional self-attention (figure 21): ``kind`` encoder or decoder, ``resize`` "", up, down."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding_width: int,
        kind: str,
        resize: str = "",
        attention: bool = False,
        channels_per_head: int = 64,
        dropout: float = 0.0,
        balance: float = 0.3,
        clip: float = 256.0,
    ) -> None:
        super().__init__()
        self.kind, self.resize, self.dropout, self.balance, self.clip = kind, resize, dropout, balance, clip
        self.num_heads = outputs // channels_per_head if attention else 0
        self.gain = nn.Parameter(torch.zeros([]))
        self.first = Weights(outputs if kind == "encoder" else inputs, outputs, 3)
        self.embed = Weights(embedding_width, outputs)
        self.second = Weights(outputs, outputs, 3)
        self.shortcut = Weights(inputs, outputs, 1) if inputs != outputs else None
        self.qkv = Weights(outputs, 3 * outputs, 1) if self.num_heads else None
        self.attention_out = Weights(outputs, outputs, 1) if self.num_heads else None

    def forward(self, x_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        x = self._resized(x_BCHW)
        if self.kind == "encoder":
            x = unit(x if self.shortcut is None else self.shortcut(x), [1])
        scale = self.embed(embedding_BE, self.gain) + 1
        y = silu(self.first(silu(x)) * scale[..., None, None].to(x.dtype))
        y = self.second(F.dropout(y, self.dropout, self.training))
        if self.kind == "decoder" and self.shortcut is not None:
            x = self.shortcut(x)
        x = blend(x, y, self.balance)
        if self.num_heads:
            x = blend(x, self._attended(x), self.balance)
        return x.clamp(-self.clip, self.clip)

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2) if self.resize == "up" else x

    def _attended(self, x: Tensor) -> Tensor:
        """Cosine attention: queries, keys and values of unit magnitude, each (B, heads, H W, channels)."""
        assert self.qkv is not None and self.attention_out is not None
        batch, _, height, width = x.shape
        qkv = self.qkv(x).reshape(batch, self.num_heads, -1, 3, height * width)
        q, k, v = (one.transpose(-1, -2) for one in unit(qkv, [2]).unbind(3))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.attention_out(out.transpose(-1, -2).reshape(x.shape))


class EDM2UNet(Denoiser):
    """The denoiser of EDM2, on latents (ImageNet-512) or pixels (ImageNet-64).

    Args:
        image_size, in_channels: H = W and C of what it denoises. num_classes: K, 0 for none.
        model_channels, channel_mult: channels of a level are model_channels times its multiplier; XS has 128.
        num_blocks: residual blocks per level. attn_resolutions: sizes with self-attention.
        channels_per_head, dropout: of the blocks. label_balance, concat_balance, block_balance: shares of the class in
            the embedding, of the skips in the decoder, of the residual branch and of attention.
        latents_mean, latents_std: per channel, of the autoencoder's raw latents; None for pixels. What the network sees
            is (raw - mean) / std * sigma_data.
    """

    latent_keys = ()

    @register_to_config
    def __init__(
        self,
        image_size: int = 64,
        in_channels: int = 4,
        num_classes: int = 1000,
        sigma_data: float = 0.5,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        channels_per_head: int = 64,
        dropout: float = 0.0,
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        block_balance: float = 0.3,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if image_size % 2 ** (len(channel_mult) - 1):
            raise UserError(f"image_size={image_size}: must be divisible by {2 ** (len(channel_mult) - 1)}")
        widths = [model_channels * mult for mult in channel_mult]
        noise_width = model_channels * channel_mult_noise if channel_mult_noise else widths[0]
        embedding_width = model_channels * channel_mult_emb if channel_mult_emb else max(widths)
        self.fourier = FourierFeatures(noise_width)
        self.embed_noise = Weights(noise_width, embedding_width)
        self.embed_class = Weights(num_classes, embedding_width) if num_classes else None
        options = {"channels_per_head": channels_per_head, "dropout": dropout, "balance": block_balance}
        skips = self._build_encoder(widths, embedding_width, options)
        self._build_decoder(widths, embedding_width, skips, options)
        self.outputs, self.out_gain = Weights(widths[0], in_channels, 3), nn.Parameter(torch.zeros([]))
        self.uncertainty_fourier = FourierFeatures(UNCERTAINTY_WIDTH)
        self.uncertainty = Weights(UNCERTAINTY_WIDTH, 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.config["in_channels"], self.config["image_size"], self.config["image_size"]

    def log_variance(self, sigma: Tensor) -> Tensor:
        """u(sigma) of the training loss (eq. 21), shape (B,)."""
        return self.uncertainty(self.uncertainty_fourier(sigma.float().flatten().log() / 4))[:, 0]

    def to_raw_latents(self, samples: Tensor) -> Tensor:
        """What the autoencoder decodes, from samples (B, C, H, W). Raises UserError for a network of pixels."""
        mean, std = self.config["latents_mean"], self.config["latents_std"]
        if mean is None or std is None:
            raise UserError("vae: this network makes pixels, not latents")
        shape = (1, -1, 1, 1)
        return samples * (samples.new_tensor(std).view(shape) / self.sigma_data) + samples.new_tensor(mean).view(shape)

    def _build_encoder(self, widths: list[int], embedding_width: int, options: dict[str, Any]) -> list[int]:
        """Returns the channels on the stack of skips. One channel of ones is added to the input."""
        config, size = self.config, self.config["image_size"]
        self.inputs = Weights(config["in_channels"] + 1, widths[0], 3)
        self.encoder = cast(list[EDM2Block], nn.ModuleList())
        skips = [widths[0]]
        for level, width in enumerate(widths):
            attends = size >> level in config["attn_resolutions"]
            if level:
                self.encoder.append(EDM2Block(skips[-1], skips[-1], embedding_width, "encoder", "down", **options))
                skips.append(skips[-1])
            for _ in range(config["num_blocks"]):
                block = EDM2Block(skips[-1], width, embedding_width, "encoder", attention=attends, **options)
                self.encoder.append(block)
                skips.append(width)
        return skips

    def _build_decoder(
        self, widths: list[int], embedding_width: int, skips: list[int], options: dict[str, Any]
    ) -> None:
        config, size = self.config, self.config["image_size"]
        self.decoder = cast(list[EDM2Block], nn.ModuleList())
        self.takes_skip: list[bool] = []
        channels = widths[-1]
        for level in reversed(range(len(widths))):
            attends = size >> level in config["attn_resolutions"]
            if level == len(widths) - 1:
                self._add(channels, channels, embedding_width, options, attention=True)
                self._add(channels, channels, embedding_width, options)
            else:
                self._add(channels, channels, embedding_width, options, resize="up")
            for _ in range(config["num_blocks"] + 1):
                self._add(channels + skips.pop(), widths[level], embedding_width, options, True, attention=attends)
                channels = widths[level]

    def _add(
        self, inputs: int, outputs: int, width: int, options: dict[str, Any], takes_skip: bool = False, **more: Any
    ) -> None:
        self.decoder.append(EDM2Block(inputs, outputs, width, "decoder", **options, **more))
        self.takes_skip.append(takes_skip)

    def _network(
        self, x_in: Tensor, c_noise: Tensor, class_onehot: Tensor | None, tokens: Tensor | None, **conditions: Any
    ) -> Tensor:
        config = self.config
        embedding = self.embed_noise(self.fourier(c_noise))
        if self.embed_class is not None and class_onehot is not None:
            of_class = self.embed_class(class_onehot * math.sqrt(self.num_classes))
            embedding = blend(embedding, of_class, config["label_balance"])
        embedding = silu(embedding)
        x = self.inputs(torch.cat([x_in, torch.ones_like(x_in[:, :1])], dim=1))
        skips = [x]
        for block in self.encoder:
            x = block(x, embedding)
            skips.append(x)
        for block, takes_skip in zip(self.decoder, self.takes_skip, strict=True):
            x = concatenate(x, skips.pop(), config["concat_balance"]) if takes_skip else x
            x = block(x, embedding)
        return self.outputs(x, self.out_gain)
