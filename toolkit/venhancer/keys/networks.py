"""``keys=upscaler``: the shipped ``FrameUpscaler``, or that of a run of ``stage=train_keys`` (``upscaler:RUN``)."""

from __future__ import annotations

import numpy as np
import torch

from toolkit import zoo
from toolkit.errors import UserError
from toolkit.venhancer.clips.classic import to_pixels, to_tensor
from toolkit.zoo.video.upscaler import FrameUpscaler


class NetworkUpscaler:
    """Enlarges with a ``FrameUpscaler``."""

    def __init__(self, network: FrameUpscaler, device: str, notice: str = "") -> None:
        self.network, self.device, self.factor, self.notice = network.float(), device, network.factor, notice

    @torch.no_grad()
    def enlarge(self, pixels: np.ndarray) -> np.ndarray:
        """As in :class:`toolkit.venhancer.keys.Upscaler`."""
        return to_pixels(self.network(to_tensor(pixels, self.device) / 255) * 255)


def load(source: str, device: str) -> NetworkUpscaler:
    """Of a run or a folder of ``save_pretrained``; Raises UserError for another network."""
    network = zoo.load(source or "video_upscaler", device=device)
    if not isinstance(network, FrameUpscaler):
        raise UserError(f"keys=upscaler:{source}: holds a {type(network).__name__}; a run of stage=train_keys has one")
    made = "the regression network in the package" if not source else f"the regression network of {source}"
    return NetworkUpscaler(network, device, f"{made}, {network.factor} times")
