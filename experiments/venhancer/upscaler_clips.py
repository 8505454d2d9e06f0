"""The shipped regression network and diffusion model on parts of eight clips, each beside classic and bicubic.

    python experiments/venhancer/upscaler_clips.py OUT.json FOLDER

Pictures are made 4 times smaller and every second frame is dropped. Every run is a process of its own, into FOLDER;
runs that are done are not done again. OUT has each run's command, commit, machine and measures.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from toolkit.runs.files import write_json

PRESETS = ("enhance_upscaler", "enhance_default")
CLIPS = (
    "input=bikes duration_s=0.5",
    "input=vtest start_s=10 duration_s=1.2",
    "input=citycc0 start_s=1 duration_s=0.5",
    "input=cube start_s=0.4 duration_s=0.5",
    "input=carphone duration_s=0.4",
    "input=tree duration_s=0.8",
    "input=faces start_s=5 duration_s=0.5",
    "input=bbb start_s=60 duration_s=0.2",
)
HOW = "degrade.scale=4 degrade.frame_step=2 side_by_side_s=0 perceptual=true num_threads=1"
KEPT = ("command", "git_commit", "machine", "versions", "wall_time_s", "metrics")


def run(preset: str, number: int, clip: str, folder: Path) -> dict[str, Any]:
    """The record of ``preset`` on ``clip``; ``number`` is the seed."""
    words = f"enhance-video experiment={preset} {HOW} {clip} seed={number}"
    place = folder / preset / str(number)
    command = [sys.executable, "-m", "toolkit.cli", *words.split(), f"hydra.run.dir={place}"]
    subprocess.run(command, check=True)
    record = json.loads((place / "run.json").read_text(encoding="utf-8")) | {"command": f"toolkit {words}"}
    return {key: record[key] for key in KEPT if key in record}


def main(out: Path, folder: Path) -> None:
    """All runs, one after the other; ``out`` is written after each."""
    found: dict[str, list[dict[str, Any]]] = {preset: [] for preset in PRESETS}
    for number, clip in enumerate(CLIPS):
        for preset in PRESETS:
            found[preset].append(run(preset, number, clip, folder))
            write_json(out, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).resolve())
