"""One training over two hosts: two network namespaces of this machine, each with an address of its own.

    python tests/two_hosts.py [--steps 300] [--keep FOLDER]

Needs root and ``ip``. Three trials: undisturbed (the weights must equal those of two processes on one host), which
addresses are listened on meanwhile, and the link cut in the middle (each side must say so in a line; restored, the same
command must end with the same weights). Prints a table; exits with 1 where a trial fails.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

HOSTS = {"here": "10.77.0.1", "there": "10.77.0.2"}
PORT = 29577
PATIENCE_S = 300  # for both sides to notice that the link is cut


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout


def space(host: str) -> str:
    return f"toolkit-{host}"


def build() -> None:
    """Two namespaces, joined by one cable."""
    for host in HOSTS:
        run("ip", "netns", "add", space(host))
    run("ip", "link", "add", "cable-here", "type", "veth", "peer", "name", "cable-there")
    for host, address in HOSTS.items():
        run("ip", "link", "set", f"cable-{host}", "netns", space(host))
        run("ip", "-n", space(host), "addr", "add", f"{address}/24", "dev", f"cable-{host}")
        for device in ("lo", f"cable-{host}"):
            run("ip", "-n", space(host), "link", "set", device, "up")


def remove() -> None:
    for host in HOSTS:
        subprocess.run(["ip", "netns", "del", space(host)], check=False, capture_output=True)


def set_link(state: str) -> None:
    run("ip", "-n", space("there"), "link", "set", "cable-there", state)


class Job:
    """``torchrun`` on both hosts, into one run folder."""

    def __init__(self, folder: Path, steps: int):
        self.folder, self.run = folder, folder / "run"
        folder.mkdir(exist_ok=True)
        self.words = ["train-disco", "experiment=disco_smoke", "stage=denoiser", "baseline=none", "num_threads=1"]
        self.words += [f"optim.num_steps={steps}", "checkpoint_every_steps=50", f"hydra.run.dir={self.run}"]

    def start(self) -> list[subprocess.Popen[bytes]]:
        processes = []
        for host, address in HOSTS.items():
            launch = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d"]
            launch += [f"--rdzv_endpoint={HOSTS['here']}:{PORT}", "--rdzv_id=two", f"--local_addr={address}"]
            launch += [f"--rdzv_conf=is_host={int(host == 'here')}"]  # not to be found by the machine's one name
            command = ["ip", "netns", "exec", space(host), sys.executable, *launch, "-m", "toolkit.cli", *self.words]
            environment = {**os.environ, "TOOLKIT_TIMEOUT_S": "30", "GLOO_SOCKET_IFNAME": f"cable-{host}"}
            log = open(self.folder / f"{host}.log", "ab")  # noqa: SIM115  # as long as the process lives
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True))
        return processes

    def step(self) -> int:
        found = 0
        with suppress(OSError):
            for line in (self.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):
                    found = max(found, json.loads(line).get("step", 0))
        return found

    def wait_for_steps(self, number: int) -> None:
        end = time.monotonic() + 300
        while self.step() < number:
            if time.monotonic() > end:
                raise SystemExit(f"{self.folder}: no step {number} within 300 s")
            time.sleep(0.2)

    def weights(self) -> dict[str, bytes]:
        files = sorted(self.run.glob("model/**/*.safetensors"))
        return {str(file.relative_to(self.run)): file.read_bytes() for file in files}

    def says(self, host: str) -> str:
        """The toolkit's last line of its own on a host."""
        lines = (self.folder / f"{host}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        own = [line for line in lines if line.startswith("toolkit: ")]
        return own[-1] if own else "nothing"


def listening() -> list[str]:
    """Addresses that a host's processes listen on, the loopback aside."""
    found = set()
    for host in HOSTS:
        for line in run("ip", "netns", "exec", space(host), "ss", "-Hltn").splitlines():
            address = line.split()[3].rpartition(":")[0]
            if not address.startswith("127."):
                found.add(f"{host} {address}")
    return sorted(found)


def one_host(folder: Path, steps: int) -> Job:
    job = Job(folder, steps)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "toolkit.cli", *job.words]
    with open(folder / "log", "wb") as log:
        subprocess.run([sys.executable, *launch], stdout=log, stderr=log, check=True)
    return job


def end(processes: list[subprocess.Popen[bytes]], patience_s: float) -> list[float | None]:
    """Seconds until each ended; None for those that had to be killed."""
    started, ended = time.monotonic(), [None] * len(processes)
    while None in ended and time.monotonic() - started < patience_s:
        for number, process in enumerate(processes):
            if ended[number] is None and process.poll() is not None:
                ended[number] = time.monotonic() - started
        time.sleep(0.2)
    for number, process in enumerate(processes):
        if ended[number] is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return ended


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--keep", type=Path, help="an empty folder for everything that is written")
    options = parser.parse_args()
    root = options.keep or Path(tempfile.mkdtemp(prefix="two-hosts-"))
    root.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    reference = one_host(root / "one_host", options.steps).weights()
    failures = []
    print("| trial | what came out |\n|---|---|", flush=True)
    remove()
    build()
    try:
        job = Job(root / "undisturbed", options.steps)
        processes = job.start()
        job.wait_for_steps(options.steps // 4)
        print(f"| listened on | {', '.join(listening())} |", flush=True)
        end(processes, 600)
        same = job.weights() == reference and bool(reference)
        failures += [] if same else ["undisturbed"]
        print(f"| undisturbed | {'the weights of one host' if same else 'OTHER WEIGHTS'} |", flush=True)

        job = Job(root / "cut", options.steps)
        processes = job.start()
        job.wait_for_steps(options.steps // 3)
        set_link("down")
        ended = end(processes, PATIENCE_S)
        for host, seconds in zip(HOSTS, ended, strict=True):
            failures += [] if "another process of this job" in job.says(host) else [f"cut {host}"]
            when = f"ended after {seconds:.0f} s" if seconds else f"its torchrun was still there after {PATIENCE_S} s"
            print(f"| link cut, {host} | said: {job.says(host)}; {when} |", flush=True)
        set_link("up")
        end(job.start(), 600)
        same = job.weights() == reference
        failures += [] if same else ["restored"]
        print(f"| link restored | {'the same weights' if same else 'OTHER WEIGHTS'} |", flush=True)
    finally:
        remove()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
