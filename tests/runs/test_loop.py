"""The training loop: logging windows, checkpoints, exact resume, and what is not finite."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch

from tests.toyroom.config import TrainToy
from tests.toyroom.harness import record, result, run_here
from toolkit.bench import endless_loop
from toolkit.errors import JobError
from toolkit.runs import loop as loop_module
from toolkit.runs.loop import Loop
from toolkit.runs.record import Run


def test_a_longer_run_trains_on_and_equals_one_that_was_long_from_the_start(toy):
    assert run_here("optim.num_steps=30", "log_every_steps=4", "hydra.run.dir=long") == 0
    assert run_here("optim.num_steps=13", "log_every_steps=4", "hydra.run.dir=grown") == 0
    assert (toy / "grown/metrics.jsonl").read_text().splitlines()[-1].startswith('{"stage": "train", "step": 13')
    assert run_here("optim.num_steps=30", "log_every_steps=4", "hydra.run.dir=grown") == 0
    assert result("grown") == result("long")
    assert record("grown")["metrics"] == record("long")["metrics"]
    assert record("grown")["config_hash"] == record("long")["config_hash"]


def test_fewer_steps_than_were_trained_is_another_config(toy, capfd):
    run_here("optim.num_steps=13", "hydra.run.dir=one")
    assert run_here("optim.num_steps=12", "hydra.run.dir=one") == 2
    assert "optim.num_steps is 13 there, 12 here" in capfd.readouterr().err


def test_what_a_stage_trains_by_is_said_once(toy, capfd):
    assert run_here("optim.num_steps=3", "log_every_steps=1", "hydra.run.dir=one") == 0
    said = capfd.readouterr()
    assert (said.out + said.err).count("train: Adam not fused") == 1


def test_an_optimiser_that_a_schedule_moves_is_said_once(caplog):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with caplog.at_level(logging.INFO):
        endless_loop(TrainToy(), "prior", {"optimizer": optimizer, "schedule": schedule})
    assert [text for text in caplog.messages if "fused" in text] == ["prior: SGD not fused"]


def test_the_newest_checkpoints_are_kept(toy):
    run_here("optim.num_steps=30", "checkpoint_every_steps=10", "keep_checkpoints=2", "hydra.run.dir=one")
    kept = sorted(path.name[:14] for path in (toy / "one/checkpoints/train").iterdir())
    assert kept == ["step-000000020", "step-000000030"]


def test_checkpoints_of_every_so_many_steps_are_kept_besides(toy, capfd):
    words = ["optim.num_steps=11", "checkpoint_every_steps=2", "keep_checkpoints=2", "hydra.run.dir=one"]
    assert run_here(*words, "keep_every_steps=4") == 0
    kept = sorted(int(path.name[5:14]) for path in (toy / "one/checkpoints/train").iterdir())
    assert kept == [4, 8, 10, 11]
    assert run_here(*words, "keep_every_steps=5") == 2
    assert "keep_every_steps=5: must be a multiple of checkpoint_every_steps=2" in capfd.readouterr().err


def test_nan_stops_and_names_the_step_and_the_last_good_checkpoint(toy, capfd):
    assert run_here("optim.lr=1e30", "checkpoint_every_steps=1", "hydra.run.dir=one") == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("toolkit: error: train: loss is ") and "at step 2; stopped" in error
    assert "one/checkpoints/train/step-000000001-" in error
    saved = record("one")
    assert saved["status"] == "failed" and "at step 2" in saved["error"]
    assert [path.name[:14] for path in (toy / "one/checkpoints/train").iterdir()] == ["step-000000001"]


@pytest.mark.parametrize("cadence", [1, 7, 1000])
def test_the_cadence_of_checkpoints_changes_nothing(toy, cadence):
    run_here("hydra.run.dir=usual")
    run_here(f"checkpoint_every_steps={cadence}", "hydra.run.dir=other")
    assert result("other") == result("usual")


def test_a_finished_run_is_not_trained_again(toy, capfd):
    run_here("hydra.run.dir=one")
    before = record("one")
    assert run_here("hydra.run.dir=one", "device=cpu") == 0
    assert "one is done already" in capfd.readouterr().err
    assert record("one")["stages"] == before["stages"]


def test_a_later_stage_is_added_to_a_finished_one(toy):
    run_here("hydra.run.dir=all")
    run_here("stage=train", "hydra.run.dir=parts")
    assert "loss" not in record("parts")["metrics"]
    run_here("hydra.run.dir=parts")
    assert record("parts")["metrics"] == record("all")["metrics"]
    assert result("parts") == result("all")


def test_data_that_cannot_be_read_in_the_middle_cost_no_step(toy, capfd):
    assert run_here("data_path=.", "hydra.run.dir=whole") == 0
    (toy / "bad_7").touch()
    assert run_here("data_path=.", "checkpoint_every_steps=1000", "hydra.run.dir=one") == 1
    assert capfd.readouterr().err.strip().splitlines()[-1] == "toolkit: error: bad_7: cannot be read"
    saved = record("one")
    assert saved["status"] == "failed" and saved["error"] == "bad_7: cannot be read"
    assert [path.name[:14] for path in (toy / "one/checkpoints/train").iterdir()] == ["step-000000007"]
    (toy / "bad_7").unlink()
    assert run_here("data_path=.", "checkpoint_every_steps=1000", "hydra.run.dir=one") == 0
    assert "resuming after step 7 of" in capfd.readouterr().err
    assert result("one") == result("whole")


def test_data_that_cannot_be_read_at_the_first_step_leave_nothing(toy):
    (toy / "bad_0").touch()
    assert run_here("data_path=.", "hydra.run.dir=one") == 2
    assert not (toy / "one").exists()


def looped(folder, num_steps, body, **state):
    """A loop of ``num_steps`` over ``body(step, loop)``, in this process; its lines of metrics without the stage."""
    run = Run(folder, TrainToy(log_every_steps=4, checkpoint_every_steps=100))
    run.open([])
    try:
        with run.stage("train"):
            loop = Loop(run, "train", num_steps, state)
            for step in loop:
                body(step, loop)
    finally:
        run.close("done")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {row.pop("stage") for row in rows} == {"train"}
    return rows


def test_a_line_is_the_mean_of_the_steps_since_the_last_and_of_all_processes(tmp_path, monkeypatch):
    def body(step, loop):
        loop.log(index=step, tensor=torch.tensor(float(step), requires_grad=True), odd=step if step % 2 else None)
        assert not loop._pending["tensor"][-1].requires_grad  # or every step's graph would stay

    rows = looped(tmp_path / "one", 10, body)
    assert rows == [
        {"step": 4, "index": 1.5, "tensor": 1.5, "odd": 2.0},
        {"step": 8, "index": 5.5, "tensor": 5.5, "odd": 6.0},
        {"step": 10, "index": 8.5, "tensor": 8.5, "odd": 9.0},
    ]
    longer = looped(tmp_path / "one", 12, body)  # the short line gives way to that of the whole window
    assert longer[:2] == rows[:2] and longer[2:] == [{"step": 12, "index": 9.5, "tensor": 9.5, "odd": 10.0}]
    plain = loop_module.gather
    shifted = lambda value: [value, {name: one + 3 for name, one in value.items()}]  # noqa: E731
    monkeypatch.setattr(loop_module, "gather", lambda v: shifted(v) if isinstance(v, dict) and "odd" in v else plain(v))
    assert looped(tmp_path / "two", 4, body) == [{"step": 4, "index": 3.0, "tensor": 3.0, "odd": 3.5}]


def test_steps_have_random_numbers_of_their_own_on_every_process_unless_they_are_alike(tmp_path, monkeypatch):
    drawn, alike = {}, {}
    for rank in (0, 1, 1):
        monkeypatch.setattr(loop_module, "rank", lambda rank=rank: rank)
        own, same = [], []

        def body(step, loop, own=own, same=same):
            if step != 1:
                same.append(loop.alike(lambda: torch.rand(1).item()))
            own.append(torch.rand(1).item())

        looped(tmp_path / f"{rank}{len(drawn)}", 3, body)
        drawn.setdefault(rank, []).append(own)
        alike.setdefault(rank, []).append(same)
    assert alike[0][0] == alike[1][0] and drawn[1][0] == drawn[1][1]
    assert len({*drawn[0][0], *drawn[1][0], *alike[0][0]}) == 3 + 3 + 2


def test_a_loop_that_is_told_to_stop_ends_after_the_step_with_its_line(tmp_path):
    def body(step, loop):
        loop.log(index=step)
        loop.stop_early = step == 5

    assert looped(tmp_path / "one", 50, body) == [{"step": 4, "index": 1.5}, {"step": 6, "index": 4.5}]
    assert looped(tmp_path / "one", 50, lambda step, loop: pytest.fail("it had ended")) == [
        {"step": 4, "index": 1.5},
        {"step": 6, "index": 4.5},
    ]


def test_random_numbers_are_by_run_stage_process_and_step_and_the_last_step_is_kept(tmp_path, monkeypatch):
    seeds = []
    monkeypatch.setattr(loop_module, "seed_all", lambda *given: seeds.append(given))
    looped(tmp_path / "one", 3, lambda step, loop: loop.log(index=step))
    assert seeds == [(TrainToy().seed, "train", 0, step) for step in range(3)]
    assert [path.name[:14] for path in (tmp_path / "one/checkpoints/train").iterdir()] == ["step-000000003"]


@pytest.mark.parametrize("changed", [False, True])
def test_what_a_failing_step_began_to_change_is_not_kept(tmp_path, changed):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)

    def body(step, loop):
        if step == 5 and not changed:
            raise OSError("bad data")
        weight.grad = torch.ones(1)
        optimizer.step()
        if step == 5:
            raise OSError("no room")

    with pytest.raises(OSError, match=r"bad data|no room"):
        looped(tmp_path / "one", 9, body, optimizer=optimizer)
    folder = tmp_path / "one/checkpoints/train"
    kept = [path.name[:14] for path in folder.iterdir()] if folder.exists() else []
    assert kept == ([] if changed else ["step-000000005"])


@pytest.mark.parametrize(
    ("rank", "size", "expected"), [(0, 2, 1.0), (1, 2, 30.0), (2, 4, 1.0), (3, 4, 30.0), (0, 1, 1.0)]
)
def test_every_process_goes_on_with_the_window_that_it_left(tmp_path, monkeypatch, rank, size, expected):
    """A checkpoint of two processes; of more or fewer each takes that of its number modulo two."""
    monkeypatch.setattr(loop_module, "rank", lambda: rank)
    monkeypatch.setattr(loop_module, "world_size", lambda: size)
    run = SimpleNamespace(dir=tmp_path, config=TrainToy())
    loop = Loop(run, "train", 9, {})
    content = {"step": 5, "pending": [{"loss": [1.0]}, {"loss": [30.0]}], "world_size": 2, "stop_early": True}
    assert loop._restore(content) == 2 and loop.stop_early
    assert loop._pending == {"loss": [expected]}


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_one_number_of_a_weight_that_is_not_finite_is_not_kept(tmp_path, value):
    held = torch.nn.Linear(2, 1)

    def body(step, loop):
        with torch.no_grad():
            held.weight[0, 1] = value if step == 2 else 1.0

    with pytest.raises(JobError, match=r"tensor model\.weight is nan at step 3; stopped \(no checkpoint"):
        looped(tmp_path / "one", 3, body, model=held)
