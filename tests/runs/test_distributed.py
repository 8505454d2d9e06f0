"""Two processes (gloo): one run folder, written by rank 0, the same bytes every time."""

import os
import signal
import threading
import time

import pytest
import torch

from tests.toyroom.harness import finish, record, result, run_here, start_ranks
from toolkit.errors import LostProcess, UserError
from toolkit.runs import distributed

WORDS = ["log_every_steps=4", "checkpoint_every_steps=5"]


def test_two_ranks_share_one_folder_repeat_themselves_and_resume_exactly(toy):
    assert finish(*start_ranks(2, *WORDS)) == [0, 0]
    [folder] = (toy / "runs/train-toy").iterdir()
    assert (toy / "output.txt").read_text().count("train: step 30/30") == 1
    assert record(folder)["status"] == "done" and record(folder)["device"] == "cpu"

    ranks = start_ranks(2, *WORDS, "step_time_s=0.03", "hydra.run.dir=one")
    while not list((toy / "one").glob("checkpoints/train/step-*")):
        time.sleep(0.01)
    for process in ranks:
        process.kill()
    assert finish(*ranks) == [-9, -9]
    assert finish(*start_ranks(2, *WORDS, "hydra.run.dir=one")) == [0, 0]
    assert result("one") == result(folder)

    assert run_here(*WORDS, "hydra.run.dir=single") == 0
    assert result("single") != result(folder)  # the ranks drew batches of their own


def test_sigterm_on_one_rank_stops_both_at_the_same_checkpoint(toy):
    ranks = start_ranks(2, *WORDS, "step_time_s=0.03", "optim.num_steps=200", "hydra.run.dir=one")
    while not (toy / "one/metrics.jsonl").exists():
        time.sleep(0.01)
    ranks[1].terminate()
    assert finish(*ranks) == [143, 143]
    assert record("one")["status"] == "interrupted" and record("one")["stages"]["train"]["step"] % 10 == 0


def test_a_refused_config_stops_every_rank(toy):
    assert finish(*start_ranks(2, "optim.lr=-1")) == [2, 2]
    assert run_here("hydra.run.dir=one") == 0
    assert finish(*start_ranks(2, "amplitude=2", "hydra.run.dir=one")) == [2, 2]
    assert "amplitude is 1.0 there, 2.0 here" in (toy / "output.txt").read_text()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_is_killed_ends_the_job_in_a_line_and_it_goes_on(toy, lost):
    words = [*WORDS, "step_time_s=0.03", "hydra.run.dir=one"]
    ranks = start_ranks(2, *words)
    while not list((toy / "one").glob("checkpoints/train/step-*")):
        time.sleep(0.01)
    ranks[lost].kill()
    assert finish(*ranks)[1 - lost] == 1
    said = (toy / "output.txt").read_text()
    assert f"toolkit: error: process {1 - lost}: another process of this job ended" in said
    assert "Traceback" not in said
    if lost == 1:  # rank 0 keeps the record
        assert record("one")["status"] == "failed" and "another process" in record("one")["error"]
    assert finish(*start_ranks(2, *WORDS, "hydra.run.dir=one")) == [0, 0]


def test_a_rank_that_is_silent_is_waited_for_no_longer_than_said(toy, monkeypatch):
    monkeypatch.setenv("TOOLKIT_TIMEOUT_S", "2")
    ranks = start_ranks(2, *WORDS, "step_time_s=0.03", "optim.num_steps=500", "hydra.run.dir=one")
    try:
        while not (toy / "one/metrics.jsonl").exists():
            time.sleep(0.01)
        os.kill(ranks[1].pid, signal.SIGSTOP)
        assert finish(ranks[0]) == [1]
    finally:
        ranks[1].kill()
    assert "of this job did not answer for 2 s (TOOLKIT_TIMEOUT_S)" in (toy / "output.txt").read_text()


@pytest.fixture
def first_of_two(monkeypatch):
    """This process as rank 0 of two, with a store of its own; yields the store, where a test plays rank 1."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(distributed, "_store", lambda: store)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "_met", 0)
    monkeypatch.setenv("TOOLKIT_TIMEOUT_S", "1")
    return store


def test_a_rank_that_lives_is_waited_for_longer_than_the_timeout(first_of_two):
    def live():
        for _ in range(8):
            time.sleep(0.25)
            first_of_two.add("toolkit/alive/1", 1)
        first_of_two.add("toolkit/met/1", 1)

    other = threading.Thread(target=live)
    other.start()
    before = time.monotonic()
    distributed._meet()
    assert time.monotonic() - before > 1.9
    other.join()


def test_a_rank_that_no_longer_lives_is_named(first_of_two):
    first_of_two.add("toolkit/alive/1", 5)
    with pytest.raises(LostProcess, match="process 0: process 1 of this job did not answer for 1 s"):
        distributed._meet()


@pytest.mark.parametrize("text", ["soon", "0", "nan", "inf"])
def test_a_timeout_that_is_none_is_refused(text, monkeypatch):
    monkeypatch.setenv("TOOLKIT_TIMEOUT_S", text)
    with pytest.raises(UserError, match=f"TOOLKIT_TIMEOUT_S={text}: expected seconds"):
        distributed._timeout_s()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE=x: expected the number of processes; unset it"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE=: expected the number of processes; unset it"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: expected the number of processes; unset it"),
        ({"PMI_SIZE": "2"}, "PMI_SIZE=2: processes of MPI are not joined; start them with torchrun"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE=4: processes of MPI are not joined"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0: is set without WORLD_SIZE; unset it"),
        (
            {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"},
            "accelerate launch was asked for several processes and has started one",
        ),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2: RANK is not set beside it; start the processes with torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE=2: MASTER_ADDR is not set beside it"),
    ],
)
def test_a_world_that_nobody_made_is_refused_in_one_line(environment, said, toy, monkeypatch, capsys):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run_here("hydra.run.dir=one") == 2
    assert said in capsys.readouterr().err and not (toy / "one").exists()


def test_a_task_of_srun_says_that_it_repeats_the_command(toy, monkeypatch, capsys):
    for task, is_said in (("0", False), ("1", True)):
        monkeypatch.setenv("SLURM_PROCID", task)
        assert run_here("optim.num_steps=1", f"hydra.run.dir=task{task}") == 0
        assert ("runs the whole command once more" in capsys.readouterr().err) is is_said
