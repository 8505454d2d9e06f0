"""How long jobs take with the threads that the runner chooses, and with those that a user could set instead.

    python tests/threads.py [--minutes 60] [--steps 1000] [--out threads.json] [--jobs disco_smoke default ...]

The five smoke presets and some steps of the default denoiser of ``train-disco``, each on an otherwise idle machine,
beside one busy process and beside two. Seconds are of the whole command. Exits with 1 where the choice takes over 1.3
times the best setting. Needs a machine on which nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOBS = {
    "disco_smoke": ["train-disco", "experiment=disco_smoke"],
    "icg_smoke": ["sample-icg", "experiment=icg_smoke"],
    "ivideogpt_smoke": ["train-ivideogpt", "experiment=ivideogpt_smoke"],
    "grow_smoke": ["grow-llm", "experiment=grow_smoke"],
    "enhance_smoke": ["enhance-video", "experiment=enhance_smoke"],
    "default": ["train-disco", "stage=denoiser"],
}
SETTINGS = {
    "chosen": {},
    "1": {"OMP_NUM_THREADS": "1"},
    "2 passive": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "2 active": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "ACTIVE"},
}
MOST = 1.3  # times the best setting
LIMIT_S = 900.0  # of one command; what takes longer counts as this


def seconds(words: list[str], settings: dict[str, str], busy: int) -> float:
    """Wall time of one command beside ``busy`` processes that never wait. Raises CalledProcessError if it fails."""
    ours = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in ours} | settings
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "toolkit.cli", *words, f"hydra.run.dir={folder}/run"]
            start = time.monotonic()
            subprocess.run(command, env=environment, cwd=folder, check=True, timeout=LIMIT_S, capture_output=True)
            return time.monotonic() - start
    except subprocess.TimeoutExpired:
        return LIMIT_S
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="no comparison is begun after as many")
    parser.add_argument("--steps", type=int, default=1000, help="of the default job")
    parser.add_argument("--out", type=Path, default=Path("threads.json"))
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    options = parser.parse_args()
    JOBS["default"].append(f"optim.num_steps={options.steps}")
    end, rows = time.monotonic() + 60 * options.minutes, []
    print(f"{'job':16} {'busy':>4} " + " ".join(f"{name:>10}" for name in SETTINGS) + "  chosen/best", flush=True)
    for job in options.jobs:
        for busy in (0, 1, 2):
            if time.monotonic() > end:
                print(f"{job}, {busy} busy: not measured, the time is over")
                continue
            times = {name: seconds(JOBS[job], setting, busy) for name, setting in SETTINGS.items()}
            ratio = times["chosen"] / min(times.values())
            rows.append({"job": job, "busy": busy, "seconds": times, "chosen_over_best": ratio})
            options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            print(
                f"{job:16} {busy:4} " + " ".join(f"{one:10.1f}" for one in times.values()) + f"  {ratio:.2f}",
                flush=True,
            )
    return int(any(row["chosen_over_best"] > MOST for row in rows))


if __name__ == "__main__":
    sys.exit(main())
