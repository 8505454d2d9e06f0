"""The U-ViT of DisCo-Diff's ImageNet-128 experiment: EDM's convolutional levels around a Vision Transformer.

Stated by Xu et al. 2024 (section 4.1, appendix D.1, table 5): a re-implementation of the U-ViT of simple diffusion
(Hoogeboom et al. 2023) and VDM++ with EDM's up- and downsampling blocks; 128 channels times 1, 2, 4, 16; a ViT of 36
layers; cross-attention in each resampling block and after every third ViT layer, at resolutions 16, 32 and 64.

Our reading of what it leaves open:
- two residual blocks per level on the way down and three on the way up (as in EDM: each takes one skip), no
  self-attention outside the ViT; blocks, embedding and initialisation as in ADM;
- embedding width 8 x model_channels (1024, as in simple diffusion);
- the ViT works on single pixels of the lowest resolution, with learned positions and heads of 64 channels, and is a
  branch added to the features it reads, so that it too starts at zero; the embedding scales and shifts the input of
  each MLP;
- the resampling blocks with cross-attention are those whose output is below the image's resolution.

Shapes: B samples, C x H x W features, N = HW pixels, W width of the ViT, E embedding width, m tokens of width w.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.zoo.checkpointing import CheckpointedBlock
from toolkit.zoo.edm.blocks import BOX, BlockOptions, CrossAttention, NoiseEmbedding, ResidualBlock
from toolkit.zoo.edm.transformer import SelfAttention
from toolkit.zoo.edm.unet_base import UNet, check_sizes


class ViTBlock(CheckpointedBlock):
    """x + attention(norm(x)), then x + MLP(FiLM(norm(x))), then cross-attention where there is one."""

    def __init__(self, width: int, num_heads: int, embedding_width: int, dropout: float) -> None:
        super().__init__()
        self.out_channels = width
        self.norm_attention = nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.film = nn.Linear(embedding_width, 2 * width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.cross_attention: CrossAttention | None = None
        for layer in (self.attention.out, self.mlp[-1]):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x_BNW: Tensor, embedding: Tensor, tokens: Tensor | None) -> Tensor:
        x_BNW = x_BNW + self.attention(self.norm_attention(x_BNW))
        scale, shift = self.film(embedding)[:, None].chunk(2, dim=-1)
        x_BNW = x_BNW + self.mlp(torch.addcmul(shift, self.norm_mlp(x_BNW), scale + 1))
        if self.cross_attention is None:
            return x_BNW
        assert tokens is not None
        x_BW1N = x_BNW.transpose(1, 2).unsqueeze(2)
        return self.cross_attention(x_BW1N, tokens).squeeze(2).transpose(1, 2)


class ViT(nn.Module):
    """The bottleneck: (B, C, H, W) -> (B, C, H, W), zero at initialisation."""

    def __init__(self, channels: int, num_pixels: int, width: int, blocks: list[ViTBlock]) -> None:
        super().__init__()
        self.inputs = nn.Linear(channels, width)
        self.positions = nn.Parameter(0.02 * torch.randn(num_pixels, width))
        self.blocks = cast(list[ViTBlock], nn.ModuleList(blocks))
        self.norm = nn.LayerNorm(width)
        self.outputs = nn.Linear(width, channels)
        nn.init.zeros_(self.outputs.weight)
        nn.init.zeros_(self.outputs.bias)

    def forward(self, h: Tensor, embedding: Tensor, tokens: Tensor | None) -> Tensor:
        x_BNW = self.inputs(h.flatten(2).transpose(1, 2)) + self.positions
        for block in self.blocks:
            x_BNW = block(x_BNW, embedding, tokens)
        return self.outputs(self.norm(x_BNW)).transpose(1, 2).reshape(h.shape)


class UViT(UNet):
    """Convolutional levels with the multipliers of all but the last level, whose multiplier is the width of the ViT.

    Args (those of ADMUNet, except):
        channel_mult: at least two; the ViT works at image_size / 2^(levels - 1).
        depth: ViT layers. channels_per_head: of the ViT and of cross-attention.
        latent_groups: 1, the group hierarchy is defined for the UNets.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 128,
        in_channels: int = 3,
        num_classes: int = 0,
        sigma_data: float = 0.5,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 4, 16),
        channel_mult_emb: int = 8,
        num_blocks: int = 2,
        depth: int = 36,
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
        if len(channel_mult) < 2:
            raise UserError(f"channel_mult={list(channel_mult)}: needs at least two levels, the last is the ViT")
        if latent_groups != 1:
            raise UserError(f"latent_groups={latent_groups}: must be 1, the U-ViT gives all latents to every layer")
        check_sizes(image_size, channel_mult, BOX)
        embedding_width = model_channels * channel_mult_emb
        self.noise_embedding = NoiseEmbedding(model_channels)
        self._build_embedding(model_channels, embedding_width, embedding_width, class_bias=False)
        options = BlockOptions(embedding_width, lambda channels: max(1, channels // channels_per_head), dropout)
        *widths, vit_width = (model_channels * mult for mult in channel_mult)
        no_attention = [False] * len(widths)
        skips = self._build_encoder(options, "standard", no_attention, widths)
        self.down = ResidualBlock(widths[-1], widths[-1], options, "down")
        blocks = [ViTBlock(vit_width, options.num_heads(vit_width), embedding_width, dropout) for _ in range(depth)]
        self.vit = ViT(widths[-1], self.resolutions[-1] ** 2, vit_width, blocks)
        self._build_decoder(options, "standard", no_attention, widths, skips, False, up_first=True)
        self._zero_last_layers()
        self._add_latents(embedding_width, options.num_heads)

    def _first_width(self) -> int:
        return self.config["model_channels"] * self.config["channel_mult"][0]

    def _bottom(self, h: Tensor, embedding: Tensor, tokens: Tensor | None) -> Tensor:
        h = self.down(h, embedding, tokens)
        return h + self.vit(h, embedding, tokens)

    def _routes(self) -> list[tuple[nn.Module, slice]]:
        """All latents to every resampling block below the image's resolution and to every third ViT layer."""
        down = [*(level.entry for level in self.encoder[1:]), self.down]
        up = [level.up for level in self.decoder[:-1] if level.up is not None]
        return [(block, slice(None)) for block in (*down, *up, *self.vit.blocks[2::3])]
