"""The Inception network that published FIDs are taken in (Szegedy et al. 2015; TensorFlow's graph of 2015-12-05).

The layers are those of Inception v3 (Szegedy et al. 2016, table 1) with the graph's own habits: its bilinear resizing
to 299 x 299 takes no half pixels, average pools leave the padding out, the last block pools by the maximum, and there
are 1,008 classes. Names of tensors are those of the ``pt_inception-2015-12-05`` file that pytorch-fid and
torch-fidelity read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.errors import UserError
from toolkit.zoo.importing import load_tensors

NUM_FEATURES, NUM_CLASSES, SIDE = 2048, 1008, 299
PUBLISHED = "6726825d"  # how the SHA-256 of pt_inception-2015-12-05-6726825d.pth begins
_NUM_SPATIAL = 7  # channels that sFID takes, as ADM's evaluator does


class InceptionFeatures(NamedTuple):
    """Of n images: ``pool`` (n, 2048); ``spatial`` (n, 17 * 17 * 7), what sFID takes; ``logits`` (n, 1008), without the
    bias of the last layer, as the official scores take them."""

    pool: Tensor
    spatial: Tensor
    logits: Tensor


def resize_as_tensorflow(images: Tensor, side: int = SIDE) -> Tensor:
    """(n, C, H, W) -> (n, C, side, side) as ``tf.image.resize_bilinear`` of TensorFlow 1: pixel i of the result lies at
    i * H / side of the source, with no half pixel and no antialiasing; beyond the last row it repeats the last."""

    def weights(length: int) -> tuple[Tensor, Tensor, Tensor]:
        place = torch.arange(side, device=images.device, dtype=torch.float32) * (length / side)
        low = place.floor().long().clamp_max(length - 1)
        return low, (low + 1).clamp_max(length - 1), (place - low).to(images.dtype)

    (top, bottom, down), (left, right, across) = weights(images.shape[-2]), weights(images.shape[-1])
    rows_top, rows_bottom = images[..., top, :], images[..., bottom, :]
    upper = torch.lerp(rows_top[..., left], rows_top[..., right], across)
    lower = torch.lerp(rows_bottom[..., left], rows_bottom[..., right], across)
    return torch.lerp(upper, lower, down[:, None])


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm (eps 0.001), ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int | tuple[int, int], stride: int = 1):
        super().__init__()
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (size[0] // 2, size[1] // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _valid(in_channels: int, out_channels: int, stride: int = 1) -> ConvNorm:
    """A 3 x 3 convolution without padding."""
    layer = ConvNorm(in_channels, out_channels, 3, stride)
    layer.conv.padding = (0, 0)
    return layer


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """35 x 35: branches of 1 x 1, 5 x 5 and twice 3 x 3."""

    def __init__(self, channels: int, pool_channels: int):
        super().__init__()
        self.branch1x1 = ConvNorm(channels, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = ConvNorm(channels, 48, 1), ConvNorm(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = ConvNorm(channels, 64, 1), ConvNorm(64, 96, 3)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3)
        self.branch_pool = ConvNorm(channels, pool_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch5x5_2(self.branch5x5_1(x))
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), wide, twice, self.branch_pool(_average(x))], 1)


class BlockB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch3x3 = _valid(channels, 384, 2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = ConvNorm(channels, 64, 1), ConvNorm(64, 96, 3)
        self.branch3x3dbl_3 = _valid(96, 96, 2)

    def forward(self, x: Tensor) -> Tensor:
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), twice, F.max_pool2d(x, 3, 2)], 1)


class BlockC(nn.Module):
    """17 x 17: 7 x 7 convolutions as rows and columns of ``inner`` channels."""

    def __init__(self, inner: int):
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = ConvNorm(768, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = ConvNorm(768, inner, 1), ConvNorm(inner, inner, row)
        self.branch7x7_3 = ConvNorm(inner, 192, column)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = ConvNorm(768, inner, 1), ConvNorm(inner, inner, column)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = ConvNorm(inner, inner, row), ConvNorm(inner, inner, column)
        self.branch7x7dbl_5 = ConvNorm(inner, 192, row)
        self.branch_pool = ConvNorm(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_average(x))], 1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = ConvNorm(768, 192, 1), _valid(192, 320, 2)
        self.branch7x7x3_1, self.branch7x7x3_2 = ConvNorm(768, 192, 1), ConvNorm(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = ConvNorm(192, 192, (7, 1)), _valid(192, 192, 2)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), wide, F.max_pool2d(x, 3, 2)], 1)


class BlockE(nn.Module):
    """8 x 8: rows and columns side by side. The graph's last block pools by the maximum (``max_pool``)."""

    def __init__(self, channels: int, max_pool: bool):
        super().__init__()
        row, column = (1, 3), (3, 1)
        self.max_pool = max_pool
        self.branch1x1 = ConvNorm(channels, 320, 1)
        self.branch3x3_1 = ConvNorm(channels, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = ConvNorm(384, 384, row), ConvNorm(384, 384, column)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = ConvNorm(channels, 448, 1), ConvNorm(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = ConvNorm(384, 384, row), ConvNorm(384, 384, column)
        self.branch_pool = ConvNorm(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once, twice = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self.max_pool else _average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(once), self.branch3x3_2b(once)]
        parts += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """Features of uint8 images. Always in eval mode: batch norm by its stored statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = _valid(3, 32, 2), _valid(32, 32)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = ConvNorm(64, 80, 1), _valid(80, 192)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = BlockC(128), BlockC(160), BlockC(160), BlockC(192)
        self.Mixed_7a = BlockD()
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, max_pool=False), BlockE(2048, max_pool=True)
        self.fc = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> InceptionFeatures:
        """``images``: uint8 (n, 3, H, W), any size; resized by the graph's own rule, to (value - 128) / 128."""
        x = (resize_as_tensorflow(images.to(self.fc.weight.dtype)) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        # mixed_6/conv of the graph; flattened (row, column, channel) as TensorFlow has it: references store its mean
        spatial = self.Mixed_6d.branch1x1(x)[:, :_NUM_SPATIAL].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(x)))))
        pool = x.mean((2, 3))
        return InceptionFeatures(pool, spatial, pool @ self.fc.weight.T)


def load_inception(path: str | Path) -> tuple[Inception, str]:
    """The network with the weights of ``path``, and the file's SHA-256.

    ``path``: ``pt_inception-2015-12-05-6726825d.pth``, or the same tensors as ``.safetensors``. FIDs compare with
    published ones only where the digest begins with PUBLISHED.

    Raises UserError: no such file, not a file of tensors, or tensors of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; expected the Inception weights pt_inception-2015-12-05-6726825d.pth "
            "(the releases of pytorch-fid and of torch-fidelity have it)"
        )
    try:
        tensors = load_tensors(path)
    except ValueError as error:
        raise UserError(f"{path}: not a file of tensors ({error})") from None
    with torch.device("meta"):
        network = Inception()
    known = network.state_dict()
    optional = {name for name in known if name.endswith("num_batches_tracked")}
    shapes = (
        {name: getattr(value, "shape", None) for name, value in tensors.items()} if isinstance(tensors, dict) else {}
    )
    wrong = [name for name in known if name not in optional and shapes.get(name) != known[name].shape]
    wrong += [name for name in shapes if name not in known]
    if wrong:
        raise UserError(
            f"{path}: not Inception's weights of 2015-12-05 ({len(wrong)} tensors differ, such as {wrong[0]})"
        )
    network.to_empty(device="cpu")
    network.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=False)
    return network, _sha256(path)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
