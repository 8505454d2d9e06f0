"""Streaming encode and decode: key frames into latents, latents into pictures, a tile and a few frames at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.venhancer.engine import tiles
from toolkit.venhancer.engine.frame_store import FrameStore
from toolkit.venhancer.engine.in_flight import Flight
from toolkit.venhancer.model import residuals
from toolkit.venhancer.model.codec import Codec
from toolkit.venhancer.model.conditioning import Fill, resize_region

OVERLAP = 1 / 6  # of a tile, where a codec's result depends on what surrounds it; the released decoder's
Parts = list[tuple[int, float]]  # (key frame, weight)


class Transcoder:
    """Between the source's frames (in ``flight``) and latents, and from latents to finished frames.

    Args:
        size: (height, width) of the output in pixels. tile: rows and columns of a tile in latents.
        scale: None: what is denoised are latents of frames; a number: residuals of key frames made so much smaller.
    """

    def __init__(
        self,
        codec: Codec,
        flight: Flight,
        fill: Fill,
        size: tuple[int, int],
        tile: tuple[int, int],
        scale: float | None,
        device: torch.device,
    ) -> None:
        self.codec, self.flight, self.fill, self.size = codec, flight, fill, size
        self.tile, self.scale, self.device = tile, scale, device
        self.overlap = OVERLAP if codec.margin else 0.0
        self._encoded: dict[tuple[tuple[int, float], ...], Tensor] = {}
        self.canvas = flight.canvas(codec.group, codec.factor)

    def hint(self, key: int, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """An up-scaled key frame as the network is given it, (1, C, rows, columns)."""
        if self.scale is None:
            return self._encode([(key, 1.0)], rows, columns)
        return residuals.standardised(self._key_with_margin(key, rows, columns))

    def fill_latents(self, frame: int, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """Latents of an output frame as the key frames around it fill it in."""
        return self._encode(self.fill.parts(frame, self.flight.geometry.frame_factor), rows, columns)

    def _unit(self, frame: int, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """What a residual of this frame is measured in, (1, 1, rows, columns)."""
        assert self.scale is not None
        parts = self.fill.parts(frame, self.flight.geometry.frame_factor)
        wide = [(self._key_with_margin(key, rows, columns), weight) for key, weight in parts]
        return residuals.expected(wide, self.scale)

    def _key_with_margin(self, key: int, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """Latents of a key frame and of those around the rectangle, the frame's border repeated around the frame."""
        g, margin = self.flight.geometry, residuals.MARGIN
        spans, pads = [], []
        for (start, stop), whole in ((rows, g.rows), (columns, g.columns)):
            spans.append((max(0, start - margin), min(whole, stop + margin)))
            pads.append((spans[-1][0] - start + margin, stop + margin - spans[-1][1]))
        return F.pad(self._encode([(key, 1.0)], *spans), (*pads[1], *pads[0]), mode="replicate")

    def _encode(self, parts: Parts, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        if not self.codec.margin:
            return self._encode_region(parts, rows, columns)
        return self._encode_whole(tuple(parts))[:, :, slice(*rows), slice(*columns)]

    def _encode_whole(self, parts: tuple[tuple[int, float], ...]) -> Tensor:
        """Latents (1, C, H, W) of a whole frame, blended from tiles; the last few are kept."""
        if parts not in self._encoded:
            g = self.flight.geometry
            latents = torch.zeros(1, g.channels, g.rows, g.columns)
            for tile in tiles.grid((g.rows, g.columns), self.tile, self.overlap):
                rows, columns = (tile.rows.start, tile.rows.stop), (tile.columns.start, tile.columns.stop)
                piece = self._encode_region(list(parts), rows, columns)
                latents[:, :, slice(*rows), slice(*columns)] += piece * tile.weight().float()
            while len(self._encoded) > self.codec.group:
                self._encoded.pop(next(iter(self._encoded)))
            self._encoded[parts] = latents
        return self._encoded[parts]

    def _encode_region(self, parts: Parts, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        down, across = ((start * self.codec.factor, stop * self.codec.factor) for start, stop in (rows, columns))
        picture = sum(
            weight * resize_region(self.flight.key_frame(key), self.size, down, across, self.fill.mode)
            for key, weight in parts
        )
        assert torch.is_tensor(picture)
        return self.codec.encode(picture[None].to(self.device)).float().cpu()

    def decode(self, frames: range, num_frames: int, latents: FrameStore) -> np.ndarray:
        """Finished frames uint8 (F, height, width, 3); those around them must be in ``latents``."""
        context = self.codec.context
        step = max(1, self.codec.group - 2 * context)
        done = [
            self._decode_group(range(start, min(start + step, frames.stop)), num_frames, latents)
            for start in range(frames.start, frames.stop, step)
        ]
        return np.concatenate(done)

    def _decode_group(self, frames: range, num_frames: int, latents: FrameStore) -> np.ndarray:
        context = self.codec.context
        shown = range(max(0, frames.start - context), min(num_frames, frames.stop + context))
        slots = range(len(shown))
        if self.overlap:
            self.canvas.clear(slots)
        g, factor = self.flight.geometry, self.codec.factor
        for tile in tiles.grid((g.rows, g.columns), self.tile, self.overlap):
            rows, columns = (tile.rows.start, tile.rows.stop), (tile.columns.start, tile.columns.stop)
            z = latents.read(shown, rows, columns)
            if self.scale is not None:
                units = torch.cat([self._unit(frame, rows, columns) for frame in shown])
                z = z * units + torch.cat([self.fill_latents(frame, rows, columns) for frame in shown])
            picture = self.codec.decode(z.to(self.device)).float().cpu()
            weight = tile.weight().float().repeat_interleave(factor, 0).repeat_interleave(factor, 1)
            down, across = ((start * factor, stop * factor) for start, stop in (rows, columns))
            blended = picture * weight if self.overlap else picture
            self.canvas.write(slots, blended, down, across, add=bool(self.overlap))
        kept = range(frames.start - shown.start, frames.stop - shown.start)
        return np.stack([self._finish(slot) for slot in kept])

    def _finish(self, slot: int) -> np.ndarray:
        """uint8 (height, width, 3) of one frame on the canvas, padding cut off."""
        height, width = self.size
        frame = np.empty((height, width, 3), np.uint8)
        band = 16 * self.codec.factor
        for start in range(0, height, band):
            stop = min(start + band, height)
            picture = self.canvas.read([slot], (start, stop), (0, width))[0]
            frame[start:stop] = ((picture + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        return frame
