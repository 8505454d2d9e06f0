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
from toolkit.data.images.images import each_or_why, ends_well, shown_size
from toolkit.data.images.layout import by_suffix, find_images
from toolkit.errors import UserError, few
from toolkit.measure.arrays import read_samples, samples_shape

_MAX_SIDE = 4096  # an image that says it is larger is refused before it is decoded
_log = logging.getLogger(__name__)


class ImageSet:
    """Images in the order of their names, all of one size; what is passed over is logged.

    most: only the first so many. Every header and the end of every file is looked at.
    Raises UserError: fewer than two, a file that is no image, is damaged or transparent, images of several sizes.
    """

    def __init__(self, source: str | Path, most: int | None = None):
        self.source = Path(source)
        self.files: list[Path] = []
        if self.source.is_dir() or (self.source.suffix == ".zip" and self.source.is_file()):
            found = find_images(self.source if self.source.is_dir() else as_folder(self.source), by_class=False)
            self.files = sorted(found.files, key=str)[:most]
            if found.skipped:
                _log.warning("%s: passed over, not read as images: %s", source, by_suffix(found.skipped))
        elif self._is_array:
            self._shape = samples_shape(self.source, "n height width 3")
        else:
            raise UserError(f"{source}: expected a folder or .zip of images, or an .npz of samples as ADM writes them")
        if self.files:
            self._check_files()
        if len(self) < 2:
            raise UserError(f"{source}: {len(self)} image; expected two or more")

    def _check_files(self) -> None:
        looked_at = each_or_why(_look, self.files)
        bad = [str(one) for one in looked_at if isinstance(one, UserError)]
        if len(bad) > 1:
            raise UserError(f"{len(bad)} of {len(self)} images cannot be measured: {few(bad, 5)}")
        if bad:
            raise UserError(bad[0])
        for path, size in zip(self.files, looked_at, strict=True):
            if size != looked_at[0]:
                (width, height), (its_width, its_height) = looked_at[0], size
                raise UserError(
                    f"{path}: is {its_width}x{its_height} where {self.files[0]} is {width}x{height}; expected one size"
                )

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
        for start in range(0, len(self), size):
            yield torch.from_numpy(np.stack([_decode(path) for path in self.files[start : start + size]]))


def _look(path: Path) -> tuple[int, int]:
    """Width and height. Raises UserError: no image, too large, damaged, transparent (what is behind is not known)."""
    with opened(path) as image:
        if max(image.size) > _MAX_SIDE:
            raise UserError(f"{path}: {image.width}x{image.height}; expected at most {_MAX_SIDE} pixels a side")
        if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
            raise UserError(f"{path}: mode {image.mode}; expected pictures without transparency")
        if not ends_well(path, image.format):
            image.load()
        return shown_size(image)


def _decode(path: Path) -> np.ndarray:
    """RGB uint8 (3, H, W). Raises UserError for a damaged file."""
    with opened(path) as image:
        return to_array(upright(image), channels=3)
