"""A pipeline small enough for tests: random weights, unshuffle codec, no text."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from toolkit.venhancer.model.codec import PixelUnshuffleCodec
from toolkit.venhancer.model.schedule import VideoNoiseSchedule
from toolkit.venhancer.pipeline import VideoEnhancePipeline
from toolkit.zoo.video.controlled_unet import ControlledVideoUNet
from toolkit.zoo.video.controlnet import VideoControlNetModel
from toolkit.zoo.video.unet import VideoUNet


def tiny_pipeline(silent=False, **settings) -> VideoEnhancePipeline:
    """``silent``: v = 0 whatever comes in; else small random weights everywhere."""
    torch.manual_seed(0)
    unet = VideoUNet(
        in_channels=12,
        out_channels=12,
        block_out_channels=(16, 16),
        attention_levels=(False, False),
        layers_per_block=1,
        cross_attention_dim=4,
        attention_head_dim=8,
        entry_heads=1,
        norm_num_groups=4,
        dropout=0.0,
    )
    control = VideoControlNetModel.from_unet(unet)
    if not silent:
        for parameter in [*unet.parameters(), *control.parameters()]:
            nn.init.normal_(parameter, std=0.05)
    defaults = {"diffuses": "residuals", "resize": "bicubic", "blend": True}
    pair = ControlledVideoUNet.from_parts(unet, control).eval()
    settings = defaults | {"tile_rows": 16, "tile_columns": 24, "max_frames": 32} | settings
    return VideoEnhancePipeline(pair, PixelUnshuffleCodec(2), VideoNoiseSchedule(), **settings)


def clip(num_frames=5, height=20, width=30, seed=0) -> np.ndarray:
    """uint8 [N, h, w, 3]: smooth blobs that move."""
    rng = np.random.default_rng(seed)
    y, x, t = np.meshgrid(*(np.linspace(0, 1, size) for size in (height, width, num_frames)), indexing="ij")
    waves = [
        np.sin(2 * np.pi * (a * x + b * y + c * t) + d)
        for a, b, c, d in zip(*rng.uniform(0.5, 2.5, (3, 3)), rng.uniform(0, 6, 3), strict=True)
    ]
    return ((np.stack(waves, axis=-1).transpose(2, 0, 1, 3) * 0.4 + 0.5) * 255).astype(np.uint8)
