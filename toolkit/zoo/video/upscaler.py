"""A network that enlarges single frames by a whole factor: convolutions at the small size, pixels shuffled at the end.

The form is that of EDSR's baseline (Lim et al. 2017, arXiv 1707.02921), without its steps of enlargement: one
sub-pixel convolution (Shi et al. 2016), and what is learned is the difference to bicubic enlargement.
"""

from __future__ import annotations

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), convolutions of 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class FrameUpscaler(ModelMixin, ConfigMixin):
    """RGB (B, 3, h, w) in [0, 1] -> (B, 3, factor h, factor w); values may leave the range a little.

    Before training it gives bicubic enlargement exactly.

    Args:
        factor: of the sides. channels: of every hidden layer. num_blocks: residual blocks of two convolutions.
    """

    config_name = "config.json"  # type: ignore[assignment]

    @register_to_config
    def __init__(self, factor: int = 4, channels: int = 48, num_blocks: int = 8) -> None:
        super().__init__()
        self.entry = nn.Conv2d(3, channels, 3, padding=1)
        blocks = [ResidualBlock(channels) for _ in range(num_blocks)]
        self.blocks = nn.Sequential(*blocks)
        self.exit = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, 3 * factor**2, 3, padding=1)
        for conv in [*(block.second for block in blocks), self.last]:
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge ``x``."""
        features = self.entry(x - 0.5)
        features = features + self.exit(self.blocks(features))
        added = F.pixel_shuffle(self.last(features), self.factor)
        return F.interpolate(x, scale_factor=self.factor, mode="bicubic", align_corners=False) + added
