"""From an image file to an array: opened within a limit, turned, flattened, cropped, resized by a filter of a name."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

from toolkit.data.images.archives import ArchivePath
from toolkit.data.images.suffixes import open_picture
from toolkit.errors import UserError
from toolkit.plain_files import why

ORIENTATION = 0x0112  # EXIF's tag
MOST_PIXELS = 178_956_970  # Pillow's own limit, where no key sets another
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error)


@dataclass(frozen=True)
class Reading:
    """How pictures are read: to ``shape`` (C, H, W), resized by the filter ``resize`` (None: they keep their size).

    max_pixels: a picture that says it has more is refused before it is decoded.
    """

    shape: tuple[int, ...]
    resize: str | None
    max_pixels: int


@contextmanager
def opened(
    path: str | Path, max_pixels: int | None = None, content: bytes | None = None
) -> Iterator[ImageFile.ImageFile]:
    """The picture, its header read. Raises UserError, also for what goes wrong within the block, naming the file.

    max_pixels: of ``data.max_pixels``; None is ``MOST_PIXELS``. content: the file's bytes, where they are at hand.
    """
    most = MOST_PIXELS if max_pixels is None else max_pixels
    try:
        # Pillow refuses twice as many, and from here warns: we refuse. Its limit is the process's, and stays with
        # figures and reports: it is never lowered for a data set of small pictures.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, most)
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        with _opened(path, content) as image:
            if image.width * image.height > most:
                raise UserError(f"{path}: {_too_large(f'{image.width}x{image.height} pixels', max_pixels)}")
            yield image
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {_too_large('the picture', max_pixels)}") from error
    except UserError:
        raise
    except UNREADABLE as error:
        reason = "its content is of no known image format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(f"{path}: not a readable image ({why(path, reason)})") from error


def _opened(path: str | Path, content: bytes | None) -> ImageFile.ImageFile:
    if content is not None:
        return open_picture(io.BytesIO(content))
    return path.image() if isinstance(path, ArchivePath) else open_picture(path)


def _too_large(what: str, max_pixels: int | None) -> str:
    if max_pixels is None:
        return f"{what} is more than {MOST_PIXELS} pixels"
    return f"{what} is more than data.max_pixels={max_pixels}; if the file is to be trusted, set that higher"


def decode(path: Path, reading: Reading) -> np.ndarray:
    """The picture as uint8 ``reading.shape`` (C, H, W), turned as its EXIF says.

    Raises UserError naming a file that is unreadable, too large or of another size.
    """
    channels, height, width = reading.shape
    with opened(path, reading.max_pixels) as image:
        if reading.resize == "bicubic":
            image.draft(None, (2 * width, 2 * height))  # JPEG only: a smaller, faster decode that is still larger
        size = width if reading.resize else None
        array = to_array(upright(image), channels, size, reading.resize or "bicubic")
    if array.shape != tuple(reading.shape):
        raise UserError(f"{path}: is {array.shape[2]}x{array.shape[1]} pixels, not {width}x{height}; set data.size_px")
    return array


def to_array(image: Image.Image, channels: int, size_px: int | None = None, resize: str = "bicubic") -> np.ndarray:
    """uint8 (channels, H, W): palettes resolved, transparency laid on white, 16 bits brought to 8.

    ``size_px`` makes it a square of that edge, by the filter ``resize`` of ``FILTERS``.
    """
    flat, mode = flattened(image), "L" if channels == 1 else "RGB"
    flat = flat if flat.mode == mode else flat.convert(mode)  # which would copy a picture of gigabytes
    if size_px is not None:
        flat = FILTERS[resize](flat, size_px)
    array = np.asarray(flat)
    return array[None] if channels == 1 else np.moveaxis(array, -1, 0)


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; the same picture, and no copy of it, where that says nothing."""
    return ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION, 1) != 1 else image


def flattened(image: Image.Image) -> Image.Image:
    """Eight bits a value, transparency laid on white; a ValueError for pixels beyond 16 bits, or no whole numbers."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("pixels beyond 16 bits have no fixed range")
        return Image.fromarray((values // 257).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return image


# -- resizing --------------------------------------------------------------------------------------------------------


def _square(image: Image.Image) -> Image.Image:
    """The largest square in the middle."""
    side = min(image.size)
    if image.width == image.height:
        return image
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _bicubic(image: Image.Image, size_px: int) -> Image.Image:
    """Antialiased; a picture far larger is first brought near twice the size, which is faster."""
    return _square(image).resize((size_px, size_px), Image.Resampling.BICUBIC, reducing_gap=2.0)


def _lanczos(image: Image.Image, size_px: int) -> Image.Image:
    """As the ``center-crop`` of the dataset tools of StyleGAN and EDM."""
    return _square(image).resize((size_px, size_px), Image.Resampling.LANCZOS)


def _box(image: Image.Image, size_px: int) -> Image.Image:
    """The mean of the pixels that each new one covers, as Downsampled ImageNet (Chrabaszcz et al. 2017)."""
    return _square(image).resize((size_px, size_px), Image.Resampling.BOX)


def _adm(image: Image.Image, size_px: int) -> Image.Image:
    """As ADM (Dhariwal and Nichol 2021), and EDM's ``center-crop-dhariwal``: halved by box while it is twice the size
    or more, then bicubic until the shorter edge fits, then cropped."""
    while min(image.size) >= 2 * size_px:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size_px / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size_px) // 2, (image.height - size_px) // 2
    return image.crop((left, top, left + size_px, top + size_px))


FILTERS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "bicubic": _bicubic,
    "lanczos": _lanczos,
    "box": _box,
    "adm": _adm,
}
