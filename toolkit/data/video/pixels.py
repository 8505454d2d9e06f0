"""Between decoded video frames and uint8 RGB arrays (height, width, 3), the colours kept.

Frames without a tag are read as players read them: BT.709 from 720 rows on, BT.601 below; ranges are honoured. What is
written has BT.709's matrix (HDR: BT.2020's) in video range, and says so; primaries and transfer are the source's,
tagged, not converted. More than 8 bits a colour are uint16, of which 65535 is white.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

HD_ROWS = 720
UNSPECIFIED = 2
_FULL_CHROMA = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_TO_SIZE = Interpolation.LANCZOS | Interpolation.ACCURATE_RND
_TO_CHROMA = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


class ToRgb:
    """Frames of one clip as RGB arrays, turned upright; what converts them is set up once.

    ``width`` and ``height`` are those of the clip, upright: a frame of another size, where a stream changes it on the
    way, is resized to them. ``deep``: 16 bits instead of 8.
    """

    def __init__(self, width: int, height: int, deep: bool = False):
        self.size, self.deep = (width, height), deep
        self.turn = Orientation()
        self._angle: int | None = None
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 RGB (height, width, 3), uint16 where ``deep``; transparent parts lie on black."""
        if frame.rotation != self._angle:
            self._angle, self.turn = frame.rotation, orientation(frame)
        size = self.size[::-1] if self.turn.transposed else self.size
        colorspace = None if frame.format.is_rgb else source_colorspace(frame)
        has_shade = has_alpha(frame.format)
        name = ("rgba64le" if has_shade else "rgb48le") if self.deep else ("rgba" if has_shade else "rgb24")
        converted = self._reformatter.reformat(
            frame, *size, name, src_colorspace=colorspace, interpolation=_FULL_CHROMA, threads=1
        )
        pixels: np.ndarray = converted.to_ndarray()
        if has_shade:
            alpha, most = pixels[..., 3:].astype(np.uint32), 65535 if self.deep else 255
            on_black = (pixels[..., :3] * alpha + most // 2) // most
            pixels = on_black.astype(np.uint16 if self.deep else np.uint8)
        return np.ascontiguousarray(self.turn.upright(pixels))


class Orientation(NamedTuple):
    """How a stored picture is to be shown: transposed, then mirrored left to right, then top to bottom."""

    transposed: bool = False
    mirrored: bool = False
    flipped: bool = False
    is_askew: bool = False  # not by right angles, to which this is the nearest

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """A view of ``pixels`` (height, width, 3) as it is to be shown."""
        pixels = pixels.swapaxes(0, 1) if self.transposed else pixels
        return pixels[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1]


def orientation(frame: av.VideoFrame) -> Orientation:
    """What the frame's display matrix says: [x y] [[a, b], [c, d]] is where a pixel is shown; by right angles."""
    # not frame.side_data, which ties a frame to itself: it would stay until Python collects cycles
    found = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]
    if found is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(bytes(found), np.int32)[:5].tolist()  # type: ignore[call-overload]
    along, across = abs(a) + abs(d), abs(b) + abs(c)
    is_askew = min(along, across) > 0.02 * max(along, across)
    if along >= across:
        return Orientation(False, a < 0, d < 0, is_askew)
    return Orientation(True, c < 0, b < 0, is_askew)


def _unnamed(kinds: type[Type], value: object) -> Any:
    """A kind of side data that PyAV does not name, such as the EXIF of pictures."""
    kind: Any = object.__new__(kinds)
    kind._name_, kind._value_ = f"UNNAMED_{value}", value
    return kind


# PyAV reads a frame's side data all together, and raises ValueError where one kind of them has no name in its enum: the
# display matrix beside it cannot be had otherwise (``frame.rotation`` does not tell a mirrored frame). ``_missing_`` is
# Enum's own hook for such values. Other users of PyAV in this process get a member without a name instead of the error.
if "_missing_" not in vars(Type):  # a later PyAV may have its own
    Type._missing_ = classmethod(_unnamed)  # type: ignore[assignment]


def has_alpha(pixel_format: av.VideoFormat) -> bool:
    """Whether frames of this format carry transparency."""
    return any(component.is_alpha for component in pixel_format.components)


def source_colorspace(frame: av.VideoFrame) -> int:
    """The YUV matrix of the frame, guessed from its height where it is not tagged."""
    if frame.colorspace != UNSPECIFIED:
        return frame.colorspace
    return Colorspace.ITU709 if frame.height >= HD_ROWS else Colorspace.ITU601


class FromRgb:
    """RGB arrays as frames in ``pix_fmt``, of video range and BT.709's matrix (or another of H.273's)."""

    def __init__(self, pix_fmt: str, matrix: int = 1):
        self.pix_fmt, self.matrix = pix_fmt, matrix
        self._reformatter = VideoReformatter()

    def __call__(self, pixels: np.ndarray) -> av.VideoFrame:
        """The frame of uint8 or uint16 RGB (height, width, 3)."""
        name = "rgb48le" if pixels.dtype == np.uint16 else "rgb24"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=name)
        if av.VideoFormat(self.pix_fmt).is_rgb:
            return self._reformatter.reformat(frame, format=self.pix_fmt, threads=1)
        return self._reformatter.reformat(
            frame,
            format=self.pix_fmt,
            dst_colorspace=self.matrix,
            dst_color_range=ColorRange.MPEG,
            dst_color_trc=1,
            dst_color_primaries=1,
            interpolation=_TO_CHROMA,
            threads=1,
        )


def resize_planes(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """RGB (h, w, 3), uint8 or uint16, at another size by Lanczos's filter of three lobes, antialiased when smaller.

    Each colour is a plane of its own to FFmpeg, which so neither mixes nor halves them.
    """
    form = "yuv444p16le" if pixels.dtype == np.uint16 else "yuv444p"
    frame = av.VideoFrame(pixels.shape[1], pixels.shape[0], form)
    for number, plane in enumerate(_planes(frame, pixels.dtype)):
        plane[...] = pixels[..., number]
    resized = VideoReformatter().reformat(frame, width, height, interpolation=_TO_SIZE, threads=1)
    made = np.empty((height, width, 3), pixels.dtype)
    for number, plane in enumerate(_planes(resized, pixels.dtype)):
        made[..., number] = plane
    return made


def _planes(frame: av.VideoFrame, dtype: np.typing.DTypeLike) -> list[np.ndarray]:
    """Views (height, width) of a planar frame's colours."""
    whole = [np.frombuffer(memoryview(plane), dtype).reshape(frame.height, -1) for plane in frame.planes]
    return [plane[:, : frame.width] for plane in whole]


def thumbnail(frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    """A small uint8 RGB picture (height, width, 3) of the frame as it is stored (not turned upright).

    Raises FFmpegError for colours that FFmpeg does not convert.
    """
    return frame.reformat(width, height, "rgb24", interpolation=Interpolation.AREA).to_ndarray()
