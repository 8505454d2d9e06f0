"""Put a trained small model into the package, in half precision: python experiments/venhancer/ship_weights.py RUN"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from toolkit.venhancer.pipeline import SMALL, VideoEnhancePipeline

LIMIT = 2_500_000  # bytes


def main(run: str) -> None:
    pipeline = VideoEnhancePipeline.from_pretrained(Path(run) / "model")
    torch.nn.Module.to(pipeline.denoiser, torch.float16)
    for part in ("denoiser", "scheduler", "vae"):
        shutil.rmtree(SMALL / part, ignore_errors=True)
    pipeline.save_pretrained(SMALL)
    size = sum(path.stat().st_size for path in SMALL.rglob("*") if path.is_file())
    assert size < LIMIT, f"{size} bytes, more than {LIMIT}"
    print(f"{SMALL}: {size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
