"""Put a trained run into the package, its parts in half precision, with the record that loading it reads:

toolkit train-disco experiment=disco_mnist28 baseline=none stage=prior hydra.run.dir=runs/mnist28
toolkit train-disco experiment=disco_mnist28 baseline=none latents.kind=none stage=denoiser hydra.run.dir=runs/plain
python experiments/disco/ship_model.py mnist28 runs/mnist28 runs/plain

The second run is the baseline, where the first has none of its own. The card beside it, README.md, is written by hand;
``toolkit train-disco model=mnist28 stage=measure`` measures what was put there.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

from toolkit import zoo
from toolkit.disco.artefact import PARTS, load_parts, save_part
from toolkit.paths import share
from toolkit.runs.files import write_json
from toolkit.runs.reading import read_record

LIMIT = 10_000_000  # bytes
KEPT = ["command", "status", "seed", "config", "config_hash", "git_commit", "overrides", "stages", "splits"]
KEPT = [*KEPT, "parameters", "machine", "versions"]


def main(name: str, run: str, baseline: str | None = None) -> None:
    folder, record, parts = zoo.local(name), read_record(run), load_parts(run)
    if baseline is not None:
        parts.baseline = load_parts(baseline).denoiser
    assert record is not None and folder != Path(name), f"{name}: not in the zoo's SHIPPED"
    shutil.rmtree(folder / "model", ignore_errors=True)
    (folder / "model").mkdir(parents=True)
    for part in PARTS:
        network = getattr(parts, part)
        torch.nn.Module.to(network, torch.float16)
        save_part(folder / "model", part, network)
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)  # a folder of the machine that trained it
        path.write_text(json.dumps(config, indent=2) + "\n")
    share(folder)
    write_json(folder / "run.json", {key: record[key] for key in KEPT if key in record})
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < LIMIT, f"{size} bytes, more than {LIMIT}"
    print(f"{folder}: {size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
