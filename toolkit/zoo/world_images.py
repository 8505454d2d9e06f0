"""Images at the border of the world model: bytes outside, floating point in [0,1] with channels first inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolkit.schema import UserError


def as_images(images: Any, num_frames: int | None, size: int, name: str) -> Tensor:
    """Clips (B,T,H,W,3) or (B,T,3,H,W), uint8 or floating point in [0,1] -> floating point (B,T,3,H,W).

    Raises UserError naming what does not fit: ``num_frames`` T (None: any), H = W = ``size``, dtype, range.
    """
    images = torch.as_tensor(images)
    shape = tuple(images.shape)
    if len(shape) != 5 or (shape[2:] != (size, size, 3) and shape[2:] != (3, size, size)):
        raise UserError(f"{name} of shape {shape}: expected (rows, frames, {size}, {size}, 3)")
    if num_frames not in (None, shape[1]):
        raise UserError(f"{name}: {shape[1]} frames, expected {num_frames}")
    if shape[2:] != (3, size, size):
        images = images.permute(0, 1, 4, 2, 3)
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise UserError(f"{name} of dtype {images.dtype}: expected uint8, or floating point in [0, 1]")
    if not (images >= 0).all() or not (images <= 1).all():
        raise UserError(f"{name}: floating-point values outside [0, 1], or not finite; bytes must be uint8")
    return images


def as_bytes(images: Tensor) -> Tensor:
    """Floating point (...,3,H,W), clamped to [0,1] -> uint8 (...,H,W,3)."""
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1)
