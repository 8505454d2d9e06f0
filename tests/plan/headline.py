"""The plans of the papers' own sizes, for docs/plan.md: `python tests/plan/headline.py [--out table.json]`.

Runs ``toolkit plan`` for each line of ``COMMANDS`` (minutes each) and keeps what the page shows.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMANDS = {
    "disco_imagenet64": "train-disco experiment=disco_imagenet64 --devices 8xH100",
    "ivideogpt_oxe256": "train-ivideogpt experiment=ivideogpt_oxe256 data.path=EPISODES --devices 4xA100-40",
    "grow_7b": "grow-llm experiment=grow_7b optim.sharding=fsdp --devices 32xH100",
    "venhancer": (
        "enhance-video stage=train init=BASE network.vae=VAE network.text_encoder=TEXT network.asymmetric=false "
        "data.num_frames=32 data.crop_px=960 optim.batch_size=256 optim.micro_batch_size=1 "
        "optim.gradient_checkpointing=true optim.lr=1e-5 precision=bf16 --devices 16xA100-80"
    ),
}
KEPT = ("step_s", "num_steps", "device_hours", "utilisation", "micro_batch_size", "checkpointing", "fits")


def row(name: str, plan: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a plan: by stage, with the memory at its peak in GiB."""
    stages = {
        stage["name"]: {key: stage[key] for key in KEPT} | {"peak_gib": stage["memory"]["peak"] / 2**30}
        for stage in plan["stages"]
    }
    for stage, said in zip(stages.values(), plan["stages"], strict=True):
        stage["items_per_day"] = said["batch_size"] * 86400 / said["step_s"]
        stage["steps_in_4_days"] = 4 * 86400 / said["step_s"]
    return {"command": f"toolkit plan {COMMANDS[name]}", "stages": stages}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = {}
    for name, words in COMMANDS.items():
        line = [sys.executable, "-m", "toolkit.cli", "plan", *shlex.split(words), "--json"]
        found = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
        rows[name] = row(name, found)
        print(json.dumps({name: rows[name]}, indent=1), flush=True)
    if asked.out:
        asked.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
