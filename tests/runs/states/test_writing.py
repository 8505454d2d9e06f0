"""Checkpoints written while training goes on: from a copy, one after the other, whole or not there."""

import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.toyroom.harness import finish, record, result, run_here, start
from toolkit.runs import checkpoint
from toolkit.runs.states.writing import Writer, copied

BEHIND = ["checkpoint_in_background=true", "log_every_steps=1"]


def wait_for(condition, timeout_s=60):
    before = time.monotonic()
    while not condition():
        assert time.monotonic() - before < timeout_s
        time.sleep(0.01)


def test_what_is_written_is_what_was_there_and_the_next_one_waits():
    go, written, writer = threading.Event(), [], Writer(in_background=True)

    def write(content):
        assert go.wait(10)
        written.append(content["x"].tolist())

    x = torch.zeros(2)
    writer.submit(write, {"x": x})
    assert not written
    x += 1
    threading.Timer(0.05, go.set).start()
    writer.submit(write, {"x": x})
    assert written[0] == [0, 0]
    writer.wait()
    assert written == [[0, 0], [1, 1]]


def test_an_error_is_raised_once_by_who_comes_next():
    def fails(content):
        raise OSError("full")

    writer = Writer(in_background=True)
    for after in (writer.wait, lambda: writer.submit(print, 0)):
        writer.submit(fails, 0)
        with pytest.raises(OSError, match="full"):
            after()
    writer.wait()
    with pytest.raises(OSError, match="full"):
        Writer(in_background=False).submit(fails, 0)


def test_copies_share_what_was_shared_and_keep_what_torch_reads():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    network[0].bias = network[1].bias
    state = network.state_dict()
    found = copied({"model": state, "pair": (1, [state["0.bias"]])})
    assert found["model"]["0.bias"] is found["model"]["1.bias"] is found["pair"][1][0]
    assert found["model"]._metadata == state._metadata and found["pair"][0] == 1
    assert found["model"]["0.weight"].data_ptr() != state["0.weight"].data_ptr()
    assert all(torch.equal(found["model"][name], state[name]) for name in state)


def test_written_behind_or_not_a_run_is_the_same(toy):
    assert run_here("hydra.run.dir=usual", "checkpoint_every_steps=4", "log_every_steps=1") == 0
    assert run_here("hydra.run.dir=behind", "checkpoint_every_steps=4", *BEHIND) == 0
    assert result("behind") == result("usual")
    one, other = (checkpoint.load(Path(name, "checkpoints/train")) for name in ("usual", "behind"))
    assert one[0] == other[0] == 30 and str(one) == str(other)


def test_a_full_disk_is_said_and_what_was_there_stays(toy, monkeypatch, capfd):
    save, calls = torch.save, []

    def full(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*arguments)

    monkeypatch.setattr(torch, "save", full)
    assert run_here("hydra.run.dir=one", "checkpoint_every_steps=2", *BEHIND) == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert "the checkpoint of step 4 could not be written" in error and "the last good one is " in error
    assert [path.name[:14] for path in Path("one/checkpoints/train").iterdir()] == ["step-000000002"]
    assert run_here("hydra.run.dir=one", *BEHIND) == 0 and run_here("hydra.run.dir=whole", *BEHIND) == 0
    assert result("one") == result("whole")


def stall():
    """The file of step 4 is flushed for ever, that of another step for a moment."""
    flush = os.fsync

    def slow(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if ".step-" in name:
            time.sleep(600 if ".step-4." in name else 0.3)
        flush(descriptor)

    os.fsync = slow


def test_killed_in_the_middle_of_writing_it_goes_on_from_the_one_before(toy):
    words = ["hydra.run.dir=one", "checkpoint_every_steps=2", "step_time_s=0.1", *BEHIND]
    process = start(*words, prepare=stall)
    rows = toy / "one/metrics.jsonl"
    wait_for(lambda: rows.exists() and len(rows.read_text().splitlines()) >= 5)  # a step beyond what is written
    folder = toy / "one/checkpoints/train"
    assert [path.name[:10] for path in folder.glob(".step-*")] == [f".step-4.{process.pid}"[:10]]
    process.kill()
    assert finish(process) == [-9]
    assert [path.name[:14] for path in folder.glob("step-*")] == ["step-000000002"]
    assert run_here(*BEHIND, "hydra.run.dir=one") == 0 and run_here(*BEHIND, "hydra.run.dir=whole") == 0
    assert result("one") == result("whole")


def test_a_signal_waits_for_the_file(toy):
    process = start("hydra.run.dir=one", "checkpoint_every_steps=50", "step_time_s=0.05", *BEHIND, prepare=stall_all)
    wait_for((toy / "one/metrics.jsonl").exists)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == [143]
    [path] = (toy / "one/checkpoints/train").iterdir()
    assert path.name.startswith(f"step-{record('one')['stages']['train']['step']:09d}-")


def stall_all():
    flush = os.fsync
    os.fsync = lambda descriptor: (time.sleep(0.3), flush(descriptor))[1]
