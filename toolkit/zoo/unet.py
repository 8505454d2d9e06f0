"""The two UNet families of the EDM release, with optional cross-attention to discrete-latent tokens.

ADMUNet: Dhariwal and Nichol 2021, ImageNet-64. SongUNet: Song et al. 2021, DDPM++ and NCSN++, CIFAR-10. Both as in
Karras et al. 2022, appendix F.3. Latents: Xu et al. 2024 (DisCo-Diff), section 4 (group hierarchy) and appendix D.1.

Shapes: B samples, C x H x W image or features, E embedding width, K classes, m tokens of width w.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

from toolkit.schema import UserError
from toolkit.zoo.denoiser import Denoiser, own_randomness
from toolkit.zoo.unet_blocks import (
    BOX,
    BlockOptions,
    CrossAttention,
    NoiseEmbedding,
    Resample,
    ResidualBlock,
    SelfAttention,
)
from toolkit.zoo.unet_levels import DecoderLevel, EncoderLevel, InputResidual, InputSkip, OutputHead


class UNet(Denoiser):
    """What the two families share. A subclass builds the embedding, calls ``_build`` and initialises the weights."""

    latent_keys = (*Denoiser.latent_keys, "null_kv")
    map_in: nn.Linear

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.config["in_channels"], self.config["image_size"], self.config["image_size"]

    def _build(
        self, options: BlockOptions, encoder_type: str, decoder_type: str, all_decoder_blocks_attend: bool
    ) -> None:
        config = self.config
        _check_sizes(config["image_size"], config["channel_mult"], options.taps)
        attends = [size in config["attn_resolutions"] for size in self.resolutions]
        widths = [config["model_channels"] * mult for mult in config["channel_mult"]]
        skips = self._build_encoder(options, encoder_type, attends, widths)
        deepest = widths[-1]
        middle = [ResidualBlock(deepest, deepest, options, attention=True), ResidualBlock(deepest, deepest, options)]
        self.middle = cast(list[ResidualBlock], nn.ModuleList(middle))
        self._build_decoder(options, decoder_type, attends, widths, skips, all_decoder_blocks_attend)

    def _build_encoder(
        self, options: BlockOptions, encoder_type: str, attends: list[bool], widths: list[int]
    ) -> list[int]:
        """Returns the channels of the feature maps on the stack of skips."""
        image_channels, first = self.config["in_channels"], self._first_width()
        self.encoder = cast(list[EncoderLevel], nn.ModuleList())
        skips, channels, side_channels = [], first, image_channels
        for level, width in enumerate(widths):
            entry: nn.Module = nn.Conv2d(image_channels, first, 3, padding=1)
            side: nn.Module | None = None
            if level > 0:
                entry = ResidualBlock(channels, channels, options, "down")
                if encoder_type == "skip":
                    side = InputSkip(image_channels, channels, options.taps)
                elif encoder_type == "residual":
                    side, side_channels = InputResidual(side_channels, channels, options.taps), channels
            skips.append(channels)
            blocks = []
            for _ in range(self.config["num_blocks"]):
                blocks.append(ResidualBlock(channels, width, options, attention=attends[level]))
                channels = width
                skips.append(channels)
            self.encoder.append(EncoderLevel(entry, side, blocks))
        return skips

    def _build_decoder(
        self,
        options: BlockOptions,
        decoder_type: str,
        attends: list[bool],
        widths: list[int],
        skips: list[int],
        all_blocks_attend: bool,
    ) -> None:
        image_channels, num_blocks = self.config["in_channels"], self.config["num_blocks"]
        self.decoder = cast(list[DecoderLevel], nn.ModuleList())
        channels, lowest = widths[-1], len(widths) - 1
        for level in range(lowest, -1, -1):
            up = ResidualBlock(channels, channels, options, "up") if level < lowest else None
            blocks = []
            for index in range(num_blocks + 1):
                attention = attends[level] and (all_blocks_attend or index == num_blocks)
                blocks.append(ResidualBlock(channels + skips.pop(), widths[level], options, attention=attention))
                channels = widths[level]
            head = None
            if level == 0 or decoder_type == "skip":
                image_up = Resample("up", options.taps) if decoder_type == "skip" and level < lowest else None
                head = OutputHead(channels, image_channels, options.eps, image_up)
            self.decoder.append(DecoderLevel(up, blocks, head))

    def _first_width(self) -> int:
        """Channels of the first convolution."""
        raise NotImplementedError

    @property
    def resolutions(self) -> list[int]:
        """Feature map sizes, highest first."""
        return [self.config["image_size"] >> level for level in range(len(self.config["channel_mult"]))]

    def _network(
        self,
        x_in: Tensor,
        c_noise: Tensor,
        class_onehot: Tensor | None,
        tokens: Tensor | None,
        augment_labels: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """augment_labels: (B, augment_dim), parameters of a non-leaking augmentation; None where there was none."""
        embedding = self._embed(c_noise, self._drop_labels(class_onehot, len(x_in)), tokens, augment_labels)
        h = side = x_in.to(self.map_in.weight.dtype)
        skips: list[Tensor] = []
        for level in self.encoder:
            h, side = level(h, side, embedding, tokens, skips)
        for block in self.middle:
            h = block(h, embedding, tokens)
        image: Tensor | None = None
        for up_level in self.decoder:
            h, image = up_level(h, image, embedding, tokens, skips)
        assert image is not None  # the last level has a head
        return image

    def _embed(
        self, c_noise: Tensor, class_onehot: Tensor | None, tokens: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """The noise embedding (B or 1, E) that every block sees."""
        raise NotImplementedError

    def _drop_labels(self, class_onehot: Tensor | None, batch_size: int) -> Tensor | None:
        """In training, zero the labels of each sample with probability ``label_dropout``."""
        if class_onehot is None:
            return None
        class_onehot, rate = class_onehot.to(self.map_in.weight.dtype), self.config["label_dropout"]
        if not self.training or not rate:
            return class_onehot
        return class_onehot * (torch.rand(batch_size, 1, device=class_onehot.device) >= rate)

    def _finish_embedding(self, embedding: Tensor, tokens: Tensor | None) -> Tensor:
        if self.map_latents is not None and tokens is not None:
            embedding = embedding + self.map_latents(tokens.flatten(1))
        return functional.silu(embedding)

    def _add_latents(self, embedding_width: int, num_heads: Callable[[int], int]) -> None:
        """Cross-attention after every self-attention, and the projection of ``latent_film``: both start at zero."""
        config = self.config
        self.map_latents: nn.Linear | None = None
        if not self.num_latents:
            return
        with own_randomness():
            for block, slots in self._routes():
                channels = block.out_channels
                block.cross_attention = CrossAttention(
                    channels, max(1, num_heads(channels)), config["latent_width"], slots, config["null_kv"]
                )
            if config["latent_film"]:
                self.map_latents = nn.Linear(self.num_latents * config["latent_width"], embedding_width)
                nn.init.zeros_(self.map_latents.weight)
                nn.init.zeros_(self.map_latents.bias)

    def _routes(self) -> list[tuple[ResidualBlock, slice]]:
        """Blocks that get cross-attention, each with the slots it sees.

        One group: all slots everywhere. More: the g-th group goes to the g-th resolution with attention on the way up
        (the middle included), lowest first.
        """
        up = [[*self.middle, *self.decoder[0].blocks], *(level.blocks for level in self.decoder[1:])]
        up = [[block for block in level if block.attends] for level in up]
        groups = self.config["latent_groups"]
        if groups == 1:
            down = [block for level in self.encoder for block in level.blocks if block.attends]
            return [(block, slice(None)) for block in (*down, *(block for level in up for block in level))]
        up = [level for level in up if level]
        if len(up) < groups:
            raise UserError(f"latent_groups={groups}: must be at most {len(up)}, the resolutions with attention")
        size = self.num_latents // groups
        return [(block, slice(g * size, (g + 1) * size)) for g in range(groups) for block in up[g]]


class ADMUNet(UNet):
    """ADM, the ImageNet-64 network of the EDM release; 295,899,267 parameters with the defaults and 1000 classes.

    Args:
        image_size: H = W in pixels, divisible by 2^(levels - 1).
        in_channels: C of the images. num_classes: K, 0 for none.
        augment_dim: width of the augmentation labels, 0 for none.
        model_channels, channel_mult: channels of a level are model_channels times its multiplier.
        channel_mult_emb: embedding width over model_channels. num_blocks: residual blocks per level.
        attn_resolutions: feature map sizes with self-attention (the middle always has it); others are ignored.
        dropout, label_dropout: probabilities; a dropped label is the zero vector.
        channels_per_head: a block with fewer channels has no self-attention, as in the release.
        num_latents ... latent_kind: see Denoiser. null_kv: a learned extra token in every cross-attention.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 64,
        in_channels: int = 3,
        num_classes: int = 0,
        sigma_data: float = 0.5,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.1,
        label_dropout: float = 0.0,
        channels_per_head: int = 64,
        num_latents: int = 0,
        codebook_size: int = 0,
        latent_width: int = 192,
        latent_layers: int = 0,
        latent_heads: int = 4,
        latent_groups: int = 1,
        latent_film: bool = False,
        latent_kind: str = "discrete",
        null_kv: bool = False,
    ) -> None:
        super().__init__()
        width = model_channels * channel_mult_emb
        self.noise_embedding = NoiseEmbedding(model_channels)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_in, self.map_out = nn.Linear(model_channels, width), nn.Linear(width, width)
        self.map_class = nn.Linear(num_classes, width, bias=False) if num_classes else None
        options = BlockOptions(width, lambda channels: channels // channels_per_head, dropout)
        self._build(options, "standard", "standard", all_decoder_blocks_attend=True)
        self._initialise()
        self._add_latents(width, options.num_heads)

    def _first_width(self) -> int:
        return self.config["model_channels"] * self.config["channel_mult"][0]

    def _initialise(self) -> None:
        """PyTorch's own initialisation, but unit normal classes and zeros in the last layer of every branch."""
        last: list[nn.Module] = [level.head.conv for level in self.decoder if level.head is not None]
        if self.map_augment is not None:
            last.append(self.map_augment)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                last.append(module.conv_out)
            elif isinstance(module, SelfAttention):
                last.append(module.out)
        for layer in last:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        if self.map_class is not None:
            nn.init.normal_(self.map_class.weight)

    def _embed(
        self, c_noise: Tensor, class_onehot: Tensor | None, tokens: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        embedding = self.noise_embedding(c_noise).to(self.map_in.weight.dtype)
        if self.map_augment is not None and augment_labels is not None:
            embedding = embedding + self.map_augment(augment_labels)
        embedding = self.map_out(functional.silu(self.map_in(embedding)))
        if self.map_class is not None:
            embedding = embedding + self.map_class(class_onehot)
        return self._finish_embedding(embedding, tokens)


class SongUNet(UNet):
    """DDPM++ (the defaults: 55,732,739 parameters) and NCSN++, the CIFAR-10 networks of the EDM release.

    NCSN++: embedding_type="fourier", channel_mult_noise=2, encoder_type="residual", resample_filter=(1, 3, 3, 1).

    Args (beside those of ADMUNet):
        channel_mult_noise: width of the sines and cosines of the noise level over model_channels.
        embedding_type: "positional" or "fourier". encoder_type: "standard", "skip" or "residual".
        decoder_type: "standard" or "skip". resample_filter: even number of taps of the separable filter.
        num_heads: heads of every attention. skip_scale: factor after every residual sum.
        adaptive_scale: let the embedding scale and shift the features instead of shifting them.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 32,
        in_channels: int = 3,
        num_classes: int = 0,
        sigma_data: float = 0.5,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        channel_mult_emb: int = 4,
        channel_mult_noise: int = 1,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = BOX,
        num_heads: int = 1,
        skip_scale: float = 0.5**0.5,
        adaptive_scale: bool = False,
        num_latents: int = 0,
        codebook_size: int = 0,
        latent_width: int = 192,
        latent_layers: int = 0,
        latent_heads: int = 4,
        latent_groups: int = 1,
        latent_film: bool = False,
        latent_kind: str = "discrete",
        null_kv: bool = False,
    ) -> None:
        super().__init__()
        _choose("embedding_type", embedding_type, "positional", "fourier")
        _choose("encoder_type", encoder_type, "standard", "skip", "residual")
        _choose("decoder_type", decoder_type, "standard", "skip")
        noise_width, width = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        self.noise_embedding = NoiseEmbedding(noise_width, embedding_type, endpoint=True, sine_first=True)
        self.map_class = nn.Linear(num_classes, noise_width) if num_classes else None
        self.map_augment = nn.Linear(augment_dim, noise_width, bias=False) if augment_dim else None
        self.map_in, self.map_out = nn.Linear(noise_width, width), nn.Linear(width, width)
        options = BlockOptions(
            width, lambda _: num_heads, dropout, skip_scale, 1e-6, tuple(resample_filter), adaptive_scale, True
        )
        self._build(options, encoder_type, decoder_type, all_decoder_blocks_attend=False)
        self._initialise()
        self._add_latents(width, options.num_heads)

    def _first_width(self) -> int:
        return self.config["model_channels"]

    def _initialise(self) -> None:
        """Xavier-uniform weights and zero biases, with a small gain in the last layer of every branch."""
        gains: dict[nn.Module, float] = {level.head.conv: 1e-5 for level in self.decoder if level.head is not None}
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                gains[module.conv_out] = 1e-5
            elif isinstance(module, SelfAttention):
                gains[module.qkv], gains[module.out] = 0.2**0.5, 1e-5
        latents = set() if self.latent_embedding is None else set(self.latent_embedding.modules())
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module not in latents:
                nn.init.xavier_uniform_(module.weight, gains.get(module, 1.0))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _embed(
        self, c_noise: Tensor, class_onehot: Tensor | None, tokens: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        embedding = self.noise_embedding(c_noise).to(self.map_in.weight.dtype)
        if self.map_class is not None:
            assert class_onehot is not None
            embedding = embedding + self.map_class(class_onehot * self.num_classes**0.5)
        if self.map_augment is not None and augment_labels is not None:
            embedding = embedding + self.map_augment(augment_labels)
        embedding = functional.silu(self.map_in(embedding))
        return self._finish_embedding(self.map_out(embedding), tokens)


def _choose(key: str, value: str, *options: str) -> None:
    if value not in options:
        raise UserError(f"{key}={value}: choose one of {', '.join(options)}")


def _check_sizes(image_size: int, channel_mult: Sequence[int], taps: Sequence[float]) -> None:
    factor = 2 ** (len(channel_mult) - 1)
    if not channel_mult or image_size % factor:
        raise UserError(f"image_size={image_size}: must be divisible by {factor} for {len(channel_mult)} levels")
    if not taps or len(taps) % 2:
        raise UserError(f"resample_filter={list(taps)}: must have an even number of taps")
