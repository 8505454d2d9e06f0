"""The base network: a text-conditioned video UNet in latent space (ModelScope's text-to-video / video-to-video).

He et al. 2024 (VEnhancer, arXiv 2407.07667) section 3.1 builds on MS-Vid2Vid-XL: Stable Diffusion 2.1's UNet with
temporal convolutions and attention. The parameters are those of diffusers' ``UNet3DConditionModel``, name by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import UNet3DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.zoo.checkpointing import called, recomputed
from toolkit.zoo.video import layers

ENCODER_KEYS = (
    "in_channels",
    "block_out_channels",
    "attention_levels",
    "layers_per_block",
    "cross_attention_dim",
    "attention_head_dim",
    "entry_heads",
    "norm_num_groups",
    "asymmetric",
    "dropout",
)
ENCODER_PARTS = ("conv_in", "time_proj", "time_embedding", "transformer_in", "down_blocks", "mid_block")
_ATTENTION, _PLAIN = ("CrossAttnDownBlock3D", "CrossAttnUpBlock3D"), ("DownBlock3D", "UpBlock3D")


def layers_of(network: nn.Module) -> list[nn.Module]:
    """What ``VideoEncoder`` computes at a time: residual blocks, temporal convolutions and both transformers."""
    kinds = (ResnetBlock2D, TemporalConvLayer, Transformer2DModel, TransformerTemporalModel)
    return [module for module in network.modules() if isinstance(module, kinds)]


class VideoEncoder(nn.Module):
    """What the base and its control network share: the embeddings, the encoder and the middle.

    A subclass has ``conv_in``, ``time_proj``, ``time_embedding``, ``transformer_in``, ``down_blocks``, ``mid_block``
    as ``UNet3DConditionModel`` builds them, and ``config`` with the key "asymmetric".
    """

    gradient_checkpointing: bool
    config: Any
    conv_in: Any
    time_proj: Any
    time_embedding: Any
    transformer_in: Any
    down_blocks: Any
    mid_block: Any

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError where a latent of this size cannot be used with ``asymmetric``."""
        multiple = self.size_multiple
        if self.config["asymmetric"] and (height % multiple != 2 % multiple or width % multiple):
            raise ValueError(
                f"latent size {height}x{width}: this network takes heights of {multiple} n + 2 and widths of "
                f"{multiple} n"
            )

    @property
    def size_multiple(self) -> int:
        """2 to the number of times that sizes are halved."""
        return 2 ** (len(self.down_blocks) - 1)

    def embed_time(self, timestep: Tensor | float, batch: int) -> Tensor:
        """(B, 1, D): the same embedding for all frames of a clip."""
        weight = self.time_embedding.linear_1.weight
        steps = torch.as_tensor(timestep, device=weight.device).reshape(-1).expand(batch)
        return self.time_embedding(self.time_proj(steps).to(weight.dtype))[:, None]

    def embed_latents(self, sample: Tensor) -> Tensor:
        """(B, C, F, H, W) -> features of the first convolution (B, F, H, W, width)."""
        return layers.conv2d(self.conv_in, sample.permute(0, 2, 3, 4, 1))

    def encode(self, x: Tensor, temb: Tensor, text: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features of the first convolution -> those for each skip connection, and the middle's.

        temb (B, F or 1, D), text (n B, L, D).
        """
        x = self._run(layers.temporal_transformer, self.transformer_in, x)
        skips = [x]
        for block in self.down_blocks:
            for index in range(len(block.resnets)):
                x = self._layer(block, index, x, temb, text)
                skips.append(x)
            for down in block.downsamplers or ():
                x = layers.downsample(down, x)
                skips.append(x)
        return skips, self._middle(x, temb, text)

    def _middle(self, x: Tensor, temb: Tensor, text: Tensor) -> Tensor:
        mid = self.mid_block
        for index, (block, conv) in enumerate(zip(mid.resnets, mid.temp_convs, strict=True)):
            if index:
                x = self._run(layers.spatial_transformer, mid.attentions[index - 1], x, text)
                x = self._run(layers.temporal_transformer, mid.temp_attentions[index - 1], x)
            x = self._run(layers.resnet, block, x, layers.branch(temb, len(x)))
            x = self._run(layers.temporal_conv, conv, x)
        return x

    def _layer(self, block: Any, index: int, x: Tensor, temb: Tensor, text: Tensor) -> Tensor:
        """Residual block, temporal convolution and, where the level has them, both transformers."""
        x = self._run(layers.resnet, block.resnets[index], x, layers.branch(temb, len(x)))
        x = self._run(layers.temporal_conv, block.temp_convs[index], x)
        if hasattr(block, "attentions"):
            x = self._run(layers.spatial_transformer, block.attentions[index], x, text)
            x = self._run(layers.temporal_transformer, block.temp_attentions[index], x)
        return x

    def _run(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return recomputed(called, function, *arguments)
        return called(function, *arguments)

    def _finish(self, asymmetric: bool, dropout: float) -> None:
        """What diffusers' constructors have no argument for."""
        for module in self.modules():
            if isinstance(module, (ResnetBlock2D, TemporalConvLayer)):
                for part in module.modules():
                    if isinstance(part, nn.Dropout):
                        part.p = dropout
        if asymmetric:
            for block in self.down_blocks:
                for down in block.downsamplers or ():
                    down.conv.padding = down.padding = (2, 1)


class VideoUNet(VideoEncoder, UNet3DConditionModel):
    """v(x_t, t, text) of a clip.

    Args:
        in_channels, out_channels: of the latents.
        block_out_channels: width of each level; every level but the last halves rows and columns.
        attention_levels: which levels attend (the middle always does).
        layers_per_block: residual blocks per level of the encoder; the decoder has one more.
        cross_attention_dim: width of the text's tokens.
        attention_head_dim: width of a head, everywhere. entry_heads: heads of the temporal transformer at the entry.
        norm_num_groups: groups of every group normalisation.
        asymmetric: True as in the released weights: downsampling pads two rows and one column, upsampling drops the
            first and the last row. Latents then need rows = 2 and columns = 0, modulo ``size_multiple`` (8 of four
            levels). False: any size.
        dropout: of residual blocks and temporal convolutions, in training.
    """

    _supports_gradient_checkpointing = True
    up_blocks: Any
    conv_norm_out: Any
    conv_out: Any

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        attention_levels: Sequence[bool] = (True, True, True, False),
        layers_per_block: int = 2,
        cross_attention_dim: int = 1024,
        attention_head_dim: int = 64,
        entry_heads: int = 8,
        norm_num_groups: int = 32,
        asymmetric: bool = False,
        dropout: float = 0.1,
    ) -> None:
        if len(attention_levels) != len(block_out_channels):
            raise ValueError(f"attention_levels={attention_levels}: one per block_out_channels={block_out_channels}")
        kinds = [_ATTENTION if attends else _PLAIN for attends in attention_levels]
        UNet3DConditionModel.__init__.__wrapped__(  # undecorated: the config is ours, without diffusers' unused keys
            self,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=tuple(down for down, _ in kinds),
            up_block_types=tuple(up for _, up in reversed(kinds)),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            cross_attention_dim=cross_attention_dim,
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
        )
        self.gradient_checkpointing = False
        if entry_heads != 8:  # diffusers' constant
            self.transformer_in = TransformerTemporalModel(
                entry_heads, attention_head_dim, in_channels=block_out_channels[0], norm_num_groups=norm_num_groups
            )
        nn.init.zeros_(self.conv_out.weight)
        self._finish(asymmetric, dropout)

    @classmethod
    def from_diffusers(cls, unet: UNet3DConditionModel) -> VideoUNet:
        """The same network and weights, such as those of ModelScope's text-to-video, run in our layout."""
        config = unet.config
        network = cls(
            in_channels=config["in_channels"],
            out_channels=config["out_channels"],
            block_out_channels=config["block_out_channels"],
            attention_levels=[name == _ATTENTION[0] for name in config["down_block_types"]],
            layers_per_block=config["layers_per_block"],
            cross_attention_dim=config["cross_attention_dim"],
            attention_head_dim=config["attention_head_dim"],
            norm_num_groups=config["norm_num_groups"],
        )
        network.load_state_dict(unet.state_dict())
        return nn.Module.to(network, unet.device, unet.dtype)

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        control: Callable[[list[Tensor], Tensor], tuple[list[Tensor], Tensor]] | None = None,
    ) -> Tensor:
        """Predict v.

        Args:
            sample: latents (B, C, F, H, W). timestep: a number or [B], in 0..999, whole or not.
            encoder_hidden_states: text (n B, L, D); n > 1 gives predictions for n texts per sample.
            control: called with the encoder's features (finest first) and the middle's, (.., F, H, W, C) each;
                returns both with its residuals added.

        Raises:
            ValueError: a size that does not come back from the lowest level.
        """
        self.check_size(*sample.shape[-2:])
        text = encoder_hidden_states
        temb = self.embed_time(timestep, len(sample))
        skips, middle = self.encode(self.embed_latents(sample), temb, text)
        if control is not None:
            skips, middle = control(skips, middle)
        return self.decode(skips, middle, temb, text)

    def decode(self, skips: list[Tensor], x: Tensor, temb: Tensor, text: Tensor) -> Tensor:
        """Middle features and skips (which are used up) -> v (n B, C, F, H, W)."""
        for block in self.up_blocks:
            for index in range(len(block.resnets)):
                x = torch.cat([x, layers.branch(skips.pop(), len(x))], dim=-1)
                x = self._layer(block, index, x, temb, text)
            for up in block.upsamplers or ():
                size = (skips[-1].shape[2], skips[-1].shape[3])
                x = layers.upsample(up, x, size, crop=self.config["asymmetric"])
        x = F.silu(layers.norm_frames(self.conv_norm_out, x))
        return layers.conv2d(self.conv_out, x).permute(0, 4, 1, 2, 3)
