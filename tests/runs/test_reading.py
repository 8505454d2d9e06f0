"""run.json, metrics.jsonl and Hydra's files, whatever they hold: the shape that readers expect, or one line."""

import json
import os
import shutil
import stat
import time
from pathlib import Path

import pytest

from tests.toyroom.harness import finish, record, run_here, start
from toolkit.errors import UserError
from toolkit.resume import resume
from toolkit.runs.reading import metrics_line, read_record
from toolkit.show.browse import compare_runs, list_runs, show_run
from toolkit.show.report import write_report

WHOLE = {"command": "train-toy", "status": "done", "config": {"seed": 0}, "stages": {"train": {"status": "done"}}}
DAMAGED = {
    "a list": [1], "a number": 3, "null": None, "no command": {"status": "done", "config": {}},
    "no config": {"status": "done", "command": "x"}, "no status": {"command": "x", "config": {}},
    **{f"{key} is {value!r}": WHOLE | {key: value} for key, values in {
        "command": (3, None, ["x"]), "status": (None, 1), "config": (None, [], "x"),
        "overrides": (3, "seed=1", [1], {"a": 1}),
        "stages": ([], {"train": 3}, {"train": {"step": "x"}}, {"train": {"wall_time_s": None}},
                   {"train": {"status": 1}}),
        "metrics": ([], {"loss": "x"}, {"loss": None}, {"loss": 10**400}, {"loss": True}), "seed": ("x", [1], 10**400),
        "wall_time_s": ("x", None, {}), "peak_memory_mib": ("x", [1]), "error": (3, ["x"]), "machine": ("x", [1]),
        "versions": ("x",), "started": (3,),
    }.items() for value in values},
}  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED.values(), ids=[name[:40] for name in DAMAGED])
def test_a_record_of_another_shape_is_one_line_for_every_reader(tmp_path, content):
    (tmp_path / "run.json").write_text(json.dumps(content))
    readers = [
        read_record,
        resume,
        show_run,
        lambda folder: compare_runs([folder]),
        lambda folder: write_report([folder]),
    ]
    for reader in readers:
        with pytest.raises(UserError, match=r"run\.json: not a run record, or a damaged one: |no finished run"):
            reader(tmp_path)
    assert list_runs(tmp_path).rows[0][1] == "damaged"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_what_a_record_lacks_has_a_default(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(WHOLE))
    found = read_record(tmp_path)
    assert (found["overrides"], found["metrics"], found["wall_time_s"]) == ([], {}, 0.0)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"config": ' * 50_000, "9" * 10_000, '"\\ud800', "{}" * 2])
def test_text_that_is_hard_to_parse_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match="not a run record"):
        read_record(tmp_path)


def test_a_record_nested_too_deep_is_refused(tmp_path):
    config = {}
    for _ in range(200):
        config = {"x": config}
    (tmp_path / "run.json").write_text(json.dumps(WHOLE | {"config": config}))
    with pytest.raises(UserError, match="nested more than"):
        read_record(tmp_path)


def test_a_pipe_is_no_record(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    assert read_record(tmp_path) is None


@pytest.mark.parametrize(
    "line", ["[]", "3", '"x"', "{}", '{"stage": "train"}', '{"stage": 1, "step": 2}', '{"stage": "a", "step": null}',
             '{"stage": "a", "step": "1"}', '{"stage": "a", "step": true}', "[" * 100_000],
)  # fmt: skip
def test_a_line_of_metrics_of_another_shape_is_passed_over(toy, line):
    assert metrics_line(line) is None
    assert run_here("optim.num_steps=4", "log_every_steps=2", "hydra.run.dir=one") == 0
    with open("one/metrics.jsonl", "a") as file:
        file.write(line + "\n")
    assert "1 damaged line" in write_report(["one"]).read_text()
    assert run_here("optim.num_steps=8", "log_every_steps=2", "hydra.run.dir=one") == 0
    assert len(Path("one/metrics.jsonl").read_text().splitlines()) == 4


def test_hydra_s_files_may_be_damaged(toy):
    assert run_here("optim.num_steps=2", "hydra.run.dir=one") == 0
    assert run_here("-m", "optim.num_steps=2", "hydra.sweep.dir=sweep") == 0
    for path in ("one/.hydra/hydra.yaml", "sweep/multirun.yaml"):
        whole = Path(path).read_text()
        for content in (
            "",
            "3",
            "[]",
            "a: [",
            "hydra: {}",
            "hydra: {overrides: 3, runtime: 3}",
            "\x00",
            "- x",
            whole[:200],
        ):
            Path(path).write_text(content)
            with pytest.raises(UserError, match=f"{path}: not what Hydra saves, or damaged"):
                resume(Path(path.split("/")[0]))
        Path(path).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UserError, match=path):
            resume(Path(path.split("/")[0]))
        Path(path).write_text(whole)
    assert resume(Path("one")) == 0 and resume(Path("sweep")) == 0


def test_hydra_s_files_are_whole_or_not_there(toy, monkeypatch):
    written = []
    monkeypatch.setattr("toolkit.one_job.write_atomic", lambda path, data: written.append((path.name, bool(data))))
    assert run_here("optim.num_steps=2", "hydra.run.dir=one") == 0
    assert written == [("config.yaml", True), ("hydra.yaml", True), ("overrides.yaml", True)]


def test_a_folder_that_is_removed_under_its_run_is_not_made_anew(toy):
    process = start("step_time_s=0.1", "log_every_steps=1", "hydra.run.dir=one")
    while not (toy / "one/metrics.jsonl").exists():
        time.sleep(0.01)
    os.rename("one", "gone")
    assert finish(process) == [1]
    assert not (toy / "one").exists()
    said = (toy / "output.txt").read_text()
    assert "toolkit: error: one: the run folder was removed or moved while its run was writing" in said
    assert "Traceback" not in said


def test_a_finished_run_that_can_only_be_read_is_done_already(toy, capfd):
    assert run_here("optim.num_steps=2", "hydra.run.dir=one") == 0
    before = {path: path.read_bytes() for path in Path("one").rglob("*") if path.is_file()}
    os.chmod("one", stat.S_IRUSR | stat.S_IXUSR)
    os.chmod("one/run.lock", stat.S_IRUSR)
    assert run_here("optim.num_steps=2", "hydra.run.dir=one") == 0
    assert "one is done already" in capfd.readouterr().err
    os.chmod("one", stat.S_IRWXU)
    assert {path: path.read_bytes() for path in Path("one").rglob("*") if path.is_file()} == before
    assert record("one")["status"] == "done"


def test_a_checkpoint_of_another_version_is_one_line(toy, capfd):
    import torch

    from toolkit.runs import checkpoint

    for change in ({"state.model": {}}, {"stop_early": None}, {"pending": None}, {"state.optimizer": 3}):
        assert run_here("optim.num_steps=4", "hydra.run.dir=one") == 0
        folder = toy / "one/checkpoints/train"
        step, content = checkpoint.load(folder)
        [path] = folder.iterdir()
        path.unlink()
        key, value = next(iter(change.items()))
        content = {name: one for name, one in content.items() if name != key} | ({} if value is None else change)
        checkpoint.save(folder, step, content, keep=1)
        capfd.readouterr()
        assert run_here("optim.num_steps=8", "hydra.run.dir=one") == 2
        said = capfd.readouterr().err
        assert (
            "one/checkpoints/train: the checkpoint of step 4 is of another version" in said and "Traceback" not in said
        )
        shutil.rmtree("one")
    assert torch.is_tensor(content["state.ballast"]["numbers"])
