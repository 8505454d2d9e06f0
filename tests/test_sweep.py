"""Sweeps: every job runs, failures are named, the same command again does what is missing."""

import json
import time
from pathlib import Path

import pytest

from tests.toyroom.harness import finish, record, run_here, start
from toolkit import one_job, sweep
from toolkit.errors import UserError
from toolkit.resume import resume

SHORT = ["optim.num_steps=4", "hydra.sweep.dir=sweep"]


def statuses(folder):
    return {path.parent.name: json.loads(path.read_text())["status"] for path in sorted(folder.glob("*/run.json"))}


def test_a_failing_job_is_named_and_the_others_finish(toy, capfd):
    words = ["-m", "optim.lr=0.01,-1,1e30,0.02", *SHORT]
    assert run_here(*words) == 1
    out, error = capfd.readouterr()
    assert "2 of 4 jobs done in sweep" in out
    assert "job 1 failed (sweep/1): optim.lr=-1.0: must be greater than 0" in out
    assert "job 2 failed (sweep/2): train: loss is" in out and "at step 2" in out
    assert "repeat what is missing with: toolkit runs resume sweep" in out
    assert error.count("toolkit: error:") == 2 and "Traceback" not in error
    assert statuses(toy / "sweep") == {"0": "done", "2": "failed", "3": "done"}

    assert run_here(*words) == 1
    assert capfd.readouterr().err.count("is done already") == 2


@pytest.mark.parametrize("again", ["same command", "runs resume"])
def test_an_interrupted_sweep_is_taken_up_again(toy, capfd, again):
    words = ["-m", "seed=1,2,3", "optim.num_steps=40", "hydra.sweep.dir=sweep"]
    process = start(*words, "step_time_s=0.03")
    while not (toy / "sweep/1/metrics.jsonl").exists() and not list((toy / "sweep").glob("1/run.json")):
        time.sleep(0.01)
    time.sleep(0.3)
    process.terminate()
    assert finish(process) == [143]
    assert statuses(toy / "sweep") == {"0": "done", "1": "interrupted"}
    [line] = [line for line in (toy / "output.txt").read_text().splitlines() if "interrupted" in line]
    assert line == "toolkit: interrupted; continue with: toolkit runs resume sweep"
    assert (resume(Path("sweep")) if again == "runs resume" else run_here(*words)) == 0
    out, error = capfd.readouterr()
    assert "3 of 3 jobs done in sweep" in out
    assert "sweep/0 is done already" in error and "train: resuming after step" in error
    assert statuses(toy / "sweep") == {"0": "done", "1": "done", "2": "done"}


def test_seeds_added_at_the_end_run_and_the_others_are_skipped(toy, capfd):
    assert run_here("-m", "seed=1,2", *SHORT) == 0
    assert run_here("-m", "seed=1,2,3", *SHORT) == 0
    assert capfd.readouterr().err.count("is done already") == 2
    assert {name: record(toy / "sweep" / name)["seed"] for name in "012"} == {"0": 1, "1": 2, "2": 3}


def test_sweeps_have_a_place_of_their_own_by_default(toy):
    assert run_here("-m", "seed=1,2", "optim.num_steps=2") == 0
    [sweep] = (toy / "runs/train-toy/sweeps").iterdir()
    assert statuses(sweep) == {"0": "done", "1": "done"}


def test_a_single_run_is_resumed_from_its_folder(toy):
    process = start("seed=3", "step_time_s=0.03", "hydra.run.dir=one")
    while not (toy / "one/run.json").exists():
        time.sleep(0.01)
    process.terminate()
    assert finish(process) == [143]
    assert resume(toy / "one") == 0
    assert record("one")["status"] == "done" and record("one")["overrides"] == ["seed=3", "step_time_s=0.03"]


def test_a_folder_whose_name_means_something_to_hydra_is_resumed(toy):
    folder = toy / "a b,c=(d)"
    assert run_here("seed=3", "optim.num_steps=2", "hydra.run.dir='a b,c=(d)'") == 0
    assert resume(folder) == 0
    assert run_here("-m", "seed=1,2", "optim.num_steps=2", "hydra.sweep.dir='x y,z'") == 0
    assert resume(toy / "x y,z") == 0


def test_a_run_with_presets_of_ones_own_is_resumed(toy):
    (toy / "mine/experiment").mkdir(parents=True)
    preset = "# @package _global_\n# Mine.\ncommand: train-toy\noptim:\n  num_steps: 2\n"
    (toy / "mine/experiment/my_toy.yaml").write_text(preset)
    assert run_here("--config-dir", "mine", "experiment=my_toy", "hydra.run.dir=one") == 0
    with pytest.raises(UserError, match="if it is yours: toolkit runs resume one --config-dir"):
        resume(Path("one"))
    assert resume(toy / "one", Path("mine")) == 0


def test_presets_on_a_search_path_of_ones_own_are_found_and_a_sweep_of_them_is_resumed(toy):
    (toy / "mine/experiment").mkdir(parents=True)
    preset = "# @package _global_\n# Mine.\ncommand: train-toy\noptim:\n  num_steps: 2\n"
    (toy / "mine/experiment/my_toy.yaml").write_text(preset)
    words = ["hydra.searchpath=[mine]", "experiment=my_toy", "seed=1,2", "hydra.sweep.dir=many"]
    assert run_here("-m", *words) == 0 and statuses(Path("many")) == {"0": "done", "1": "done"}
    with pytest.raises(UserError, match="if it is yours: toolkit runs resume many --config-dir mine"):
        resume(Path("many"))
    assert resume(toy / "many", Path("mine")) == 0


def test_a_folder_that_holds_neither_is_refused(toy):
    with pytest.raises(UserError, match="neither a run"):
        resume(toy)


def test_a_run_of_a_command_that_is_not_there_is_refused(toy):
    run_here("optim.num_steps=2", "hydra.run.dir=one")
    path = toy / "one/run.json"
    path.write_text(path.read_text().replace('"command": "train-toy"', '"command": "train-moon"'))
    with pytest.raises(UserError, match="one: a run of train-moon, which is not a command"):
        resume(Path("one"))


def test_a_job_that_a_launcher_lost_is_reported_and_no_wrong_config(toy, capfd, monkeypatch):
    """As submitit raises it, within Hydra, when a job's time was up too often."""
    lost = type("UncompletedJobError", (Exception,), {"__module__": "submitit.core.utils"})

    def job(_):
        for number in (10, 9, 2):  # the last one ended before
            (toy / f"sweep/{number}").mkdir()
            (toy / f"sweep/{number}/run.json").write_text("{}")
        sweep.note_job(toy / "sweep", 2, toy / "sweep/2", 0, "")
        raise lost("Job not requeued because: timed-out too many times.")

    monkeypatch.setattr(one_job, "run_job", job)
    assert run_here("-m", "seed=1", "hydra.sweep.dir=sweep") == 1
    out, error = capfd.readouterr()
    assert "toolkit: error: Job not requeued because" in error and "Traceback" not in error
    assert "1 of 3 jobs done in sweep\n  job 9 did not end (sweep/9)\n  job 10 did not end (sweep/10)\n" in out
    assert "repeat what is missing with: toolkit runs resume sweep" in out


def test_joblib_runs_jobs_in_processes_and_reports_as_one(toy, capfd):
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    words = ["-m", "optim.lr=0.01,-1,0.02,1e30", *SHORT, *parallel]
    assert run_here(*words) == 1
    out = capfd.readouterr().out
    assert "2 of 4 jobs done in sweep" in out
    assert "job 1 failed (sweep/1): optim.lr=-1.0" in out and "job 3 failed (sweep/3): train: loss is" in out
    assert statuses(toy / "sweep") == {"0": "done", "2": "done", "3": "failed"}
    ended = record("sweep/0")["stages"]
    assert resume(Path("sweep")) == 1
    assert "2 of 4 jobs done in sweep" in capfd.readouterr().out
    assert record("sweep/0")["stages"] == ended


@pytest.mark.slow
def test_jobs_on_a_local_cluster_of_ray(toy, capfd):
    """Needs the extra ``ray``."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    try:
        assert run_here("-m", "hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2", "seed=1,2", *SHORT) == 0
    finally:
        ray.shutdown()
    assert "2 of 2 jobs done in sweep" in capfd.readouterr().out
    assert statuses(toy / "sweep") == {"0": "done", "1": "done"}
