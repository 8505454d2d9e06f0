"""kill -9 at 20 random moments of a real run, on one and on two processes; then compare every byte.

    python tests/kill_twenty.py [--kills 20] [--processes 1 2] [--seed 0] [override ...]

Weights, metrics.jsonl, samples and final metrics must equal those of a run that nobody touched. A checkpoint is written
at every step, and every other kill waits for one to be half-written. Exits with 1 at a difference.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.toyroom.harness import finish, record, start_ranks

WORDS = ["experiment=disco_smoke", "checkpoint_every_steps=1", "log_every_steps=3"]
TIMINGS = "cost."  # metrics that are times differ from run to run


def run(
    processes: int, words: list[str], folder: str, kill_after_s: float | None = None, half_written: bool = False
) -> list[int | None]:
    """Run or resume; killed ``kill_after_s`` after the folder was opened, or at the next half-written checkpoint."""
    before, left = opened(folder), half_written_in(folder)
    ranks = start_ranks(processes, *words, f"hydra.run.dir={folder}", command="train-disco")
    if kill_after_s is not None:
        while opened(folder) == before and all(process.is_alive() for process in ranks):
            time.sleep(0.005)
        time.sleep(kill_after_s)
        while half_written and not half_written_in(folder) - left and ranks[0].is_alive():
            time.sleep(0.0005)
        for process in ranks:
            process.kill()
    return finish(*ranks, timeout_s=900)


def opened(folder: str) -> float:
    """When the run folder's lock was last taken."""
    lock = Path(folder) / "run.lock"
    return lock.stat().st_mtime if lock.exists() else 0.0


def half_written_in(folder: str) -> set[Path]:
    """Half-written checkpoints; the next one that is written clears those that a kill left."""
    return set(Path(folder).glob("checkpoints/*/.*.tmp"))


def outcome(folder: str) -> dict[str, bytes | str]:
    """What must not depend on interruptions."""
    root = Path(folder)
    files = [root / "metrics.jsonl", *sorted(root.glob("model/**/*.safetensors")), *sorted(root.glob("samples/*"))]
    found: dict[str, bytes | str] = {str(path.relative_to(root)): path.read_bytes() for path in files}
    metrics = record(folder)["metrics"]
    return found | {name: repr(value) for name, value in metrics.items() if not name.startswith(TIMINGS)}


def kill_and_compare(processes: int, kills: int, words: list[str], moments: random.Random) -> list[str]:
    """Names of what differs after ``kills`` kills, spread over as many runs as that takes."""
    before = time.monotonic()
    assert run(processes, words, "whole") == [0] * processes
    duration_s = time.monotonic() - before
    expected, killed, writing, different = outcome("whole"), 0, 0, []
    while killed < kills:
        left = half_written_in("one")
        codes = run(processes, words, "one", moments.uniform(0, duration_s / 2), half_written=killed % 2 == 1)
        killed += -9 in codes
        writing += bool(half_written_in("one") - left)
        if killed == kills or record("one")["status"] == "done":
            assert run(processes, words, "one") == [0] * processes
            got = outcome("one")
            different += [name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name)]
            shutil.rmtree("one")
        print(
            f"{processes} process(es): {killed}/{kills} kills, {writing} of them left a half-written checkpoint",
            flush=True,
        )
    return different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    failed = False
    for processes in options.processes:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            words = [*WORDS, *options.overrides]
            different = kill_and_compare(processes, options.kills, words, random.Random(options.seed))
            os.chdir("/")
        verdict = f"DIFFERENT: {', '.join(sorted(set(different)))}" if different else "identical to the untouched run"
        print(f"{processes} process(es), {options.kills} kills: {verdict}")
        failed |= bool(different)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
