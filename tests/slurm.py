"""A Slurm of this machine alone, with two nodes, and what becomes of training there: two jobs of a sweep, a time limit,
preemption, scancel, a node that dies, one job over two nodes.

    apt-get install slurm-wlm munge && pip install -e '.[slurm]'
    python -m tests.slurm [--steps 1500] [--only NAME ...] [--keep FOLDER] [--out record.json]

Needs root (the daemons run as whoever starts them) and about a quarter of an hour. What disturbs a training waits for
its steps, not for seconds, so that a crowded machine changes nothing. Every scenario ends when the training is done;
its weights must equal those of a run that nobody disturbed. Prints a table; exits with 1 where they do not. ``--out``
keeps the rows of trials that are not run this time; ``--keep`` keeps the undisturbed runs for the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.slurm_cluster import Cluster, output, wait_for


class Trial:
    """One training, by its folder and its words."""

    def __init__(self, cluster: Cluster, folder: Path, steps: int):
        self.cluster, self.folder, self.steps = cluster, folder, steps
        folder.mkdir(exist_ok=True)

    def words(self, folder: str, every: int = 10**6) -> list[str]:
        """A checkpoint is written by nothing but a signal, unless ``every`` so many steps."""
        return [
            "train-disco",
            "experiment=disco_smoke",
            "stage=denoiser",
            "baseline=none",
            "num_threads=1",
            f"optim.num_steps={self.steps}",
            f"checkpoint_every_steps={every}",
            f"hydra.run.dir={folder}",
        ]

    def toolkit(self, *words: str, launcher: Sequence[str] = ()) -> int:
        command = [sys.executable, *launcher, "-m", "toolkit.cli", *words]
        with open(self.folder / "shell.log", "a", encoding="utf-8") as log:
            return subprocess.run(command, cwd=self.folder, stdout=log, stderr=log).returncode

    def start_sweep(self, *options: str, every: int = 10**6) -> subprocess.Popen[bytes]:
        """``toolkit train-disco -m seed=0`` through submitit, which waits for its job."""
        name, *words = self.words("unused", every)[:-1]
        launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=low", "hydra.launcher.cpus_per_task=4"]
        command = [
            sys.executable,
            "-m",
            "toolkit.cli",
            name,
            "-m",
            *words,
            *launcher,
            "hydra.sweep.dir=sweep",
            *options,
        ]
        with open(self.folder / "shell.log", "a", encoding="utf-8") as log:
            return subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)

    def runs(self) -> list[Path]:
        return sorted({file.parent for file in self.folder.rglob("run.json") if "checkpoints" not in file.parts})

    def step(self) -> int:
        """How many steps the one run has logged."""
        found = 0
        for file in self.folder.rglob("metrics.jsonl"):
            whole = [line for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            found = max([found, *(json.loads(line).get("step", 0) for line in whole)])
        return found

    def wait_for_steps(self, number: int) -> None:
        wait_for(lambda: self.step() >= number, 1200, f"{number} steps in {self.folder}")

    def status(self) -> str:
        """How the one run stands."""
        [run] = self.runs()
        return str(json.loads((run / "run.json").read_text(encoding="utf-8"))["status"])

    def wait_for_job(self) -> str:
        wait_for(self.cluster.job, 120, "a job runs")
        return self.cluster.job()


def sweep_of_two(trial: Trial) -> str:
    """Two jobs side by side, one on each node."""
    process = trial.start_sweep("seed=0,0")
    assert process.wait() == 0, "the sweep ended with an error"
    return "both done"


def time_limit(trial: Trial) -> str:
    """The limit comes near in the middle: USR2 a minute before, queued again by submitit."""
    options = ["hydra.launcher.timeout_min=10", "hydra.launcher.signal_delay_s=60", "hydra.launcher.max_num_timeout=3"]
    process = trial.start_sweep("seed=0", *options)
    job = trial.wait_for_job()
    trial.wait_for_steps(trial.steps // 4)
    trial.cluster.let_time_run_out(job)
    at = trial.step()
    code = process.wait()
    assert code == 0, f"the sweep's own exit code is {code}"
    return f"USR2, stopped at step {at}, queued again by submitit, went on"


def preemption(trial: Trial) -> str:
    """A job of a higher partition takes both nodes: TERM, a minute of grace, queued again by Slurm."""
    process = trial.start_sweep("seed=0")
    trial.wait_for_job()
    trial.wait_for_steps(trial.steps // 4)
    subprocess.run(["srun", "--partition=high", "--nodes=2", "--exclusive", "sleep", "3"], check=True)
    assert process.wait() == 0, "the sweep ended with an error"
    return "gave way, was queued again, went on"


def cancelled(trial: Trial) -> str:
    """scancel, which sends SIGTERM and kills after KillWait; then ``toolkit runs resume`` on this machine."""
    process = trial.start_sweep("seed=0")
    job = trial.wait_for_job()
    trial.wait_for_steps(trial.steps // 4)
    subprocess.run(["scancel", job], check=True)
    wait_for(lambda: not trial.cluster.job(), 120, f"job {job} is gone")
    process.terminate()  # submitit asks sacct, which knows nothing without a data base, and waits for ever
    process.wait()
    at, status = trial.step(), trial.status()
    assert status == "interrupted", f"after scancel the run is {status}"
    assert trial.toolkit("runs", "resume", "sweep/0") == 0, "runs resume"
    return f"stopped at step {at} with a checkpoint, resumed by hand"


def node_dies(trial: Trial) -> str:
    """Power is cut: Slurm finds the node down and queues the job again; its checkpoint is at most 100 steps old."""
    process = trial.start_sweep("seed=0", every=100)
    trial.wait_for_job()
    trial.wait_for_steps(trial.steps // 4)
    node = output("squeue", "--noheader", "--states=RUNNING", "--partition=low", "--format=%N").strip()
    trial.cluster.cut_power(node)
    at = trial.step()
    wait_for(lambda: "down" in trial.cluster.states(), 120, f"{node} is found dead")
    subprocess.run(["slurmd", "-N", node], check=True)
    assert process.wait() == 0, "the sweep ended with an error"
    return f"{node} died at step {at}, the job was queued again by Slurm and went on"


BATCH = """#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --partition=low --signal=TERM@60 --time=60 --requeue --open-mode=append
srun {python} -m torch.distributed.run --nnodes 2 --nproc_per_node 1 --rdzv_backend c10d \\
  --rdzv_id "$SLURM_JOB_ID" --rdzv_endpoint 127.0.0.1:29511 -m toolkit.cli {words} && exit
grep -q '^ "status": "interrupted"' run/run.json && scontrol requeue "$SLURM_JOB_ID"
exit 1
"""


def two_nodes(trial: Trial) -> str:
    """One job over both nodes by a batch script; its time limit stops it, and it queues itself again."""
    script = trial.folder / "job.sh"
    script.write_text(BATCH.format(python=sys.executable, words=" ".join(trial.words("run"))), encoding="utf-8")
    command = ["sbatch", "--parsable", "--chdir", str(trial.folder), "--output=job.log", str(script)]
    job = output(*command).strip()
    trial.wait_for_steps(trial.steps // 4)
    trial.cluster.let_time_run_out(job)
    at = trial.step()
    wait_for(lambda: trial.cluster.about(job)["JobState"] == "COMPLETED", 1800, "the job is done")
    return f"SIGTERM, both stopped at step {at}, queued itself again, went on"


TRIALS = {
    "sweep of two": sweep_of_two,
    "time limit": time_limit,
    "preemption": preemption,
    "scancel": cancelled,
    "node dies": node_dies,
    "two nodes": two_nodes,
}


def weights(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(run.glob("model/**/*.safetensors"))}


def compare(trial: Trial, reference: Path) -> str:
    """Empty where every run of ``trial`` is done with the reference's weights; else what was lost."""
    for run in trial.runs():
        status = json.loads((run / "run.json").read_text(encoding="utf-8"))["status"]
        if status != "done":
            return f"{run.name} is {status}"
        if not weights(run) or weights(run) != weights(reference):
            return f"{run.name} has other weights"
    return "" if trial.runs() else "no run"


def undisturbed(cluster: Cluster, root: Path, steps: int, processes: int) -> Path:
    """The run folder of one process, or of two on one host."""
    trial = Trial(cluster, root / f"undisturbed_{processes}_{steps}", steps)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if processes == 2 else []
    trial.toolkit(*trial.words("run"), launcher=launcher)
    assert trial.status() == "done", trial.folder
    return trial.folder / "run"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--only", nargs="*", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--keep", type=Path, help="a folder for everything that is written")
    parser.add_argument("--out", type=Path, help="the record")
    options = parser.parse_args()
    missing = [name for name in ("slurmctld", "slurmd", "munged", "srun") if not shutil.which(name)]
    if missing:
        raise SystemExit(f"not here: {', '.join(missing)} (apt-get install slurm-wlm munge)")
    root = options.keep or Path(tempfile.mkdtemp(prefix="slurm-"))
    root.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="slurm-daemons-")))
    references = {name: undisturbed(cluster, root, options.steps, 1 + (name == "two nodes")) for name in options.only}
    rows = json.loads(options.out.read_text(encoding="utf-8")) if options.out and options.out.exists() else {}
    cluster.start()
    try:
        print("| what | seconds | what happened | lost |\n|---|---:|---|---|", flush=True)
        for name in options.only:
            shutil.rmtree(root / name.replace(" ", "_"), ignore_errors=True)
            trial = Trial(cluster, root / name.replace(" ", "_"), options.steps)
            cluster.wait_until_idle()
            started = time.monotonic()
            try:
                happened = TRIALS[name](trial)
                problem = compare(trial, references[name])
            except AssertionError as error:
                happened, problem = "", str(error)
            seconds = round(time.monotonic() - started)
            rows[name] = {"steps": options.steps, "seconds": seconds, "what": happened, "lost": problem or "nothing"}
            print(f"| {name} | {seconds} | {happened} | {problem or 'nothing'} |", flush=True)
    finally:
        cluster.stop()
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if any(rows[name]["lost"] != "nothing" for name in options.only) else 0


if __name__ == "__main__":
    sys.exit(main())
