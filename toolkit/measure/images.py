"""Images to be measured: a folder, a zip or an ``.npz`` of samples, read in batches of uint8 (n, 3, H, W)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from toolkit.data.images.archives import ZipArchive
from toolkit.errors import UserError
from toolkit.measure.arrays import read_samples, samples_shape

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
_MAX_SIDE = 4096  # an image that says it is larger is refused before it is decoded


class ImageSet:
    """Images in the order of their names, all of one size.

    Raises UserError: nothing there, a file that is no image, images of several sizes.
    """

    def __init__(self, source: str | Path):
        self.source = Path(source)
        self._archive: ZipArchive | None = None
        if self.source.is_dir():
            self.names = sorted(str(path) for path in self.source.rglob("*") if _is_image(path.name) and path.is_file())
        elif self.source.suffix == ".zip" and self.source.is_file():
            self._archive = ZipArchive(self.source)
            self.names = sorted(_images_below(self._archive, ""))
        elif self._is_array:
            self.names = []
            self._shape = samples_shape(self.source, "n height width 3")
        else:
            raise UserError(f"{source}: expected a folder or .zip of images, or an .npz of samples as ADM writes them")
        if not len(self):
            raise UserError(f"{source}: holds no image ({', '.join(SUFFIXES)})")

    def __len__(self) -> int:
        return self._shape[0] if self._is_array else len(self.names)

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
            for name in self.names[start : start + size]:
                pixels = _decode(name, self._archive)
                first = first or (name, pixels.shape)
                if pixels.shape != first[1]:
                    raise UserError(
                        f"{name}: is {_size(pixels.shape)} where {first[0]} is {_size(first[1])}; expected one size"
                    )
                images.append(pixels)
            yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def _images_below(archive: ZipArchive, folder: str) -> Iterator[str]:
    for name, is_folder in archive.entries(folder).items():
        path = f"{folder}/{name}" if folder else name
        if is_folder:
            yield from _images_below(archive, path)
        elif _is_image(name):
            yield path


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _decode(name: str, archive: ZipArchive | None) -> np.ndarray:
    """RGB uint8 (H, W, 3)."""
    try:
        data = archive.read(name) if archive else Path(name).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is the lower one
            image = Image.open(io.BytesIO(data))
        if max(image.size) > _MAX_SIDE:
            raise UserError(f"{name}: {image.width}x{image.height}; expected at most {_MAX_SIDE} pixels a side")
        if image.mode not in ("RGB", "L", "1", "P", "CMYK", "YCbCr") or "transparency" in image.info:
            raise UserError(f"{name}: mode {image.mode}; expected 8-bit colour or grey without transparency")
        return np.asarray(image.convert("RGB"))
    except UserError:
        raise
    except Exception as error:  # whatever a decoder raises for a damaged file
        raise UserError(f"{name}: cannot be read as an image ({str(error).splitlines()[0][:120]})") from None
