"""One window of one step: x0 of every tile, guided, blended, and the solver's update."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.errors import JobError
from toolkit.runs.seeds import derive, generator
from toolkit.venhancer.engine import tiles
from toolkit.venhancer.engine.in_flight import Flight
from toolkit.venhancer.engine.layout import Layout
from toolkit.venhancer.engine.settings import EnhanceSettings
from toolkit.venhancer.model.conditioning import key_frame_index
from toolkit.venhancer.model.parts import EnhanceParts
from toolkit.venhancer.model.samplers import Evaluation, guide


class WindowSteps:
    """Steps of windows of the latents that lie in ``flight``."""

    def __init__(self, pipeline: EnhanceParts, settings: EnhanceSettings, layout: Layout, flight: Flight) -> None:
        self.pipeline, self.settings, self.layout, self.flight = pipeline, settings, layout, flight
        self.device = pipeline.compute_device
        self.texts = self._texts()

    def _texts(self) -> list[Tensor]:
        """By step: (1, L, D) of the prompt, (2, L, D) with what guidance contrasts it with."""
        pipeline, settings, layout = self.pipeline, self.settings, self.layout
        independent = layout.guided and settings.sampling.guidance == "icg"
        text = pipeline.encode_prompt(settings.prompt, settings.negative_prompt, layout.guided and not independent)
        steps = range(len(layout.evaluations))
        if not independent:
            return [text for _ in steps]
        drawn = (pipeline.encode_random_prompt(generator(settings.seed, "icg", step)) for step in steps)
        return [torch.cat([text, one]) for one in drawn]

    @torch.no_grad()
    def run(self, step: int, window: int) -> None:
        """Predict x0 of a window at one step and take the frames that this settles one step further."""
        self._denoise(step, window)
        evaluation = self.layout.evaluations[step]
        self.flight.settle(self.layout.windows, window, step, evaluation, lambda *at: self._noise(step, *at))

    def _noise(self, step: int, frame: int, rows: tuple[int, int]) -> Tensor:
        return self.flight.noise(self.settings.seed, f"step{step}", frame, rows)

    def _denoise(self, step: int, window: int) -> None:
        """x0 of a window, tile by tile, blended into ``flight.window``."""
        start, end = self.layout.windows.spans[window]
        evaluation, frames = self.layout.evaluations[step], range(start, end)
        seed = derive(self.settings.seed, "tiles", step) if self.settings.windows.shift_tiles else None
        grid = self.layout.grid(self.settings.windows.tile_overlap, seed)
        if len(grid) > 1:
            self.flight.window.clear(frames)
        for tile in grid:
            x0 = self._denoise_tile(step, evaluation, frames, tile)
            if not torch.isfinite(x0).all():
                raise JobError(f"step {step}, window {window}: the latents are not finite; try precision=fp32")
            weighted = x0 * tile.weight().float()
            self.flight.window.write(frames, weighted, _rows(tile), _columns(tile), add=len(grid) > 1)

    def _denoise_tile(self, step: int, evaluation: Evaluation, frames: range, tile: tiles.Tile) -> Tensor:
        """x0 (F, C, rows, columns) of one tile, guided where there is a text."""
        k, place = self.settings.frame_factor, (_rows(tile), _columns(tile))
        keys = range(frames.start // k, (frames.stop - 1) // k + 1)
        z = self.flight.latents[step % 2].read(frames, *place)
        v = self._velocity(z, self.flight.hints.read(keys, *place), evaluation.step, frames, self.texts[step])
        return evaluation.clean(z, v)

    def _velocity(self, z: Tensor, hints: Tensor, step: int, frames: range, text: Tensor) -> Tensor:
        x, hint = (part.transpose(0, 1)[None].to(self.device) for part in (z, hints))
        v = self.pipeline.velocity(
            x,
            step,
            text,
            hint=hint,
            t_hint=max(self.settings.noise_level - 1, 0),
            up_scale=self.layout.scale,
            key_frame_index=key_frame_index(frames.start, frames.stop, self.settings.frame_factor).to(self.device),
            conditioning_scale=self.settings.conditioning_scale,
        )
        if self.layout.guided:
            sampling = self.settings.sampling
            v = guide(v[:1], v[1:], sampling.guidance_scale, sampling.guidance_rescale)
        return v[0].transpose(0, 1).cpu()


def _rows(tile: tiles.Tile) -> tuple[int, int]:
    return tile.rows.start, tile.rows.stop


def _columns(tile: tiles.Tile) -> tuple[int, int]:
    return tile.columns.start, tile.columns.stop
