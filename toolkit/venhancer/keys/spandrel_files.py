"""``keys=spandrel:FILE``: weights of any architecture that the package spandrel knows, loaded without unpickling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.errors import UserError, brief
from toolkit.plain_files import named_path
from toolkit.venhancer.clips.classic import to_pixels, to_tensor
from toolkit.zoo.importing import load_tensors


class SpandrelUpscaler:
    """Enlarges with a spandrel model of three channels; sides are padded to what it asks for."""

    def __init__(self, model: Any, device: str, name: str) -> None:
        self.model, self.device, self.factor = model, device, int(model.scale)
        self.multiple = int(getattr(model.size_requirements, "multiple_of", 1) or 1)
        self.least = int(getattr(model.size_requirements, "minimum", 0) or 0)
        about = f"{model.architecture.name}, read by spandrel (MIT)"
        self.notice = f"{name}: {about}; the licence of the weights is their owner's"

    @torch.no_grad()
    def enlarge(self, pixels: np.ndarray) -> np.ndarray:
        """As in :class:`toolkit.venhancer.keys.Upscaler`."""
        height, width = pixels.shape[:2]
        below, beyond = (max(self.least, -(-side // self.multiple) * self.multiple) - side for side in (height, width))
        padded = np.pad(pixels, ((0, below), (0, beyond), (0, 0)), mode="edge")
        made = self.model(to_tensor(padded, self.device) / 255) * 255
        return to_pixels(made)[: height * self.factor, : width * self.factor]


def load(source: str, device: str) -> SpandrelUpscaler:
    """The file ``source``. Raises UserError: not there, not weights, unknown, or not for pictures of three channels."""
    path = named_path(source)
    if not path.is_file():
        why = "is a folder; name the file of weights in it" if path.is_dir() else "no such file"
        raise UserError(f"keys=spandrel:{source}: {why}")
    state = _read(path, source)
    try:
        import spandrel
    except (ImportError, RuntimeError) as error:  # the second: a torchvision that was built for another torch
        why = f"needs spandrel, and a torchvision that fits torch, which it imports: {brief(error)}"
        raise UserError(f"keys=spandrel:{source}: {why} (pip install spandrel torchvision)") from None
    try:
        model = spandrel.ModelLoader().load_from_state_dict(state)
    except Exception as error:  # spandrel's own errors, and those of the architectures behind it
        raise UserError(f"keys=spandrel:{source}: {brief(error, 200)}") from None
    if not isinstance(model, spandrel.ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        raise UserError(f"keys=spandrel:{source}: does not make pictures of three channels of such pictures")
    model.to(torch.device(device)).eval()
    return SpandrelUpscaler(model, device, path.name)


def _read(path: Path, source: str) -> dict[str, Any]:
    """The state dict of a file. Raises UserError for what holds more than tensors, or something else."""
    try:
        return load_tensors(path)
    except ValueError as error:
        raise UserError(
            f"keys=spandrel:{source}: is no file of weights alone, .pth or .safetensors ({error})"
        ) from None
