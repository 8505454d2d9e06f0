"""``toolkit bench venhancer what=tiles``: what cutting up costs beyond the network itself.

Contenders, counted in tiles per second (the arithmetic says how many tiles there are):
  ours     one step of one window through the enhancer: latents from disk, tiles, blending, the solver, back to disk
  network  the same network called on as many tiles in memory, nothing else
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from toolkit.bench import Contender, Makers

TILE = (42, 64)  # rows and columns in latents; the clip is 3/2 of it each way, as 1080 rows are of 720: 2 x 2 tiles
FRAMES = 8


def makers(dim: int, device: str) -> Makers:
    """Name -> function that builds it."""
    return {"ours": lambda: _ours(dim, device), "network": lambda: _network(dim, device)}


def note(dim: int) -> str:
    """What is timed."""
    rows, columns = _size()
    return f"{FRAMES} frames of {rows}x{columns} latents in 4 tiles of {TILE[0]}x{TILE[1]}, width {dim}"


def _size() -> tuple[int, int]:
    return TILE[0] * 3 // 2, TILE[1] * 3 // 2


def _pipeline(dim: int, device: str) -> Any:
    """The release's network at another width, an autoencoder that is never called, no text."""
    import torch
    from diffusers import AutoencoderKL

    from toolkit.venhancer.bench.shared import fill
    from toolkit.venhancer.model.schedule import VideoNoiseSchedule
    from toolkit.venhancer.pipeline import VideoEnhancePipeline
    from toolkit.zoo.video.import_venhancer import RELEASE, build

    network = build(RELEASE | {"dim": dim, "head_dim": 32}, Path("bench")).to_empty(device=device).eval()
    fill(network)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(32,) * 4, layers_per_block=1, latent_channels=4, **blocks)
    pipeline = VideoEnhancePipeline(
        network, vae, VideoNoiseSchedule(), tile_rows=TILE[0], tile_columns=TILE[1], max_frames=FRAMES
    )
    pipeline.place(torch.float32, torch.device(device), offload=False)
    return pipeline


def _ours(dim: int, device: str) -> Contender:
    import numpy as np
    import torch

    from toolkit.venhancer.engine.in_flight import Flight
    from toolkit.venhancer.engine.layout import plan_layout
    from toolkit.venhancer.engine.settings import EnhanceSettings
    from toolkit.venhancer.engine.window_steps import WindowSteps
    from toolkit.venhancer.pipeline import ArraySource
    from toolkit.zoo.counting import count_parameters

    pipeline = _pipeline(dim, device)
    rows, columns = _size()
    settings = EnhanceSettings(height=8 * rows, width=8 * columns).changed(num_frames=FRAMES, num_steps=4)
    folder = tempfile.TemporaryDirectory()
    source = ArraySource(np.zeros((FRAMES, rows, columns, 3), np.uint8))
    layout = plan_layout(pipeline, settings, source)
    flight = Flight(Path(folder.name), layout.geometry, "bench")
    flight.latents[0].write(range(FRAMES), torch.randn(FRAMES, 4, rows, columns))
    steps = WindowSteps(pipeline, settings, layout, flight)

    def one() -> int:
        assert folder.name  # keeps the folder as long as this function
        steps.run(0, 0)
        return len(layout.grid(settings.windows.tile_overlap, None))

    return Contender({"step": one}, count_parameters(pipeline.denoiser))


def _network(dim: int, device: str) -> Contender:
    import torch

    from toolkit.zoo.counting import count_parameters

    pipeline = _pipeline(dim, device)
    x = torch.randn(1, 4, FRAMES, *TILE, device=device)
    text = pipeline.encode_prompt("", "", guided=False)

    @torch.no_grad()
    def one() -> int:
        for _ in range(4):
            pipeline.velocity(x, 500, text, hint=x, t_hint=0, up_scale=1.0)
        return 4

    return Contender({"step": one}, count_parameters(pipeline.denoiser))
