"""Run folders: the record, its lock, what may differ when a run is taken up again."""

import dataclasses
import json
import os
import stat
from pathlib import Path

import pytest

from tests.toyroom.config import Optim, TrainToy
from tests.toyroom.harness import record, run_here
from toolkit.errors import UserError
from toolkit.runs.files import into_place, missing, remove_empty, write_atomic, write_json
from toolkit.runs.reading import is_locked, read_record
from toolkit.runs.record import Run, compare_configs, config_hash
from toolkit.schema import Job


def opened(folder, config=None, overrides=()):
    run = Run(folder, config or TrainToy())
    run.open(list(overrides))
    return run


def test_a_record_says_what_ran_where_and_how_it_ended(tmp_path):
    run = opened(tmp_path / "one", TrainToy(seed=3), ["seed=3"])
    assert record(run.dir)["status"] == "running"
    with run.stage("train") as entry:
        entry["step"] = 5
    run.add_metrics("ours", {"loss": 1, "by_sigma": {"0.1": 2.0}})
    run.close("done")
    saved = record(run.dir)
    assert saved["status"] == "done" and saved["error"] is None and saved["ended"] >= saved["started"]
    assert (saved["schema"], saved["command"], saved["seed"], saved["overrides"]) == (1, "train-toy", 3, ["seed=3"])
    assert saved["config"]["optim"]["lr"] == 0.01 and len(saved["config_hash"]) == 16
    assert saved["metrics"] == {"ours.loss": 1.0, "ours.by_sigma.0.1": 2.0}
    assert saved["stages"]["train"]["status"] == "done" and saved["stages"]["train"]["step"] == 5
    assert {"python", "torch", "hydra-core"} <= set(saved["versions"])
    assert saved["wall_time_s"] > 0 and saved["peak_memory_mib"] > 1


def test_times_add_up_and_the_highest_memory_stays(tmp_path):
    run = opened(tmp_path / "one")
    run.record.update(wall_time_s=1000.0, peak_memory_mib=1e9, stages={"train": {"wall_time_s": 500.0}})
    with run.stage("train"):
        pass
    run.save()
    saved = record(run.dir)
    assert 1000 <= saved["wall_time_s"] < 1100 and saved["peak_memory_mib"] == 1e9
    assert 500 <= saved["stages"]["train"]["wall_time_s"] < 600
    run.close("done")


def test_a_stage_that_raises_is_not_done(tmp_path):
    run = opened(tmp_path / "one")
    with pytest.raises(KeyError), run.stage("train"):
        raise KeyError
    run.close("failed", "it broke")
    assert not run.stage_done("train") and record(run.dir)["error"] == "it broke"


def test_a_run_that_goes_on_at_another_commit_says_so(tmp_path):
    opened(tmp_path / "one").close("failed", "it broke")
    path = tmp_path / "one" / "run.json"
    here = json.loads(path.read_text())["git_commit"]
    opened(tmp_path / "one").close("done")
    assert "continued_at" not in json.loads(path.read_text())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"git_commit": "abc123"}))
    for _ in range(2):  # the second time it is where it was
        opened(tmp_path / "one").close("done")
        assert json.loads(path.read_text())["continued_at"] == [here]


def test_one_folder_one_process(tmp_path):
    first = opened(tmp_path / "one")
    assert is_locked(first.dir)
    with pytest.raises(UserError, match="another process is running this run"):
        opened(tmp_path / "one")
    first.close("done")
    assert not is_locked(first.dir)
    opened(tmp_path / "one").close("done")


def test_looking_at_a_run_does_not_lock_it(tmp_path):
    run = opened(tmp_path / "one")
    run.close("done")
    for _ in range(3):
        assert not is_locked(run.dir)
    assert not is_locked(tmp_path)


def test_what_does_not_change_the_computation_may_differ(tmp_path):
    config = TrainToy()
    opened(tmp_path / "one", config).close("done")
    other = TrainToy(device="cpu", num_workers=2, checkpoint_every_steps=7, log_every_steps=3, keep_checkpoints=5)
    assert config_hash(config) == config_hash(other)
    opened(tmp_path / "one", other).close("done")
    assert record(tmp_path / "one")["config"]["num_workers"] == 2


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (TrainToy(seed=1), "seed is 0 there, 1 here"),
        (TrainToy(optim=Optim(lr=0.5)), "optim.lr is 0.01 there, 0.5 here"),
        (TrainToy(optim=Optim(num_steps=29)), "optim.num_steps is 30 there, 29 here"),
        (TrainToy(optim=Optim(drift=[0.9, 0.98])), "optim.drift is"),
        (TrainToy(data_path="x"), "data_path is None there, x here"),
    ],
)
def test_another_config_is_refused_and_the_record_stays(tmp_path, other, words):
    opened(tmp_path / "one").close("done")
    before = (tmp_path / "one/run.json").read_bytes()
    with pytest.raises(UserError, match=words):
        opened(tmp_path / "one", other)
    assert (tmp_path / "one/run.json").read_bytes() == before
    assert not is_locked(tmp_path / "one")


def test_more_steps_reopen_their_stage_and_drop_what_was_built_on_it(tmp_path):
    run = opened(tmp_path / "one")
    for name in run.config.stages():
        with run.stage(name):
            run.path("checkpoints", name, "step").write_text("")
    run.close("done")
    longer = opened(tmp_path / "one", TrainToy(optim=Optim(num_steps=50)))
    assert longer.record["stages"]["train"]["status"] == "running" and "measure" not in longer.record["stages"]
    assert (run.dir / "checkpoints/train").exists() and not (run.dir / "checkpoints/measure").exists()
    assert longer.record["extended"] == ["optim.num_steps"]
    longer.close("done")


def test_more_steps_keep_what_came_before_and_train_on_every_variant(tmp_path):
    run = opened(tmp_path / "one")
    for name in ("data", "train", "train-0.1", "other", "measure"):
        with run.stage(name):
            run.path("checkpoints", name, "step").write_text("")
    run.add_metrics("", {"data": {"size": 1}, "train": {"loss": 2}, "measure": {"loss": 3}})
    run.close("done")
    longer = opened(tmp_path / "one", TrainToy(optim=Optim(num_steps=50)))
    assert {name: stage["status"] for name, stage in longer.record["stages"].items()} == {
        "data": "done", "train": "running", "train-0.1": "running",
    }  # fmt: skip
    assert {path.name for path in run.dir.glob("checkpoints/*")} == {"data", "train", "train-0.1"}
    assert longer.record["metrics"] == {"data.size": 1.0}
    longer.close("done")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"status": "done"}', "\x00\x01"])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run.json: not a run record"):
        read_record(tmp_path)


def test_a_refused_job_is_taken_back_without_touching_what_was_there(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    run = opened(tmp_path)
    assert run.take_back()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    finished = opened(tmp_path)
    with finished.stage("train"):
        pass
    assert not finished.take_back()
    finished.close("done")


def test_metrics_are_rewound_by_stage(tmp_path):
    run = opened(tmp_path / "one")
    for stage in ("a", "b"):
        for step in (1, 2, 3):
            run.log(stage, step, loss=step / 3)
    run.rewind_metrics("a", 1)
    run.close("done")
    lines = [json.loads(line) for line in (run.dir / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [("a", 1), ("b", 1), ("b", 2), ("b", 3)]
    assert lines[0]["loss"] == 1 / 3  # to the last bit


def test_an_atomic_write_is_all_or_nothing(tmp_path, monkeypatch):
    path = write_json(tmp_path / "deep" / "a.json", {"x": 1})
    assert json.loads(path.read_text()) == {"x": 1}

    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "other")
    assert json.loads(path.read_text()) == {"x": 1} and len(list(path.parent.iterdir())) == 1


def test_remove_empty_stops_at_the_first_folder_with_something_in_it(tmp_path):
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "file").write_text("")
    remove_empty([tmp_path / "a" / "b" / "c", tmp_path / "a" / "b", tmp_path / "a", tmp_path])
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


def test_missing_names_the_folders_that_have_to_be_made_from_within(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    assert missing(Path("a/b/c")) == [Path("a/b/c"), Path("a/b")]
    assert missing(tmp_path / "a") == [] and missing(Path("d")) == [Path("d")]


def test_a_key_added_since_the_run_was_started_may_hold_its_default():
    previous = {"seed": 1}
    config = Job(command="x", seed=1)
    assert compare_configs(Path("one"), previous | {"command": "x"}, config) == ({}, {})
    config.precision = "bf16"
    with pytest.raises(UserError, match="precision is absent there, bf16 here"):
        compare_configs(Path("one"), previous | {"command": "x"}, config)


def test_of_two_that_make_the_same_folder_the_first_wins(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "done").write_text(name)
        into_place(tmp_path / name, tmp_path / "home", "done")
    assert (tmp_path / "home" / "done").read_text() == "first"
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "other").write_text("of something else")
    with pytest.raises(OSError, match="not empty"):
        into_place(tmp_path / "second", tmp_path / "half", "done")


def test_weights_of_a_run_may_be_read_by_whom_new_files_may(toy):

    before = os.umask(0o027)
    try:
        assert run_here("hydra.run.dir=one") == 0
    finally:
        os.umask(before)
    weights = list((toy / "one/model").rglob("*.safetensors"))
    assert weights and all(stat.S_IMODE(path.stat().st_mode) == 0o640 for path in weights)


def test_a_hash_is_of_the_keys_whatever_their_order():
    names = [("alpha", int, 1), ("beta", int, 2)]
    one, other = (dataclasses.make_dataclass("Made", order, bases=(Job,)) for order in (names, names[::-1]))
    assert config_hash(one(command="x")) == config_hash(other(command="x")) != config_hash(one(command="x", beta=3))
