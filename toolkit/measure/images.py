"""Images to be measured: a folder, a zip or an ``.npz`` of samples, read in batches of uint8 (n, 3, H, W).

Which files are images, and how one is decoded, is as in training (``toolkit.data.images``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toolkit.data.images.archives import as_folder
from toolkit.data.images.decoding import opened, to_array, upright
from toolkit.data.images.layout import by_suffix, find_images
from toolkit.errors import UserError
from toolkit.measure.arrays import read_samples, samples_shape

_MAX_SIDE = 4096  # an image that says it is larger is refused before it is decoded
_log = logging.getLogger(__name__)


class ImageSet:
    """Images in the order of their names, all of one size; what is passed over is logged.

    Raises UserError: nothing there, a file that is no image, images of several sizes.
    """

    def __init__(self, source: str | Path):
        self.source = Path(source)
        self.files: list[Path] = []
        if self.source.is_dir() or (self.source.suffix == ".zip" and self.source.is_file()):
            found = find_images(self.source if self.source.is_dir() else as_folder(self.source), by_class=False)
            self.files = sorted(found.files, key=str)
            if found.skipped:
                _log.warning("%s: passed over, not read as images: %s", source, by_suffix(found.skipped))
        elif self._is_array:
            self._shape = samples_shape(self.source, "n height width 3")
        else:
            raise UserError(f"{source}: expected a folder or .zip of images, or an .npz of samples as ADM writes them")

    def __len__(self) -> int:
        return self._shape[0] if self._is_array else len(self.files)

    @property
    def _is_array(self) -> bool:
        return self.source.suffix == ".npz" and self.source.is_file()

    def batches(self, size: int) -> Iterator[Tensor]:
        """uint8 (n, 3, H, W) with n <= ``size``; grey images are repeated, transparency is refused."""
        if self._is_array:
            for piece in read_samples(self.source, self._shape, size):
                yield torch.from_numpy(piece).permute(0, 3, 1, 2)
            return
        first = None
        for start in range(0, len(self), size):
            images = []
            for path in self.files[start : start + size]:
                pixels = _decode(path)
                first = first or (path, pixels.shape)
                if pixels.shape != first[1]:
                    raise UserError(
                        f"{path}: is {_size(pixels.shape)} where {first[0]} is {_size(first[1])}; expected one size"
                    )
                images.append(pixels)
            yield torch.from_numpy(np.stack(images))


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]}"


def _decode(path: Path) -> np.ndarray:
    """RGB uint8 (3, H, W). Raises UserError: no image, too large, or transparent, for what lies behind is not known."""
    with opened(path) as image:
        if max(image.size) > _MAX_SIDE:
            raise UserError(f"{path}: {image.width}x{image.height}; expected at most {_MAX_SIDE} pixels a side")
        if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
            raise UserError(f"{path}: mode {image.mode}; expected pictures without transparency")
        return to_array(upright(image), channels=3)
