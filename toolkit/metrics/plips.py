"""PLIPS: LPIPS's formula on other weights, for want of its own. Comparable within this project only.

LPIPS (Zhang et al. 2018) weighs squared differences of normalised features by heads that were calibrated on
torchvision's SqueezeNet. The heads are those of the ``lpips`` package; the features are Caffe's SqueezeNet 1.1, which
another package ships: the same architecture, trained elsewhere. It rises with blur and noise as LPIPS does, and must
not be compared with published LPIPS.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.data.fetching import fetch
from toolkit.errors import UserError

MEANS = (123.0, 117.0, 104.0)  # of RGB, as Caffe's network was trained; it reads BGR
FIRES = {2: (64, 16, 64), 3: (128, 16, 64), 4: (128, 32, 128), 5: (256, 32, 128)} | {
    6: (256, 48, 192), 7: (384, 48, 192), 8: (384, 64, 256), 9: (512, 64, 256)
}  # fmt: skip
POOL_BEFORE = (2, 4, 6)
TAPS = (3, 5, 6, 7, 8, 9)  # fires whose output is compared, after the first convolution's


class Fire(nn.Module):
    """Squeeze to ``middle`` channels, expand to twice ``side`` (Iandola et al. 2016)."""

    def __init__(self, incoming: int, middle: int, side: int):
        super().__init__()
        self.squeeze = nn.Conv2d(incoming, middle, 1)
        self.one, self.three = nn.Conv2d(middle, side, 1), nn.Conv2d(middle, side, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.one(x), self.three(x)], 1))


class PLIPS(nn.Module):
    """Perceptual distance of two pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, stride=2)
        self.fires = nn.ModuleDict({f"fire{number}": Fire(*sizes) for number, sizes in FIRES.items()})
        widths = [64, *(2 * FIRES[number][2] for number in TAPS)]
        self.heads = nn.ParameterList([nn.Parameter(torch.zeros(1, width, 1, 1)) for width in widths])
        self.requires_grad_(False)

    @classmethod
    def load(cls) -> PLIPS:
        """With its weights, fetched first where they must be. Raises UserError where they cannot be had."""
        network = cls()
        network.read_features(fetch("squeezenet_caffe").path / "squeezenet_v1.1.bin")
        heads = torch.load(fetch("lpips_heads").path / "v0.1/squeeze.pth", weights_only=True, map_location="cpu")
        for number, head in enumerate(network.heads):
            head.copy_(heads[f"lin{number}.model.1.weight"])
        return network.eval()

    def read_features(self, path: Path) -> None:
        """The layers in the file's order: four zero bytes, the weights, the biases, as float32."""
        content = np.fromfile(path, np.float32)
        place = 0
        for layer in self._convolutions():
            if place >= len(content) or content[place] != 0:
                raise UserError(f"{path}: not the float32 weights of SqueezeNet 1.1")
            place += 1
            for parameter in layer.parameters():
                values = torch.from_numpy(content[place : place + parameter.numel()].copy())
                parameter.copy_(values.view_as(parameter))
                place += parameter.numel()

    def _convolutions(self) -> Iterator[nn.Conv2d]:
        yield self.first
        for fire in self.fires.values():
            assert isinstance(fire, Fire)
            yield from (fire.squeeze, fire.one, fire.three)

    def features(self, x: Tensor) -> list[Tensor]:
        """Of RGB (n, 3, h, w) in [0, 255], h and w at least 32: seven maps, normalised over channels."""
        x = (x - x.new_tensor(MEANS).view(1, 3, 1, 1)).flip(1)
        x = F.relu(self.first(x))
        found = [x]
        for number in FIRES:
            if number in POOL_BEFORE:
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            x = self.fires[f"fire{number}"](x)
            if number in TAPS:
                found.append(x)
        return [one / (one.square().sum(1, keepdim=True).sqrt() + 1e-10) for one in found]

    @torch.no_grad()
    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        """The distance (n,): 0 for equal pictures, larger the more they differ to the eye."""
        pairs = zip(self.heads, self.features(x), self.features(reference), strict=True)
        return torch.stack([(head * (a - b).square()).sum(1).mean((1, 2)) for head, a, b in pairs]).sum(0)
