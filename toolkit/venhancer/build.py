"""From the config to networks: the base, its control network, the codec, and the pipeline that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import UNet3DConditionModel

from toolkit import zoo
from toolkit.errors import UserError
from toolkit.venhancer.config import EnhanceVideo
from toolkit.venhancer.model.codec import PixelUnshuffleCodec, as_codec
from toolkit.venhancer.model.loading import load_text_encoder, load_vae
from toolkit.venhancer.model.schedule import VideoNoiseSchedule
from toolkit.venhancer.pipeline import VideoEnhancePipeline
from toolkit.zoo.video.controlled_unet import ControlledVideoUNet
from toolkit.zoo.video.controlnet import VideoControlNetModel
from toolkit.zoo.video.unet import VideoUNet


def build_vae(config: EnhanceVideo) -> Any:
    """The codec's module. Raises UserError where an autoencoder is asked for and none is named."""
    network = config.network
    if network.codec == "unshuffle":
        return PixelUnshuffleCodec(network.codec_factor)
    if not network.vae:
        raise UserError("network.vae: must name an autoencoder (folder or hub id), or take network.codec=unshuffle")
    return load_vae(network.vae)


def build_base(config: EnhanceVideo, channels: int) -> VideoUNet:
    """``init``, or a new one. Raises UserError for a base of another kind or width."""
    network = config.network
    if config.init:
        return _load_base(config.init, channels)
    levels = len(network.block_out_channels)
    try:
        return VideoUNet(
            in_channels=channels,
            out_channels=channels,
            block_out_channels=network.block_out_channels,
            attention_levels=[level < network.attention_levels for level in range(levels)],
            layers_per_block=network.layers_per_block,
            cross_attention_dim=network.cross_attention_dim,
            attention_head_dim=network.attention_head_dim,
            entry_heads=network.entry_heads,
            norm_num_groups=network.norm_num_groups,
            asymmetric=network.asymmetric,
            dropout=network.dropout,
        )
    except ValueError as error:
        raise UserError(f"network: {error}") from None


def _load_base(source: str, channels: int) -> VideoUNet:
    found = zoo.load(source, part="unet" if Path(source, "unet").is_dir() else None)
    if isinstance(found, ControlledVideoUNet):
        found = found.unet
    if isinstance(found, UNet3DConditionModel) and not isinstance(found, VideoUNet):
        found = VideoUNet.from_diffusers(found)
    if not isinstance(found, VideoUNet) or found.config["in_channels"] != channels:
        raise UserError(f"init={source}: expected a video UNet of {channels} latent channels")
    return found


def build_pipeline(
    config: EnhanceVideo, base: VideoUNet | None = None, vae: Any = None, text: tuple[Any, Any] | None = None
) -> VideoEnhancePipeline:
    """Everything new but ``base``, which is trained already (or not, where both are trained together).

    vae, text: an autoencoder, and a text encoder with its tokenizer, in place of those that the config names.
    """
    network, vae = config.network, vae or build_vae(config)
    base = base if base is not None else build_base(config, as_codec(vae).channels)
    control = VideoControlNetModel.from_unet(base, conditioning=network.conditioning)
    encoder, tokenizer = text or (load_text_encoder(network.text_encoder) if network.text_encoder else (None, None))
    return VideoEnhancePipeline(
        ControlledVideoUNet.from_parts(base, control),
        vae,
        VideoNoiseSchedule(),
        encoder,
        tokenizer,
        diffuses=network.diffuses,
        data_std=network.data_std,
        resize=network.resize,
        blend=network.blend,
        tile_rows=network.tile_rows,
        tile_columns=network.tile_columns,
        max_frames=max(32, config.data.num_frames),
    )
