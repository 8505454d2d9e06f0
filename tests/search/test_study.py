"""A search that is killed goes on as if nobody had touched it; wrong ones are refused. Needs the extra ``search``."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.toyroom.harness import _processes, finish, record, result
from toolkit.errors import UserError
from toolkit.search import study
from toolkit.search.study import search

optuna = pytest.importorskip("optuna")

WORDS = ["optim.lr=tag(log,interval(1e-3,1e-1))", "network.width=2,4", "log_every_steps=1"]


def trials(folder):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "study.log")))
    study = optuna.load_study(study_name="train-toy", storage=storage)
    return [(trial.params, trial.value, trial.state.name) for trial in study.trials]


def slow(folder, conf):
    os.environ["TOOLKIT_CONF"] = conf
    search("train-toy", [*WORDS, "step_time_s=0.03", "checkpoint_every_steps=2"], Path(folder), 4, 3)


@pytest.mark.slow
def test_a_killed_search_goes_on_with_the_trial_it_was_at(toy, capfd):
    words = [*WORDS, "step_time_s=0.03", "checkpoint_every_steps=2"]
    process = _processes.Process(target=slow, args=("one", os.environ["TOOLKIT_CONF"]))
    process.start()
    while not list(toy.glob("one/0001/checkpoints/train/step-*")):
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    assert finish(process) == [-signal.SIGKILL]
    assert [state for *_, state in trials(toy / "one")] == ["COMPLETE", "RUNNING"]
    assert search("train-toy", words, Path("one"), 4, 3) == 0
    out, error = capfd.readouterr()
    assert "4 of 4 trials done in one" in out and "train: resuming after step" in error
    assert search("train-toy", words, Path("whole"), 4, 3) == 0
    assert trials(toy / "one") == trials(toy / "whole")
    assert result("one/0001") == result("whole/0001")
    values = [value for _, value, _ in trials(toy / "one")]
    assert [record(f"one/{number:04d}")["objective"] for number in range(4)] == values
    assert len({json.dumps(params) for params, *_ in trials(toy / "one")}) == 4
    assert f"best: {min(values):.6g} with optim.lr=" in capfd.readouterr().out


def test_trials_that_fail_are_told_and_counted(toy, capfd):
    words = ["optim.lr=0.01,1e30", "optim.num_steps=2"]
    assert search("train-toy", words, Path("one"), 4, 0) == 0
    states = {params["optim.lr"]: state for params, _, state in trials(toy / "one")}
    assert states == {"0.01": "COMPLETE", "1e+30": "FAIL"} and len(trials(toy / "one")) == 4
    assert " of 4 trials done in one" in capfd.readouterr().out
    with pytest.raises(UserError, match="one: holds another search"):
        search("train-toy", [*words, "seed=1"], Path("one"), 4, 0)


def test_the_best_trial_is_the_one_with_the_least_objective(toy, capfd):
    assert search("train-toy", ["optim.lr=tag(log,interval(1e-3,1e-1))", "optim.num_steps=3"], Path("one"), 3, 0) == 0
    values = [value for _, value, _ in trials(toy / "one")]
    assert len(set(values)) == 3
    best = values.index(min(values))
    said = capfd.readouterr().out.splitlines()[-1]
    assert said.startswith(f"best: {min(values):.6g} with optim.lr=") and said.endswith(f"(one/{best:04d})")


def test_a_journal_of_somebody_else_names_nothing_that_is_run(toy):
    words = ["optim.lr=0.01,0.02", "optim.num_steps=1"]
    assert search("train-toy", words, Path("one"), 1, 0) == 0
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("one/study.log"))
    theirs = optuna.load_study(study_name="train-toy", storage=storage)
    theirs.ask({"hydra.callbacks.own._target_": optuna.distributions.CategoricalDistribution(["os.abort"])})
    theirs.ask()  # killed before its settings were chosen
    assert search("train-toy", words, Path("one"), 4, 0) == 0
    assert [state for *_, state in trials(toy / "one")] == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]


def test_a_run_that_failed_has_no_objective_whatever_its_record_says(toy, monkeypatch):
    monkeypatch.setattr(study, "read_record", lambda folder: {"objective": 1.0})
    search("train-toy", ["optim.lr=1e30,2e30", "optim.num_steps=2"], Path("one"), 1, 0)
    assert [(value, state) for _, value, state in trials(toy / "one")] == [(None, "FAIL")]


def test_a_search_whose_every_trial_is_refused_ends_at_the_second(toy, capfd):
    with pytest.raises(UserError, match=r"no setting in common are refused alike: optim\.num_steps"):
        search("train-toy", ["optim.lr=tag(log,interval(1e-3,1e-1))", "optim.num_steps=-1"], Path("one"), 9, 0)
    assert [state for *_, state in trials(toy / "one")] == ["FAIL", "FAIL"]


def test_settings_that_are_refused_end_no_search(toy, capfd):
    assert search("train-toy", ["optim.lr=-2,-1,0.01", "optim.num_steps=1"], Path("one"), 9, 0) == 0
    states = [(params["optim.lr"], state) for params, _, state in trials(toy / "one")]
    assert set(states) == {("-2", "FAIL"), ("-1", "FAIL"), ("0.01", "COMPLETE")}
    assert len(states) == 9 and max(states.count(("-1", "FAIL")), states.count(("-2", "FAIL"))) > 1


def test_a_run_without_an_objective_is_no_trial(toy, monkeypatch):
    monkeypatch.setattr(study, "read_record", lambda folder: {"objective": None})
    with pytest.raises(UserError, match="0000: the run has no objective to search by"):
        search("train-toy", ["seed=1,2", "optim.num_steps=1"], Path("one"), 2, 0)
    assert trials(toy / "one")[0][2] == "FAIL"


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("train-tou", WORDS, "train-tou: no such command; did you mean 'train-toy'"),
        ("train-toy", ["seed=1"], "nothing to search"),
    ],
)
def test_refusals(toy, command, words, said):
    with pytest.raises(UserError, match=said):
        search(command, words, Path("one"), 2, 0)
    assert not Path("one").exists()


def test_several_processes_are_no_search(toy, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="each trial is one process"):
        search("train-toy", WORDS, Path("one"), 2, 0)
