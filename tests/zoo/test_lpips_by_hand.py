"""LPIPS written out with plain convolutions: five depths, unit features, weighed squares, means over places."""

import torch
from torch.nn import functional as F

from toolkit.zoo import lpips

WIDTHS = [[8, 8], [16, 16], [32] * 3, [64] * 3, [64] * 3]  # VGG16's convolutions, an eighth as wide; poolings between
PLACES = [[0, 2], [5, 7], [10, 12, 14], [17, 19, 21], [24, 26, 28]]  # their numbers in torchvision's vgg16.features


def test_distance_is_that_of_unit_features_weighed_by_the_heads(monkeypatch):
    groups = [[*group, "M"] for group in WIDTHS]
    monkeypatch.setattr(lpips, "VGG_LAYERS", [layer for group in groups for layer in group][:-1])
    random, weights, width = torch.Generator().manual_seed(0), {}, 3
    for group, places in zip(WIDTHS, PLACES, strict=True):
        for wide, place in zip(group, places, strict=True):
            weights[f"features.{place}.weight"] = (
                torch.randn(wide, width, 3, 3, generator=random) / (4.5 * width) ** 0.5
            )
            weights[f"features.{place}.bias"] = 0.1 * torch.randn(wide, generator=random)
            width = wide
    weights |= {f"lin{k}": torch.rand(1, group[-1], 1, 1, generator=random) for k, group in enumerate(WIDTHS)}
    x, y = torch.rand(2, 2, 3, 16, 16, generator=random)
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    a, b = (((2 * image - 1) - shift) / scale for image in (x, y))
    wanted = torch.zeros(2)
    for k, places in enumerate(PLACES):
        a, b = (F.max_pool2d(one, 2) if k else one for one in (a, b))
        for place in places:
            layer = weights[f"features.{place}.weight"], weights[f"features.{place}.bias"]
            a, b = (F.relu(F.conv2d(one, *layer, padding=1)) for one in (a, b))
        gap = a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)
        wanted += (gap.square() * weights[f"lin{k}"]).sum(1).mean((1, 2))
    assert wanted.min() > 0.1
    torch.testing.assert_close(lpips.LPIPS(weights)(x, y), wanted, rtol=1e-4, atol=0)
