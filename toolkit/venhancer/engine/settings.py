"""What an enhancement is asked to do and what it reports: settings, source, chunks, plan, progress. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from toolkit.errors import UserError


@dataclass(frozen=True)
class EnhanceSettings:
    """What one enhancement computes. Every field is checked by ``load_enhancer`` (UserError names the field).

    Attributes:
        model: "small" (shipped), a folder, or a hub id: a saved ``VideoEnhancePipeline``, or an imported network.
        vae, text_encoder: folder or hub id for a ``model`` that has none of its own (imported official weights).
        height, width: output size in pixels, any, odd sizes included.
        frame_factor: k in 1..8; N input frames give (N - 1) k + 1 output frames, every k-th being a key frame.
        scale_condition: s in [1, 8] as the network is told it; None: the true one, sqrt(output area / input area).
        noise_level: noise augmentation of the key frames' latents, 0..300 steps (0: none at all).
        prompt, negative_prompt: ignored (with a warning in ``Plan.notes``) by a model with a null text embedding.
        guidance_scale: 1 switches classifier-free guidance off. guidance_rescale: in [0, 1].
        solver: "dpmpp_2m_sde", "heun" or "ddim".
        steps: number of steps, or "fast" (upstream's fixed list of 14 evaluations).
        start_step: the up-scaled clip is noised to this step of 1000 and denoised from there; None: the pipeline's own.
        window_frames, window_overlap: temporal window, at most this long, and the fraction shared by neighbours.
        tile_height, tile_width: spatial tile in output pixels (rounded to what the network takes); None: its own.
        tile_overlap: fraction of a tile shared with its neighbour. shift_tiles: another grid at every step.
        chunk_mib: largest chunk handed out, in MiB of uint8 frames (at least one frame).
        conditioning_scale: factor of the control network's residuals.
        offload: keep only the part that computes on the accelerator.
    """

    model: str = "small"
    vae: str | None = None
    text_encoder: str | None = None
    height: int = 0
    width: int = 0
    frame_factor: int = 1
    scale_condition: float | None = None
    noise_level: int = 0
    prompt: str = ""
    negative_prompt: str = ""
    guidance_scale: float = 1.0
    guidance_rescale: float = 0.2
    solver: str = "dpmpp_2m_sde"
    steps: int | str = "fast"
    start_step: int | None = None
    window_frames: int = 32
    window_overlap: float = 0.5
    tile_height: int | None = None
    tile_width: int | None = None
    tile_overlap: float = 0.25
    shift_tiles: bool = True
    chunk_mib: int = 64
    conditioning_scale: float = 1.0
    offload: bool = False
    seed: int = 0
    precision: str = "fp32"

    def check(self) -> None:
        """Raises UserError naming the field."""
        for name, least, most in _LIMITS:
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UserError(f"{name}={value}: must lie in {least}..{most}")
        for name in ("height", "width"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be given, in pixels of the output")
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise UserError(f"precision={self.precision}: choose one of fp32, bf16, fp16")

    def computing(self) -> dict[str, object]:
        """The fields that change what comes out."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("chunk_mib", "offload")}


_LIMITS = (
    ("frame_factor", 1, 8),
    ("scale_condition", 1, 8),
    ("noise_level", 0, 300),
    ("guidance_scale", 0, 100),
    ("guidance_rescale", 0, 1),
    ("start_step", 1, 1000),
    ("window_frames", 2, 1024),
    ("window_overlap", 0, 0.5),
    ("tile_overlap", 0, 0.5),
    ("tile_height", 1, 100000),
    ("tile_width", 1, 100000),
    ("chunk_mib", 1, 100000),
)


class FrameSource(Protocol):
    """One shot, decoded on demand: constant size, no cut inside."""

    num_frames: int
    height: int
    width: int

    def frames(self, start: int) -> Iterator[np.ndarray]:
        """Frames start, start + 1, ... to the end, each uint8 [height, width, 3] RGB. Called once per (re)start."""
        ...


@dataclass(frozen=True)
class Chunk:
    """Finished output frames ``start`` .. ``start + len(frames)``: uint8 [F, height, width, 3] RGB."""

    start: int
    frames: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What an enhancement will do, known before it starts.

    Attributes:
        num_frames, height, width: of the output.
        windows: temporal windows as (first frame, one past the last). tiles: per window and step.
        evaluations: network evaluations per window and tile, guidance counted.
        forwards: all of them. peak_bytes, disk_bytes: estimates of memory and of what ``work_dir`` will hold.
        notes: one line each, for the user.
    """

    num_frames: int
    height: int
    width: int
    windows: tuple[tuple[int, int], ...]
    tiles: int
    evaluations: int
    forwards: int
    peak_bytes: int
    disk_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """Passed to ``Enhancer.enhance(..., progress=)`` after every finished window of a step."""

    done: int  # finished (step, window) pairs
    total: int
    step: int
    window: int
