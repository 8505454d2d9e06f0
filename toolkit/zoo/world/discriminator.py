"""The patch discriminator of iVideoGPT's tokenizer (a PatchGAN as in Paella; Wu et al. 2024, appendix A.1)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """Real or reconstructed, one logit per patch.

    ``depth`` 3x3 convolutions of stride 2, spectrally normalised, double the width up to ``hidden_channels``; leaky
    ReLU, and instance norm on all but the first; then a 1x1 convolution. The release trains with depth 4 and 512.
    Raises ValueError where the width cannot be halved so often.
    """

    def __init__(self, in_channels: int = 3, hidden_channels: int = 512, depth: int = 4):
        super().__init__()
        if depth < 1 or hidden_channels % 2 ** (depth - 1):
            raise ValueError(f"hidden_channels={hidden_channels}: must be a multiple of {2 ** max(0, depth - 1)}")
        layers: list[nn.Module] = []
        width = in_channels
        for level in range(depth):
            wider = hidden_channels >> (depth - 1 - level)
            layers.append(spectral_norm(nn.Conv2d(width, wider, 3, stride=2, padding=1)))
            layers += [nn.InstanceNorm2d(wider)] if level else []
            layers.append(nn.LeakyReLU(0.2))
            width = wider
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> logits (N, 1, h, w), h = H / 2^depth rounded up."""
        return self.head(self.trunk(images))
