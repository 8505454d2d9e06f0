"""Between decoded video frames and uint8 RGB arrays (height, width, 3), the colours kept.

Frames without a tag are read as players read them: BT.709 from 720 rows on, BT.601 below; ranges are honoured. What is
written is BT.709 in video range, and says so.
"""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation

HD_ROWS = 720
UNSPECIFIED = 2
_FULL_CHROMA = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_TO_CHROMA = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


def to_rgb(frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    """The frame as uint8 RGB (height, width, 3), turned upright; transparent parts lie on black.

    ``width`` and ``height`` are those of the clip, upright: a frame of another size, where a stream changes it on the
    way, is resized to them.
    """
    turns = quarter_turns(frame)
    size = (height, width) if turns % 2 else (width, height)
    colorspace = None if frame.format.is_rgb else source_colorspace(frame)
    name = "rgba" if has_alpha(frame.format) else "rgb24"
    converted = frame.reformat(*size, name, src_colorspace=colorspace, interpolation=_FULL_CHROMA)
    pixels = converted.to_ndarray()
    if name == "rgba":
        alpha = pixels[..., 3:].astype(np.uint16)
        pixels = ((pixels[..., :3] * alpha + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(np.rot90(pixels, turns))


def quarter_turns(frame: av.VideoFrame) -> int:
    """How often the picture is to be turned counter-clockwise by a right angle (its display matrix)."""
    return round(frame.rotation / 90) % 4


def has_alpha(pixel_format: av.VideoFormat) -> bool:
    """Whether frames of this format carry transparency."""
    return any(component.is_alpha for component in pixel_format.components)


def source_colorspace(frame: av.VideoFrame) -> int:
    """The YUV matrix of the frame, guessed from its height where it is not tagged."""
    if frame.colorspace != UNSPECIFIED:
        return frame.colorspace
    return Colorspace.ITU709 if frame.height >= HD_ROWS else Colorspace.ITU601


def from_rgb(pixels: np.ndarray, pix_fmt: str) -> av.VideoFrame:
    """A frame in ``pix_fmt``, BT.709 and video range, of uint8 RGB (height, width, 3)."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    if pix_fmt == "rgb24":
        return frame
    return frame.reformat(
        format=pix_fmt,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        dst_color_trc=1,
        dst_color_primaries=1,
        interpolation=_TO_CHROMA,
    )


def thumbnail(frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    """A small uint8 RGB picture (height, width, 3) of the frame as it is stored (not turned upright)."""
    return frame.reformat(width, height, "rgb24", interpolation=Interpolation.AREA).to_ndarray()
