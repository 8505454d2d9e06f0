"""How one enhancement is cut up: latent size with padding, tiles, windows, evaluations, and what that will take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from toolkit.errors import UserError
from toolkit.venhancer.engine import tiles
from toolkit.venhancer.engine.in_flight import Flight, Geometry
from toolkit.venhancer.engine.settings import EnhanceSettings, FrameSource, Plan
from toolkit.venhancer.engine.windows import Windows, plan_windows
from toolkit.venhancer.model.conditioning import true_scale
from toolkit.venhancer.model.parts import NULL_TEXT, EnhanceParts
from toolkit.venhancer.model.samplers import Evaluation, plan_evaluations, sampling_times
from toolkit.zoo.counting import count_parameters
from toolkit.zoo.video.controlnet import skip_widths


@dataclass(frozen=True)
class Layout:
    """Everything that follows from settings, model and source before anything is computed.

    Attributes:
        num_frames: of the output. tile: rows and columns in latents. guided: two texts per evaluation.
        scale: s as the network is told it.
    """

    num_frames: int
    tile: tuple[int, int]
    windows: Windows
    evaluations: tuple[Evaluation, ...]
    geometry: Geometry
    guided: bool
    scale: float

    def grid(self, overlap: float, seed: int | None) -> list[tiles.Tile]:
        """Tiles of one step."""
        return tiles.grid((self.geometry.rows, self.geometry.columns), self.tile, overlap, seed)


def plan_layout(pipeline: EnhanceParts, settings: EnhanceSettings, source: FrameSource) -> Layout:
    """Raises UserError naming the setting that does not fit."""
    if source.num_frames < 1:
        raise UserError("source: no frames")
    k, factor = settings.frame_factor, pipeline.codec.factor
    num_frames = (source.num_frames - 1) * k + 1
    sampling, window = settings.sampling, settings.windows
    asked = (window.tile_height_px, window.tile_width_px)
    default = (pipeline.config["tile_rows"], pipeline.config["tile_columns"])
    tile = tuple(
        _fit(side // factor if side else usual, axis, pipeline, down=True)
        for axis, (side, usual) in enumerate(zip(asked, default, strict=True))
    )
    size = tuple(
        _padded(math.ceil(side / factor), tile[axis], axis, pipeline)
        for axis, side in enumerate((settings.height, settings.width))
    )
    try:
        longest = min(window.num_frames, pipeline.config["max_frames"])
        windows = plan_windows(num_frames, k, longest, window.overlap)
    except ValueError as error:
        raise UserError(str(error)) from None
    total = len(pipeline.scheduler)
    start_step = pipeline.start_step if sampling.strength is None else round(total * sampling.strength)
    steps = "fast" if sampling.mode == "fast" else sampling.num_steps
    times = sampling_times(steps, sampling.solver, start_step, total)
    evaluations = tuple(plan_evaluations(pipeline.scheduler, sampling.solver, times))
    in_flight = min(num_frames, windows.in_flight(len(evaluations)) + 2 * pipeline.codec.context)
    window_frames = max(end - start for start, end in windows.spans)
    geometry = Geometry(
        pipeline.codec.channels, size[0], size[1], in_flight, window_frames, source.height, source.width, k
    )
    scale = settings.scale_condition or true_scale((source.height, source.width), (settings.height, settings.width))
    guided = pipeline.has_text and sampling.guidance_scale != 1
    return Layout(num_frames, (tile[0], tile[1]), windows, evaluations, geometry, guided, scale)


def _fit(length: int, axis: int, pipeline: EnhanceParts, down: bool) -> int:
    """The nearest size that the network takes, not above (``down``) or not below ``length`` latents."""
    unet = pipeline.denoiser.unet
    multiple = unet.size_multiple
    rest = 2 % multiple if unet.config["asymmetric"] and axis == 0 else 0
    steps = (length - rest) / multiple
    return max(multiple, (math.floor(steps) if down else math.ceil(steps)) * multiple + rest)


def _padded(length: int, tile: int, axis: int, pipeline: EnhanceParts) -> int:
    """Latents along an axis: padded where one tile holds all of it, as it is where several do."""
    return length if length > tile else min(tile, _fit(length, axis, pipeline, down=False))


def summarise(pipeline: EnhanceParts, settings: EnhanceSettings, layout: Layout) -> Plan:
    """The layout in the user's terms."""
    num_tiles = len(layout.grid(settings.windows.tile_overlap, None))
    texts, pairs = 1 + layout.guided, len(layout.evaluations) * len(layout.windows)
    notes, sampling, longest = [], settings.sampling, pipeline.config["max_frames"]
    if not pipeline.has_text and (settings.prompt or settings.negative_prompt):
        notes.append(NULL_TEXT)
    if not pipeline.has_text and sampling.guidance_scale != 1:
        asked = f"sampling.guidance_scale={sampling.guidance_scale}"
        notes.append(f"{asked}: without a text there is nothing to guide by, 1 is used")
    if settings.windows.num_frames > longest:
        notes.append(f"windows.num_frames={settings.windows.num_frames}: this model takes {longest} at most")
    return Plan(
        num_frames=layout.num_frames,
        height=settings.height,
        width=settings.width,
        windows=layout.windows.spans,
        tiles=num_tiles,
        evaluations=len(layout.evaluations) * texts,
        forwards=pairs * num_tiles * texts,
        peak_bytes=_peak_bytes(pipeline, settings, layout, texts),
        disk_bytes=Flight.size(layout.geometry, pipeline.codec.group, pipeline.codec.factor),
        notes=tuple(notes),
    )


def _peak_bytes(pipeline: EnhanceParts, settings: EnhanceSettings, layout: Layout, texts: int) -> int:
    """Weights, features of one tile (skip connections of base and control, and what the finest level adds to them),
    and the frames handed out."""
    config = pipeline.denoiser.unet.config
    widths, layers = list(config["block_out_channels"]), config["layers_per_block"]
    level, per_token = 0, 0.0
    for index, width in enumerate(skip_widths(widths, layers)):
        per_token += width / 4**level
        level += index > 0 and index % (layers + 1) == 0
    per_token = texts * (2 * per_token + 12 * widths[0]) + 3 * pipeline.codec.channels
    rows, columns = (min(*pair) for pair in zip(layout.tile, _size(layout), strict=True))
    tokens = rows * columns * layout.geometry.window_frames
    number_bytes = pipeline.denoiser.dtype.itemsize
    frames = max(settings.chunk_mib * 2**20, 3 * settings.height * settings.width)
    return int(number_bytes * (count_parameters(pipeline.denoiser) + per_token * tokens) + 2 * frames)


def _size(layout: Layout) -> tuple[int, int]:
    return layout.geometry.rows, layout.geometry.columns
