"""A sweep on a Ray cluster of two hosts: two network namespaces of this machine, a raylet of one core in each.

    pip install -e '.[ray]'
    python tests/ray_hosts.py [--steps 600] [--keep FOLDER] [--out record.json]

Needs root and ``ip``. Two trials of two jobs: undisturbed, and with every process of the second host killed in the
middle, whose job Ray then starts again on the first. Weights must equal those of a run without Ray. Prints a table;
exits with 1 where they do not, or where a host got no job.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.two_hosts import HOSTS, build, remove, run, space

REPO = Path(__file__).resolve().parent.parent
ADDRESS = f"{HOSTS['here']}:6379"
PATIENCE_S = 1200
TRIES = 5  # ray start gives its own processes 30 seconds
PORTS = [  # given, so that nothing waits for an agent that has to choose one
    "--dashboard-agent-grpc-port=52366",
    "--dashboard-agent-listen-port=52365",
    "--runtime-env-agent-port=52367",
    "--metrics-export-port=52368",
]
QUIET = {"RAY_memory_monitor_refresh_ms": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
PATIENT = {  # on a crowded machine its processes take long to come up
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_agent_register_timeout_ms": "600000",
}


def environment() -> dict[str, str]:
    return {**os.environ, **QUIET, **PATIENT, "PYTHONPATH": str(REPO)}


def start_cluster(root: Path) -> None:
    """A head in the one namespace, a node in the other; each has one core to give."""
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", "--object-store-memory=100000000"]
    own = {
        "here": ["--head", "--port=6379", f"--temp-dir={root / 'ray'}", "--include-dashboard=false"],
        "there": [f"--address={ADDRESS}"],
    }
    for host, address in HOSTS.items():
        line = ["ip", "netns", "exec", space(host), *ray, *PORTS, f"--node-ip-address={address}", *own[host]]
        for _ in range(TRIES):
            with open(root / f"{host}.log", "ab") as log:
                if not subprocess.run(line, env=environment(), stdout=log, stderr=log, cwd=root).returncode:
                    break
            kill(host)
        else:
            raise SystemExit(f"{root / host}.log: ray start failed {TRIES} times")


def processes_of(host: str) -> list[int]:
    return [int(number) for number in run("ip", "netns", "pids", space(host)).split()]


def kill(host: str) -> None:
    for number in processes_of(host):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def words(steps: int) -> list[str]:
    """Of a training that writes a checkpoint every hundredth part."""
    settings = ["experiment=disco_smoke", "stage=denoiser", "baseline=none", "num_threads=1"]
    return ["train-disco", *settings, f"optim.num_steps={steps}", f"checkpoint_every_steps={max(1, steps // 100)}"]


def start_sweep(folder: Path, steps: int) -> subprocess.Popen[bytes]:
    """Two jobs alike, by the launcher of Ray, in the namespace of its head."""
    name, *rest = words(steps)
    launcher = ["hydra/launcher=ray", f"hydra.launcher.ray.init.address={ADDRESS}"]
    launcher += ["+hydra.launcher.ray.init.object_store_memory=null", f"hydra.sweep.dir={folder}"]
    line = ["ip", "netns", "exec", space("here"), sys.executable, "-m", "toolkit.cli", name, "-m", *rest, "seed=0,0"]
    with open(f"{folder}.log", "ab") as log:
        return subprocess.Popen([*line, *launcher], stdout=log, stderr=log, env=environment(), cwd=folder.parent)


def step(folder: Path) -> int:
    """How many steps a run has logged."""
    with suppress(OSError, ValueError, IndexError):
        return int(json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"])
    return 0


def host_of(folder: Path) -> str:
    """The namespace in which a process holds the lock of the run."""
    lock = (folder / "run.lock").resolve()
    for host in HOSTS:
        for number in processes_of(host):
            with suppress(OSError):
                files = {os.readlink(one) for one in Path(f"/proc/{number}/fd").iterdir()}
                if str(lock) in files:
                    return host
    return ""


def weights(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.glob("model/**/*.safetensors"))}


def trial(folder: Path, steps: int, reference: dict[str, bytes], power_cut: bool) -> dict[str, object]:
    """Two jobs to their end; the record's row."""
    started, process, found = time.monotonic(), start_sweep(folder, steps), {}
    runs = [folder / "0", folder / "1"]
    while process.poll() is None and time.monotonic() - started < PATIENCE_S:
        if min(map(step, runs)) >= steps // 4 and not found:
            found = {one.name: host_of(one) for one in runs}
            if power_cut:
                kill("there")
        time.sleep(0.2)
    if process.poll() is None:
        process.terminate()
    code = process.wait()
    same = [one.name for one in runs if weights(one) == reference]
    resumed = [one.name for one in runs if "resuming after step" in (one / "run.log").read_text(encoding="utf-8")]
    expected = [name for name, host in found.items() if host == "there"] if power_cut else []
    return {
        "steps": steps,
        "hosts": found,
        "exit code": code,
        "same weights": same,
        "resumed": resumed,
        "holds": code == 0 and len(same) == 2 and sorted(found.values()) == sorted(HOSTS) and resumed == expected,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--keep", type=Path, help="an empty folder for everything that is written")
    parser.add_argument("--out", type=Path, help="the record")
    options = parser.parse_args()
    root = (options.keep or Path(tempfile.mkdtemp(prefix="ray-hosts-"))).resolve()
    root.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, "-m", "toolkit.cli", *words(options.steps), "seed=0", "hydra.run.dir=alone"]
    with open(root / "alone.log", "wb") as log:
        subprocess.run(line, check=True, env=environment(), cwd=root, stdout=log, stderr=log)
    reference, rows = weights(root / "alone"), {}
    try:
        for name, power_cut in (("undisturbed", False), ("a host dies", True)):
            remove()
            build()
            start_cluster(root)
            rows[name] = trial(root / name.replace(" ", "_"), options.steps, reference, power_cut)
            for host in HOSTS:
                kill(host)
            print(name, *(f"{key}={value}" for key, value in rows[name].items()), sep="  ", flush=True)
    finally:
        remove()
    if not options.keep:
        shutil.rmtree(root)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["holds"] for row in rows.values()) and reference else 1


if __name__ == "__main__":
    sys.exit(main())
