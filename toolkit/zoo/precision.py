"""The widest numbers of a device."""

from __future__ import annotations

import torch

WITHOUT_FLOAT64 = ("mps",)


def widest_float(device: torch.device) -> torch.dtype:
    """float64, for states and sums that need its digits; float32 on a device that has none."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64
