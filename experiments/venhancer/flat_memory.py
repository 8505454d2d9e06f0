"""Peak memory of `toolkit enhance-video` at 1080 and 2160 rows, 1 s and 4 s: it should be flat in both.

    python experiments/venhancer/flat_memory.py OUT.json [FOLDER]

A narrow network with random weights (the pictures are not the point), one step, windows of 5 frames, tiles of 360x640
pixels; the input is Big Buck Bunny, 1280x720, at 5 frames a second. Every run is a process of its own; its peak is the
one in its run.json. Runs that are done are not done again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from toolkit.venhancer.model.codec import PixelUnshuffleCodec
from toolkit.venhancer.model.schedule import VideoNoiseSchedule
from toolkit.venhancer.pipeline import VideoEnhancePipeline
from toolkit.zoo.video.controlled_unet import ControlledVideoUNet
from toolkit.zoo.video.controlnet import VideoControlNetModel
from toolkit.zoo.video.unet import VideoUNet

SIZES = (1080, 2160)
SECONDS = (1, 4)


def narrow_model(folder: Path) -> Path:
    """A pipeline of 1/8-size latents and 16 channels."""
    torch.manual_seed(0)
    unet = VideoUNet(
        in_channels=192,
        out_channels=192,
        block_out_channels=(16, 16),
        attention_levels=(False, False),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=8,
        entry_heads=1,
        norm_num_groups=4,
    )
    pair = ControlledVideoUNet.from_parts(unet, VideoControlNetModel.from_unet(unet))
    pipeline = VideoEnhancePipeline(
        pair,
        PixelUnshuffleCodec(8),
        VideoNoiseSchedule(),
        diffuses="residuals",
        data_std=1.0,
        resize="bicubic",
        blend=True,
    )
    pipeline.save_pretrained(folder)
    return folder


def measure(model: Path, folder: Path, height: int, seconds: int, fps: int = 5) -> dict[str, float]:
    """One run's peak memory in MiB, and its time."""
    run = folder / f"{height}p-{seconds}s-{fps}fps"
    words = [
        "input=bigbuckbunny",
        f"duration_s={seconds}",
        f"fps={fps}",
        f"model={model}",
        f"height={height}",
        "sampling.mode=normal",
        "sampling.num_steps=1",
        "windows.num_frames=5",
        "windows.overlap=0.2",
        "windows.tile_height_px=360",
        "windows.tile_width_px=640",
        "baselines=[]",
        "encode.speed=ultrafast",
        "side_by_side_s=0",
        "scene_cuts=false",
        "num_threads=1",
        f"hydra.run.dir={run}",
    ]
    subprocess.run([sys.executable, "-m", "toolkit.cli", "enhance-video", *words], check=True)
    record = json.loads((run / "run.json").read_text())
    return {"height": height, "seconds": seconds, "frames": fps * seconds, "peak_memory_mib": record["peak_memory_mib"],
            "wall_time_s": record["wall_time_s"]}  # fmt: skip


def main(out: str, folder: str | None = None) -> None:
    home = Path(folder or tempfile.mkdtemp())
    model = home / "narrow"
    if not model.exists():
        narrow_model(model)
    results = [measure(model, home, height, seconds) for height in SIZES for seconds in SECONDS]
    results.append(measure(model, home, 1080, 4, fps=12))  # does it go on growing?
    Path(out).write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
