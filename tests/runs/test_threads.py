"""How many threads a job computes with: what the user said, what it had before, what is free."""

import os
import subprocess
import sys

import pytest
import torch

from tests.toyroom.harness import record, run_here
from toolkit.runs import threads
from toolkit.runs.machine import cores

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what the cores do")


def _environment_of_a_launch(**given):
    """What the environment says of waiting once a command was launched in it."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    code = "import os\nfrom toolkit.launch import launch\nlaunch('train-disco', ['--cfg', 'job'])\n"
    code += f"print([os.environ.get(name) for name in {names}])"
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    environment["TOOLKIT_CONF"] = ""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@linux
def test_threads_spin_for_a_moment_and_then_sleep():
    assert _environment_of_a_launch() == "['PASSIVE', '5000']"


def test_what_the_user_says_of_waiting_is_left_alone():
    assert _environment_of_a_launch(OMP_WAIT_POLICY="ACTIVE") == "['ACTIVE', None]"


@linux
def test_beside_busy_processes_one_thread_is_chosen(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores())]
    try:
        threads.before_torch()
        subprocess.run(["sleep", "1"], check=True)
        count, why = threads.choose()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert count == 1 and why.startswith(f"{cores()} cores, of which other processes use ")


@linux
def test_work_of_this_process_is_not_counted_as_others(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    before = threads._Sample(clock=0.0, busy=100.0, own=0.0)
    monkeypatch.setattr(threads, "_start", before)
    monkeypatch.setattr(threads, "cores", lambda: 4)
    monkeypatch.setattr(threads, "_sample", lambda: threads._Sample(clock=10.0, busy=121.0, own=10.0))
    assert threads.choose() == (3, "4 cores, of which other processes use 1.1")


def test_the_users_variable_decides():
    threads.before_torch()
    assert "OMP_NUM_THREADS" in os.environ and threads.choose() is None


def test_a_run_goes_on_with_the_threads_it_had(toy):
    """A sum over more threads is another sum in the last bits."""
    try:
        assert run_here("optim.num_steps=2", "num_threads=3", "hydra.run.dir=one") == 0
        assert record("one")["num_threads"] == 3
        torch.set_num_threads(1)
        assert run_here("optim.num_steps=4", "hydra.run.dir=one") == 0
        assert record("one")["num_threads"] == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


def test_a_job_of_a_sweep_does_not_inherit_the_threads_of_the_one_before(toy):
    assert run_here("optim.num_steps=2", "num_threads=3", "hydra.run.dir=one") == 0
    assert run_here("optim.num_steps=2", "hydra.run.dir=two") == 0
    assert record("two")["num_threads"] == torch.get_num_threads() == 1
