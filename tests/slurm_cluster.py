"""A Slurm of this machine alone: munge, slurmctld, two nodes. Needs root; the daemons run as whoever starts them."""

from __future__ import annotations

import getpass
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

NODES = ("n1", "n2")
PORT = 16817
CONF = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=30
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
SlurmctldPort={port}
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmdTimeout=20
KillWait=60
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=low Nodes={names} Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=60
PartitionName=high Nodes={names} MaxTime=60 State=UP PriorityTier=10
"""


def output(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout


def wait_for(met: Callable[[], object], seconds: float, what: str) -> None:
    """Return when ``met``; end the script where it takes longer."""
    end = time.monotonic() + seconds
    while not met():
        if time.monotonic() > end:
            raise SystemExit(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(0.5)


class Cluster:
    """slurmctld, two slurmd and a munged of their own, all on the loopback address."""

    def __init__(self, root: Path):
        self.root = root
        host = socket.gethostname().partition(".")[0]
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={PORT + 1 + number} CPUs=4 State=UNKNOWN"
            for number, name in enumerate(NODES)
        )
        fields = {"host": host, "user": getpass.getuser(), "root": root, "port": PORT, "nodes": nodes}
        (root / "slurm.conf").write_text(CONF.format(**fields, names=",".join(NODES)), encoding="utf-8")
        (root / "state").mkdir()
        os.environ["SLURM_CONF"] = str(root / "slurm.conf")

    def start(self) -> None:
        """Return when both nodes are idle."""
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = {
            "socket": "munge.socket",
            "pid-file": "munged.pid",
            "log-file": "munged.log",
            "seed-file": "munge.seed",
        }
        options = [f"--{option}={self.root / name}" for option, name in files.items()]
        subprocess.run(["munged", "--force", f"--key-file={key}", *options], check=True)
        subprocess.run(["slurmctld"], check=True)
        for name in NODES:
            subprocess.run(["slurmd", "-N", name], check=True)
        self.wait_until_idle()

    def stop(self) -> None:
        """End all jobs and all daemons."""
        subprocess.run(["scancel", f"--user={getpass.getuser()}"], check=False, capture_output=True)
        with suppress(SystemExit, subprocess.CalledProcessError):  # steps that cannot report never end, nor does slurmd
            wait_for(lambda: not output("squeue", "--noheader"), 90, "all jobs are gone")
            time.sleep(2)
        for file in self.root.glob("*.pid"):
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), signal.SIGTERM)

    def wait_until_idle(self) -> None:
        wait_for(lambda: self.states() == ["idle"] * len(NODES), 90, "both nodes are idle")

    def states(self) -> list[str]:
        found = output("sinfo", "--noheader", "--Node", "--partition=low", "--format=%t")
        return [state.strip("*~$@") for state in found.split()]

    def job(self) -> str:
        """The number of the job that runs in the partition ``low``; empty where none does."""
        return output("squeue", "--noheader", "--states=RUNNING", "--partition=low", "--format=%A").strip()

    def let_time_run_out(self, job: str) -> None:
        """Set the time limit of ``job`` to less than two minutes from now; its next start has an hour."""
        begun = self.about(job)["Restarts"]
        minutes = 2 + int(output("squeue", "--noheader", f"--jobs={job}", "--format=%M").split(":")[-2])
        subprocess.run(["scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}"], check=True)
        wait_for(lambda: self.about(job)["Restarts"] != begun, 300, f"job {job} is queued again")
        subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=60"], check=True)

    def about(self, job: str) -> dict[str, str]:
        """What Slurm says of a job: JobState, Restarts and the like."""
        words = output("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def cut_power(self, name: str) -> None:
        """Kill a node's daemon, its steps' daemons and what they run; first those that would tell the controller."""
        doomed = [int((self.root / f"slurmd-{name}.pid").read_text())]
        for process in _processes_of(name):
            doomed += [one for one in _ancestors(process) if one not in doomed]
        for number in doomed:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def _processes_of(node: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"SLURMD_NODENAME={node}\0".encode() in (folder / "environ").read_bytes() + b"\0":
                found.append(int(folder.name))
    return found


def _ancestors(process: int) -> list[int]:
    """From the oldest, below the first process of the machine, to ``process`` itself."""
    chain = []
    while process > 1:
        chain.insert(0, process)
        try:
            process = int((Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return chain
