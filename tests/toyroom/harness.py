"""Run ``toolkit train-toy``, or another command, in this process or in one that may be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

from toolkit.launch import launch

HERE = Path(__file__).parent
REPO = HERE.parent.parent
_processes = multiprocessing.get_context("forkserver")  # torch is imported once, and each start is a fork of that
_processes.set_forkserver_preload(
    [
        "torch",
        "accelerate",
        "hydra",
        "safetensors.torch",
        "tests.toyroom.job",
        "transformers.models.llama.modeling_llama",
    ]
)


def make_conf(folder: Path) -> Path:
    """A conf/ with the toolkit's own job.yaml and the toy room's configs."""
    shutil.copytree(HERE / "conf", folder)
    shutil.copy(REPO / "conf" / "job.yaml", folder)
    return folder


@contextmanager
def in_toy_folder(folder: Path) -> Iterator[None]:
    """``folder`` as the working one, in which ``toolkit train-toy`` is a command: the fixture ``toy`` of a module."""
    import pytest  # not for those who only start processes

    with pytest.MonkeyPatch.context() as during:
        during.setenv("TOOLKIT_CONF", str(make_conf(folder / "conf")))
        during.chdir(folder)
        yield


def finished_run_and_sweep(folder: Path) -> Path:
    """``one``, a finished run, and ``sweep``, a finished sweep, in ``folder``."""
    with in_toy_folder(folder):
        assert run_here("optim.num_steps=1", "hydra.run.dir=one") == 0
        assert run_here("-m", "optim.num_steps=1", "hydra.sweep.dir=sweep") == 0
    return folder


def run_here(*words: str) -> int:
    """``toolkit train-toy WORDS`` in this process and the current folder; returns the exit code."""
    return launch("train-toy", list(words))


def start(
    *words: str,
    command: str = "train-toy",
    env: dict[str, str] | None = None,
    file_limit: int | None = None,
    prepare: Callable[[], None] | None = None,
) -> BaseProcess:
    """``toolkit COMMAND WORDS`` in a process of its own; its output goes to ``output.txt``.

    prepare: called there first.
    """
    settings = {name: os.environ[name] for name in ("TOOLKIT_CONF", "TOOLKIT_TIMEOUT_S") if name in os.environ} | (
        env or {}
    )
    process = _processes.Process(target=_child, args=(command, list(words), os.getcwd(), settings, file_limit, prepare))
    process.start()
    return process


def start_ranks(number: int, *words: str, command: str = "train-toy") -> list[BaseProcess]:
    """The same on ``number`` processes, as torchrun would start them, without torchrun's own imports."""
    if number == 1:
        return [start(*words, command=command)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start(
            *words, command=command, env={**shared, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": str(number)}
        )
        for rank in map(str, range(number))
    ]


def finish(*processes: BaseProcess, timeout_s: float = 120) -> list[int | None]:
    """Wait for the processes; their exit codes. One that hangs is killed and fails the test."""
    for process in processes:
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"{process.name} did not end in {timeout_s} s")
    return [process.exitcode for process in processes]


def record(folder: str | Path) -> dict:
    """run.json of a run folder."""
    return json.loads((Path(folder) / "run.json").read_text())


def result(folder: str | Path) -> tuple[bytes, bytes]:
    """What must not depend on interruptions: weights and metrics, byte for byte."""
    folder = Path(folder)
    return (folder / "model" / "net" / "model.safetensors").read_bytes(), (folder / "metrics.jsonl").read_bytes()


def _child(
    command: str,
    words: list[str],
    folder: str,
    env: dict[str, str],
    file_limit: int | None,
    prepare: Callable[[], None] | None,
) -> None:
    import resource

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever nohup made of it for the tests
    os.chdir(folder)
    os.environ.pop("TOOLKIT_CONF", None)  # of the test that started the server that forks
    os.environ.update(env)
    with open("output.txt", "ab", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if prepare:
        prepare()
    sys.exit(launch(command, words))
