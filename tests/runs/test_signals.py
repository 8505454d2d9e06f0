"""Every signal that asks to stop does so at a checkpoint, once, with the exit code that it asks for."""

import contextlib
import os
import signal
import time
from types import SimpleNamespace

import pytest

from tests.toyroom.harness import finish, record, result, run_here, start
from toolkit import launch
from toolkit.errors import Interrupted
from toolkit.runs.signals import PATIENCE_S, deferred, hand_on, raising, unhidden


def wait_for(path, timeout_s=60):
    before = time.monotonic()
    while not path.exists():
        assert time.monotonic() - before < timeout_s, f"{path} did not appear"
        time.sleep(0.01)


STOPS = {"TERM": 143, "INT": 130, "HUP": 129, "USR1": 138, "USR2": 140}


@pytest.mark.parametrize("name", STOPS)
def test_a_signal_checkpoints_first_and_the_run_goes_on_exactly(toy, name):
    number, code = signal.Signals[f"SIG{name}"], STOPS[name]
    process = start("step_time_s=0.05", "log_every_steps=1", "hydra.run.dir=one")
    wait_for(toy / "one/metrics.jsonl")
    os.kill(process.pid, number)
    assert finish(process) == [code]
    saved = record("one")
    assert saved["status"] == "interrupted" and 0 < saved["stages"]["train"]["step"] < 30
    [checkpoint] = (toy / "one/checkpoints/train").iterdir()
    assert checkpoint.name.startswith(f"step-{saved['stages']['train']['step']:09d}")
    output = (toy / "output.txt").read_text()
    assert "toolkit: interrupted; continue with: toolkit runs resume one" in output and "Traceback" not in output
    assert run_here("log_every_steps=1", "hydra.run.dir=one") == 0
    assert run_here("log_every_steps=1", "hydra.run.dir=whole") == 0
    assert result("one") == result("whole")


@pytest.mark.parametrize("name", ["USR2", "TERM"])
@pytest.mark.parametrize("place", ["before_torch", "check_preset"])
def test_a_signal_before_hydra_composes_is_no_death(toy, monkeypatch, name, place):
    """While presets are read, and while threads are chosen, before anything else."""
    where = launch.threads if place == "before_torch" else launch
    monkeypatch.setattr(where, place, lambda *_: os.kill(os.getpid(), signal.Signals[f"SIG{name}"]))
    assert run_here("hydra.run.dir=one") == STOPS[name]
    assert not (toy / "one").exists()


def test_five_within_a_moment_are_one(toy):
    process = start("step_time_s=0.2", "log_every_steps=1", "hydra.run.dir=one")
    wait_for(toy / "one/metrics.jsonl")
    for _ in range(5):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.005)
    assert finish(process) == [130]
    assert record("one")["status"] == "interrupted" and list((toy / "one/checkpoints/train").iterdir())
    assert (toy / "output.txt").read_text().count("toolkit: interrupted; continue with: toolkit runs resume one") == 1


def test_another_after_a_moment_does_not_wait_for_the_step(toy):
    process = start("step_time_s=60", "hydra.run.dir=one")
    wait_for(toy / "one/.hydra/overrides.yaml")
    time.sleep(1)  # into the first step
    os.kill(process.pid, signal.SIGINT)
    time.sleep(PATIENCE_S + 0.2)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    assert finish(process, timeout_s=30) == [130]
    assert record("one")["status"] == "interrupted" and "Traceback" not in (toy / "output.txt").read_text()


def test_raising_stops_at_once_and_gives_the_handlers_back():
    def mine(number, frame):
        seen.append(number)

    seen = []
    before = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(Interrupted) as caught, raising():
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.exit_code == 143
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == []  # a repeat of the same wish
        time.sleep(PATIENCE_S + 0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) is mine
        with raising():
            pass
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raising(), deferred() as caught:
            os.kill(os.getpid(), signal.SIGHUP)
            assert caught == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_deferred_waits_for_the_first_wish_and_obeys_the_second():
    with raising():
        with pytest.raises(Interrupted) as stop, deferred() as caught:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            assert caught == [signal.SIGTERM]
            time.sleep(PATIENCE_S + 0.1)
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.value.exit_code == 130


def test_a_launcher_s_own_handler_is_called_when_the_run_is_closed(toy, monkeypatch):
    """As submitit's for SIGUSR2, which raises in the middle of a step or queues the job again."""
    from tests.toyroom import job

    seen = []

    def requeue(number, frame):
        seen.append((number, record("one")["status"], len(list((toy / "one/checkpoints/train").iterdir()))))

    once = iter([signal.SIGUSR2])  # a second one, a slow step later, would not wait for the checkpoint
    step = SimpleNamespace(sleep=lambda _: [os.kill(os.getpid(), number) for number in once])
    monkeypatch.setattr(job, "time", step)  # of the job alone: others sleep before its first step
    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        assert run_here("hydra.run.dir=one") == 140
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert seen == [(signal.SIGUSR2, "interrupted", 1)]


def test_a_signal_that_a_library_swallowed_is_obeyed_at_the_next_step():
    with raising():
        with contextlib.suppress(BaseException):  # as a bare except does
            os.kill(os.getpid(), signal.SIGTERM)
        with deferred() as caught:
            assert caught == [signal.SIGTERM]
    with raising(), deferred() as caught:
        assert caught == []


def test_a_run_after_an_interrupted_one_hands_on_to_the_handler_that_was_there_first():
    def mine(number, frame):
        seen.append(number)

    seen = []
    before = signal.signal(signal.SIGUSR1, mine)
    try:
        for _ in range(2):
            with pytest.raises(Interrupted), raising():
                os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(PATIENCE_S + 0.1)
        with raising():
            hand_on(128 + signal.SIGUSR1)
            assert seen == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGUSR1) is mine
    finally:
        signal.signal(signal.SIGUSR1, before)


class Bypass:
    """As submitit's handler of SIGTERM is: a method of a module of its own that leaves the job alone."""

    __module__ = "submitit.core.job_environment"

    def bypass(self, number, frame):
        pass


Bypass.bypass.__module__ = Bypass.__module__


@pytest.mark.parametrize(("on_slurm", "waits"), [(True, [600.0]), (False, [])])
def test_a_job_that_slurm_is_to_queue_again_stays_for_the_time_of_grace(monkeypatch, on_slurm, waits):
    slept = []
    monkeypatch.setattr("toolkit.runs.signals.time.sleep", slept.append)
    monkeypatch.setenv("SLURM_JOB_ID", "7") if on_slurm else monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = signal.signal(signal.SIGTERM, Bypass().bypass)
    try:
        with raising():
            hand_on(143)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert slept == waits


def test_a_module_that_a_signal_left_half_made_is_no_bug():
    with pytest.raises(Interrupted) as stop, raising(), unhidden():
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
        raise ImportError("cannot load module more than once per process")
    assert stop.value.exit_code == 143
