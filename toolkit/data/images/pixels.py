"""Changing the size and channels of images that are already in memory, uint8 (n, C, H, W)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.data.config import Data
from toolkit.data.sets import Dataset, MemorySplit, hold_out, limit_train
from toolkit.errors import UserError
from toolkit.runs.machine import check_side

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL converts to grey
_CHUNK = 4096


def pool_to(images: Tensor, size_px: int, padding_px: int) -> Tensor:
    """Pad by black and average-pool to ``size_px``, which must divide the padded size."""
    padded = F.pad(images, [padding_px] * 4)
    factor = padded.shape[-1] // size_px
    assert factor * size_px == padded.shape[-1]
    pooled = [F.avg_pool2d(chunk.float(), factor) for chunk in padded.split(_CHUNK)]
    return torch.cat(pooled).round().to(torch.uint8)


def resize(images: Tensor, size_px: int) -> Tensor:
    """Crop the centre square and resize it, antialiased bicubic."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[..., top : top + side, left : left + side]
    if side == size_px:
        return square
    resized = [
        F.interpolate(chunk.float(), (size_px, size_px), mode="bicubic", antialias=True)
        for chunk in square.split(_CHUNK)
    ]
    return torch.cat(resized).round().clamp(0, 255).to(torch.uint8)


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Grey to colour by repetition, colour to grey by luma. Raises UserError for other counts than 1 and 3."""
    if channels not in (1, 3):
        raise UserError(f"data.channels={channels}: must be 1 (grey) or 3 (colour)")
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.repeat(1, 3, 1, 1)
    weights = torch.tensor(_LUMA).view(1, 3, 1, 1)
    return torch.cat([(c * weights).sum(1, keepdim=True) for c in images.split(_CHUNK)]).round().to(torch.uint8)


def image_set(
    config: Data,
    train: tuple[np.ndarray | Tensor, np.ndarray],
    test: tuple[np.ndarray | Tensor, np.ndarray],
    class_names: tuple[str, ...],
    licence: str,
    source: str,
    units: np.ndarray | None = None,
) -> Dataset:
    """A Dataset from (uint8 images (n, C, H, W), labels) for training and test; the rest as ``config`` asks.

    Training images of the same ``units`` value are not parted between the training and validation splits.
    """

    if config.size_px is not None:
        check_side("data.size_px", config.size_px, train[0].shape[1], len(train[0]) + len(test[0]))

    def prepare(images: np.ndarray | Tensor) -> Tensor:
        images = torch.as_tensor(images)
        images = images if config.size_px is None else resize(images, config.size_px)
        return images if config.channels is None else to_channels(images, config.channels)

    kept, held_out = hold_out(train[1], len(train[1]), config.valid_fraction, "valid", units)
    kept = limit_train(kept, config.num_train)
    images, labels = prepare(train[0]), np.asarray(train[1])
    return Dataset(
        name=config.name,
        train=MemorySplit(images[kept], labels[kept], config.class_labels),
        valid=MemorySplit(images[held_out], labels[held_out], config.class_labels),
        test=MemorySplit(prepare(test[0]), test[1], config.class_labels),
        num_classes=len(class_names) if config.class_labels else 0,
        class_names=class_names,
        licence=licence,
        source=source,
    )
