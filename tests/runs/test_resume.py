"""kill -9 at any moment, resume: the same bytes as the run that nobody touched."""

import json
import random
import shutil
import time

import pytest
import torch

from tests.toyroom.harness import finish, record, result, run_here, start
from toolkit.runs import checkpoint

WORDS = ["optim.num_steps=60", "ballast=20000", "checkpoint_every_steps=1", "log_every_steps=3", "keep_checkpoints=1"]


def test_killed_three_times_and_resumed_equals_the_uninterrupted_run(toy):
    assert run_here(*WORDS, "hydra.run.dir=whole") == 0
    wall_time_s = record("whole")["stages"]["train"]["wall_time_s"]
    moments = random.Random(7)
    killed = 0
    while killed < 3:  # a checkpoint a step: most of the time goes into writing, so most kills fall inside it
        process = start(*WORDS, "hydra.run.dir=one")
        while not (toy / "one/metrics.jsonl").exists():
            time.sleep(0.01)
        time.sleep(moments.uniform(0, wall_time_s / 2))
        process.kill()
        killed += finish(process) == [-9]
        if (toy / "one/run.json").exists() and record("one")["status"] == "done":
            shutil.rmtree("one")
    assert run_here(*WORDS, "hydra.run.dir=one") == 0
    assert result("one") == result("whole")
    assert record("one")["metrics"] == record("whole")["metrics"]
    [checkpoint] = (toy / "one/checkpoints/train").iterdir()  # nothing half-written is left
    assert checkpoint.name.startswith("step-000000060-")


def test_killed_before_its_first_checkpoint_a_run_starts_anew(toy):
    process = start("step_time_s=0.02", "log_every_steps=1", "hydra.run.dir=one")
    while not (toy / "one/metrics.jsonl").exists():
        time.sleep(0.01)
    process.kill()
    finish(process)
    assert record("one")["status"] == "running" and not list((toy / "one").glob("checkpoints/*/*"))
    assert run_here("log_every_steps=1", "hydra.run.dir=one") == 0
    assert run_here("log_every_steps=1", "hydra.run.dir=whole") == 0
    assert result("one") == result("whole")


def test_a_torn_line_of_metrics_is_dropped(toy):
    run_here("optim.num_steps=20", "log_every_steps=5", "hydra.run.dir=one")
    with open("one/metrics.jsonl", "a") as file:
        file.write('{"stage": "train", "step": 25, "lo')
    run_here("log_every_steps=5", "hydra.run.dir=one")
    run_here("log_every_steps=5", "hydra.run.dir=whole")
    assert result("one") == result("whole")


def test_killed_before_its_objective_was_noted_a_run_still_has_one(toy):
    """Between the last stage and the note of what a sweeper minimises: the stages are not computed again."""
    assert run_here("optim.num_steps=2", "hydra.run.dir=one") == 0
    whole = record("one")
    (toy / "one/run.json").write_text(json.dumps({key: value for key, value in whole.items() if key != "objective"}))
    before = (toy / "one/model/net/model.safetensors").stat().st_mtime_ns
    assert run_here("optim.num_steps=2", "hydra.run.dir=one") == 0
    assert record("one")["objective"] == whole["objective"] and record("one")["status"] == "done"
    assert (toy / "one/model/net/model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "changes",
    [
        *({"world_size": 0}, {"world_size": "2"}, {"pending": [{"loss": 3}]}, {"pending": [{"loss": [None]}]}),
        *({"state.ballast": {}}, {"state.ballast": {"numbers": None}}, {"state.ballast": 3}),
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_one_line(toy, capfd, changes):
    words = ["checkpoint_every_steps=1", "keep_checkpoints=1", "hydra.run.dir=one"]
    assert run_here("optim.num_steps=2", *words) == 0
    [path] = (toy / "one/checkpoints/train").iterdir()
    content = torch.load(path, weights_only=True)
    path.unlink()
    checkpoint.save(path.parent, 2, content | changes, keep=1)
    capfd.readouterr()
    assert run_here("optim.num_steps=4", *words) in (1, 2)
    error = capfd.readouterr().err
    assert "one/checkpoints/train: the checkpoint of step 2 is of another version" in error
    assert "Traceback" not in error and error.count("toolkit: error:") == 1
