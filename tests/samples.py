"""A set of samples is the same files, byte by byte, whoever draws it: one process, two or three.

    python tests/samples.py [--num 1000] [--out table.json]

Trains the smoke preset of train-disco, then draws ``--num`` pictures with 1, 2 and 3 processes (CPUs, gloo) and
compares every file. Prints a table; exits with 1 where a file differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
SAMPLE = ["stage=sample", "model=trained", "sampling.num_steps=4", "sampling.batch_size=64"]
CPU = ["device=cpu", "num_threads=1"]


def run(processes: int, *words: str) -> None:
    """``toolkit train-disco experiment=disco_smoke WORDS`` on so many processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    line = [*launcher, "-m", "toolkit.cli", "train-disco", "experiment=disco_smoke", *CPU, *words]
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(line, env=environment, capture_output=True, text=True)
    if found.returncode:
        raise RuntimeError(f"{found.stdout}\n{found.stderr}"[-3000:])


def digests(folder: Path) -> dict[str, str]:
    """Of every picture and of the file of tensors."""
    files = [*folder.glob("images/*/*.png"), folder / "samples" / "samples.safetensors"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    out = asked.out and asked.out.resolve()
    folder = tempfile.mkdtemp(prefix="samples-")
    os.chdir(folder)
    run(1, "stage=prior", "hydra.run.dir=trained")
    rows, first = [], {}
    for processes in (1, 2, 3):
        run(processes, *SAMPLE, f"sampling.num_samples={asked.num}", f"hydra.run.dir=by{processes}")
        found = digests(Path(f"by{processes}"))
        first = first or found
        differ = sum(found.get(name) != first.get(name) for name in found.keys() | first.keys())
        whole = hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]
        rows.append({"processes": processes, "files": len(found), "differ": differ, "digest": whole})
        print(*(f"{name}={value}" for name, value in rows[-1].items()), sep="  ", flush=True)
    os.chdir(REPO)
    shutil.rmtree(folder)
    if out:
        out.write_text(json.dumps({"samples": asked.num, "rows": rows}, indent=1) + "\n")
    return 1 if any(row["differ"] for row in rows) or not first else 0


if __name__ == "__main__":
    sys.exit(main())
