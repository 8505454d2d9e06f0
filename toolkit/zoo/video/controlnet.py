"""The trainable half of VEnhancer: a copy of the base's encoder that reads the low-quality key frames.

He et al. 2024 (arXiv 2407.07667) section 3.2: each frame's features and time embedding are conditioned by what is
known of that frame: key frames by their noised low-quality latent, the noise level and the down-scaling factor,
frames to be interpolated by nothing ("video-aware conditioning", equations 6-17). Every path out of this network, and
every path of the conditions into it, starts at zero, so that a new one changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.zoo.video import layers
from toolkit.zoo.video.unet import ENCODER_KEYS, ENCODER_PARTS, VideoEncoder, VideoUNet

CONDITIONING = ("video_aware", "shared", "none")


class VideoControlNetModel(VideoEncoder, ModelMixin, ConfigMixin):
    """Residuals for the base's skip connections and middle, given the key frames.

    Args: those of ``VideoUNet`` that shape its encoder, and
        conditioning_channels: of the key frames' latents.
        conditioning: where noise level and scale are told: "video_aware", to the key frames only (the paper's);
            "shared", to all frames alike; "none", not at all (both for comparison).
    """

    config_name = "config.json"  # type: ignore[assignment]
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        conditioning_channels: int = 4,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        attention_levels: Sequence[bool] = (True, True, True, False),
        layers_per_block: int = 2,
        cross_attention_dim: int = 1024,
        attention_head_dim: int = 64,
        entry_heads: int = 8,
        norm_num_groups: int = 32,
        asymmetric: bool = False,
        dropout: float = 0.1,
        conditioning: str = "video_aware",
    ) -> None:
        if conditioning not in CONDITIONING:
            raise ValueError(f"conditioning={conditioning}: must be one of {', '.join(CONDITIONING)}")
        super().__init__()
        base = VideoUNet(**{key: value for key, value in locals().items() if key in ENCODER_KEYS})
        for part in ENCODER_PARTS:
            setattr(self, part, getattr(base, part))
        self.gradient_checkpointing = False
        first, time_width = block_out_channels[0], 4 * block_out_channels[0]
        self.cond_conv_in = zeroed(nn.Conv2d(conditioning_channels, first, 3, padding=1))
        self.noise_proj = zeroed(nn.Linear(time_width, time_width))
        self.scale_embedding = TimestepEmbedding(first, time_width)
        zeroed(self.scale_embedding.linear_2)
        widths = skip_widths(block_out_channels, layers_per_block)
        self.controlnet_down_blocks = nn.ModuleList(zeroed(nn.Conv2d(width, width, 1)) for width in widths)
        self.controlnet_mid_block = zeroed(nn.Conv2d(block_out_channels[-1], block_out_channels[-1], 1))

    @classmethod
    def from_unet(
        cls, unet: VideoUNet, load_weights_from_unet: bool = True, conditioning: str = "video_aware"
    ) -> VideoControlNetModel:
        """A control network for ``unet`` that starts as a copy of its encoder and middle, and as a no-op."""
        config = {key: unet.config[key] for key in ENCODER_KEYS}
        control = cls(**config, conditioning_channels=unet.config["in_channels"], conditioning=conditioning)
        weight: Any = unet.conv_in.weight
        nn.Module.to(control, weight.device, weight.dtype)  # ModelMixin.to warns of every dtype
        if load_weights_from_unet:
            state, ours = unet.state_dict(), control.state_dict()
            shared = {name: state[name] for name in ours if name in state}
            control.load_state_dict(ours | shared)
        return control

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        key_frame_index: Tensor,
        noise_level: Tensor | float,
        scale: Tensor | float,
        conditioning_scale: float = 1.0,
    ) -> tuple[list[Tensor], Tensor]:
        """Residuals for the skips, finest first, and for the middle: features (n B, F, H, W, C) each.

        Args:
            sample: noisy latents (B, C, F, H, W). timestep, encoder_hidden_states: as the base's.
            controlnet_cond: (noised) latents of key frames (B, C, K, H, W).
            key_frame_index: int64 (B, F): which of the K belongs to a frame, -1 for a frame to be interpolated.
            noise_level: step in 0..999 to which the key frames' latents were noised; a number or [B].
            scale: s, the down-scaling factor of the key frames; a number or [B]; need not be whole.
            conditioning_scale: the residuals' factor.

        Raises:
            ValueError: shapes that do not fit, or an index outside -1..K - 1 (which compiled code does not look at).
        """
        self.check_size(*sample.shape[-2:])
        _check_keys(sample, controlnet_cond, key_frame_index)
        x = self._condition_latents(self.embed_latents(sample), controlnet_cond, key_frame_index)
        temb = self.embed_conditions(timestep, noise_level, scale, key_frame_index)
        skips, middle = self.encode(x, temb, encoder_hidden_states)
        for index, conv in enumerate(self.controlnet_down_blocks):
            skips[index] = _project(conv, skips[index], conditioning_scale)
        return skips, _project(self.controlnet_mid_block, middle, conditioning_scale)

    def _condition_latents(self, x: Tensor, cond: Tensor, index: Tensor) -> Tensor:
        """First-layer features, plus those of the low-quality latent for key frames."""
        hints = layers.conv2d(self.cond_conv_in, cond.permute(0, 2, 3, 4, 1))  # B K H W C
        rows = torch.arange(len(x), device=x.device)[:, None]
        is_key = (index >= 0)[:, :, None, None, None]
        return x + hints[rows, index.clamp(min=0)] * is_key

    def embed_conditions(
        self, timestep: Tensor | float, noise_level: Tensor | float, scale: Tensor | float, key_frame_index: Tensor
    ) -> Tensor:
        """(B, F or 1, D): the time for every frame, noise level and scale added for key frames."""
        batch = len(key_frame_index)
        time = self.embed_time(timestep, batch)
        if self.config["conditioning"] == "none":
            return time
        known = self.noise_proj(self.embed_time(noise_level, batch))
        factor = torch.as_tensor(scale, device=time.device).reshape(-1).expand(batch)
        known = known + self.scale_embedding(self.time_proj(factor).to(time.dtype))[:, None]
        if self.config["conditioning"] == "shared":
            return time + known
        return time + known * (key_frame_index >= 0)[:, :, None]


def _check_keys(sample: Tensor, cond: Tensor, index: Tensor) -> None:
    batch, _, frames, height, width = sample.shape
    if len(cond) != batch or tuple(cond.shape[-2:]) != (height, width):
        raise ValueError(f"controlnet_cond {tuple(cond.shape)}: batch and size must be those of {tuple(sample.shape)}")
    if tuple(index.shape) != (batch, frames):
        raise ValueError(f"key_frame_index {tuple(index.shape)}: must be {(batch, frames)}")
    if torch.compiler.is_compiling():  # values would break the graph
        return
    has_values = type(index) is Tensor and index.device.type != "meta"
    if has_values and not -1 <= int(index.min()) <= int(index.max()) < cond.shape[2]:
        raise ValueError(f"key_frame_index: must lie in -1..{cond.shape[2] - 1}, found {index.flatten().tolist()}")


def _project(conv: Any, x: Tensor, factor: float) -> Tensor:
    y = F.linear(x, conv.weight.flatten(1), conv.bias)
    return y if factor == 1 else y * factor


def skip_widths(block_out_channels: Sequence[int], layers_per_block: int) -> list[int]:
    """Width of every skip connection, in the encoder's order."""
    widths = [block_out_channels[0]]
    for level, width in enumerate(block_out_channels):
        widths += [width] * (layers_per_block + (level < len(block_out_channels) - 1))
    return widths


def zeroed(module: Any) -> Any:
    """The module with all its parameters at zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
