"""Put a trained small model, or a run of stage=train_keys, into the package, in half precision:

python experiments/venhancer/ship_weights.py RUN
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

from toolkit import zoo
from toolkit.venhancer.pipeline import VideoEnhancePipeline

SMALL, UPSCALER = zoo.local("video_small"), zoo.local("video_upscaler")
LIMIT = 3_000_000  # bytes
TILE = {"tile_rows": 96, "tile_columns": 160}  # in latents: larger than a training crop, which convolutions allow


def main(run: str) -> None:
    if (Path(run) / "model" / "model_index.json").exists():
        ship_pipeline(run)
    else:
        network = zoo.load(run)
        torch.nn.Module.to(network, torch.float16)
        network.save_pretrained(UPSCALER)
    for path in SMALL.rglob("*.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)  # a folder of the machine that trained it
        path.write_text(json.dumps(config, indent=2) + "\n")
    for path in SMALL.rglob("*.safetensors"):
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in SMALL.rglob("*") if path.is_file())
    assert size < LIMIT, f"{size} bytes, more than {LIMIT}"
    print(f"{SMALL}: {size} bytes")


def ship_pipeline(run: str) -> None:
    pipeline = VideoEnhancePipeline.from_pretrained(Path(run) / "model", **TILE)
    torch.nn.Module.to(pipeline.denoiser, torch.float16)
    for part in ("denoiser", "scheduler", "vae"):
        shutil.rmtree(SMALL / part, ignore_errors=True)
    pipeline.save_pretrained(SMALL)


if __name__ == "__main__":
    main(*sys.argv[1:])
