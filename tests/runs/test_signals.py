"""SIGTERM and SIGINT stop at a checkpoint, with the exit code that the signal asks for."""

import contextlib
import os
import signal
import time

import pytest

from tests.toyroom.harness import finish, record, result, run_here, start
from toolkit.errors import Interrupted
from toolkit.runs.signals import deferred, raising


def wait_for(path, timeout_s=60):
    before = time.monotonic()
    while not path.exists():
        assert time.monotonic() - before < timeout_s, f"{path} did not appear"
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_checkpoints_first_and_the_run_goes_on_exactly(toy, number, code):
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


def test_raising_stops_at_once_and_gives_the_handlers_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught, raising():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_deferred_waits_for_the_first_signal_and_obeys_the_second():
    with pytest.raises(Interrupted) as stop, deferred() as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        assert caught == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.value.exit_code == 130


def test_a_signal_that_a_library_swallowed_is_obeyed_at_the_next_step():
    with raising():
        with contextlib.suppress(BaseException):  # as a bare except does
            os.kill(os.getpid(), signal.SIGTERM)
        with deferred() as caught:
            assert caught == [signal.SIGTERM]
    with raising(), deferred() as caught:
        assert caught == []
