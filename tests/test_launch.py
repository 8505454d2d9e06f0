"""Bad input to a job command: exit code 2, one line that names the key, nothing left on disk."""

import errno
import os
import shutil
import signal
import sys

import numpy as np
import pytest
import torch

from tests.toyroom.harness import record, run_here
from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.errors import UserError

BAD = {
    "wrong key": ("optim.lrr=3", "optim.lrr: no such key; did you mean 'optim.lr'?"),
    "key of another group": ("lr=3", "lr: no such key; did you mean 'optim.lr'?"),
    "key of a wrong group": ("optm.num_steps=3", "optm.num_steps: no such key; did you mean 'optim.num_steps'?"),
    "key that is like no other but for its group": (
        "optim.learning_rate=3",
        "optim.learning_rate: no such key; --keys",
    ),
    "wrong top key": ("sed=3", "sed: no such key; did you mean 'seed'?"),
    "added key": ("+note=1", "note: no such key"),
    "added nested key": ("+optim.note=1", "optim.note: no such key"),
    "forced key": ("++optim.note=1", "optim.note: no such key"),
    "wrong type": ("optim.lr=abc", "optim.lr=abc"),
    "number in words": ("optim.num_steps=ten", "optim.num_steps=ten"),
    "none where a number is needed": ("optim.lr=null", "optim.lr"),
    "out of range": ("optim.lr=-1", "optim.lr=-1.0: must be greater than 0"),
    "not a number": ("optim.lr=nan", "optim.lr=nan: must be a finite number"),
    "out of range in a list": ("optim.drift=[0.9,1.5]", "optim.drift=1.5: must be less than 1"),
    "not a choice": ("precision=fp61", "precision=fp61: did you mean 'fp16'?|precision=fp61:"),
    "across fields": ("optim.batch_size=999999", "optim.batch_size=999999: too large for network.width"),
    "unknown preset": ("experiment=toy_wid", "experiment=toy_wid: no such preset; did you mean 'toy_wide'?"),
    "other command's preset": ("experiment=other_smoke", "experiment=other_smoke: a preset of sample-other"),
    "unknown option of a group": ("network=wid", "network=wid: did you mean 'wide'? choose one of narrow, wide"),
    "unknown group": ("netwrk=wide", "netwrk: no such key; did you mean 'network'?"),
    "another command": ("command=train-other", "command=train-other: this is toolkit train-toy"),
    "reference to nothing": ("optim.lr=${nope}", "optim.lr: Interpolation key 'nope' not found"),
    "reference to another type": ("optim.lr=${command}", "optim.lr"),
    "unparsable": ("optim.drift=[1", "no viable alternative at input '[1'"),
    "bare word": ("fast", "fast: not an override; write KEY=VALUE"),
    "two bare words": ("fast run", "fast run: not an override; write KEY=VALUE"),
    "a value to quote": ("data_path=a=b", """data_path=a=b: mismatched input '=' expecting <EOF>; a value"""),
    "unknown flag": ("--fast", "--fast: no such flag"),
    "flag with a bad value": ("--cfg=nonsense", "invalid choice: 'nonsense'"),
    "unknown launcher": ("hydra/launcher=moon", "hydra/launcher=moon: choose one of basic"),
    "missing data": ("data_path=nowhere", "data_path=nowhere: no such folder"),
    "a folder that cannot be made": ("hydra.run.dir=/proc/here/x", "choose another hydra.run.dir"),
}


@pytest.mark.parametrize(("word", "words"), BAD.values(), ids=list(BAD))
def test_bad_input_is_one_line_and_leaves_nothing(toy, capfd, word, words):
    assert run_here(word) == 2
    assert_one_line(capfd, words)
    assert list(toy.iterdir()) == []


@pytest.mark.parametrize("folder", ["mine/new/one", "mine", "{}/mine/new/one"])
def test_folders_that_were_there_stay(toy, capfd, folder):
    (toy / "mine").mkdir()
    assert run_here("data_path=nowhere", f"hydra.run.dir={folder.format(toy)}") == 2
    assert list(toy.rglob("*")) == [toy / "mine"]
    assert run_here("-m", "optim.lr=1,abc", f"hydra.sweep.dir={folder.format(toy)}") == 2
    assert list(toy.rglob("*")) == [toy / "mine"]


def assert_one_line(capfd, words):
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("toolkit: error: "), captured.err
    assert any(option in lines[0] for option in words.split("|")), lines[0]
    assert "Traceback" not in captured.out and "Error executing job" not in captured.out


@pytest.mark.parametrize("words", [["-m", "optim.lrr=1,2"], ["-m", "network=wide,huge"], ["-m", "optim.lr=1,abc"]])
def test_a_sweep_that_cannot_be_composed_leaves_nothing(toy, capfd, words):
    assert run_here(*words) == 2
    assert_one_line(capfd, "optim.lr|network")
    assert list(toy.iterdir()) == []


def test_a_run_folder_of_another_config(toy, capfd):
    run_here("hydra.run.dir=one")
    before = {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()}
    capfd.readouterr()
    assert run_here("network=wide", "hydra.run.dir=one") == 2
    assert_one_line(capfd, "one: holds a run of another config: network.width is 8 there, 16 here")
    assert {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()} == before


def test_a_damaged_record(toy, capfd):
    (toy / "one").mkdir()
    (toy / "one/run.json").write_text('{"status": "don')
    assert run_here("hydra.run.dir=one") == 2
    assert_one_line(capfd, "one/run.json: not a run record")


def test_a_locked_folder(toy, capfd):
    import fcntl

    (toy / "one").mkdir()
    with open("one/run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_here("hydra.run.dir=one") == 2
    assert_one_line(capfd, "one: another process is running this run")


def test_a_file_where_the_folder_should_be(toy, capfd):
    (toy / "one").write_text("mine")
    assert run_here("hydra.run.dir=one") == 2
    assert_one_line(capfd, "one")
    assert (toy / "one").read_text() == "mine"


def test_a_bug_shows_its_traceback_and_fails_with_1(toy, capfd, monkeypatch):
    from tests.toyroom import job

    monkeypatch.setattr(job, "_measure", lambda config, run: {}["missing"])
    assert run_here("hydra.run.dir=one") == 1
    assert "KeyError: 'missing'" in capfd.readouterr().err
    saved = record("one")
    assert saved["status"] == "failed" and saved["error"] == "KeyError: 'missing'"
    assert saved["stages"]["train"]["status"] == "done"
    assert "KeyError" in (toy / "one/run.log").read_text()


def linker():
    raise ImportError("libtorch_cpu.so: failed to map segment from shared object")


USES = [lambda: torch.empty(2**52), lambda: np.empty(2**52), lambda: bytearray(2**62), linker]


@pytest.mark.parametrize("used", USES)
def test_memory_that_is_used_up_is_one_line(toy, capfd, monkeypatch, used):
    from tests.toyroom import job

    monkeypatch.setattr(job, "_measure", lambda *_: used())
    assert run_here("optim.num_steps=2", "hydra.run.dir=one") == 1
    error = capfd.readouterr().err
    [line] = [line for line in error.splitlines() if "error" in line]
    assert (
        line.startswith("toolkit: error: one: out of memory (") and "toolkit plan" in line and "Traceback" not in error
    )
    assert record("one")["status"] == "failed" and record("one")["stages"]["train"]["status"] == "done"
    assert line == f"toolkit: error: {record('one')['error']}"


def test_a_disk_that_is_full_when_a_folder_is_copied_is_one_line(toy, capfd, monkeypatch):
    from tests.toyroom import job

    def copy(*_):
        why = f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}: 'b/net'"
        raise shutil.Error([("a/net", "one/b/net", why), ("a/other", "one/b/other", why)])

    monkeypatch.setattr(job, "_measure", copy)
    assert run_here("optim.num_steps=2", "hydra.run.dir=one") == 1
    error = capfd.readouterr().err
    assert "toolkit: error: one: one/b/net could not be written ([Errno 28]" in error and "a/other" not in error


def test_a_run_folder_holds_what_the_readme_says(toy, capfd):
    assert run_here("seed=5", "hydra.run.dir=one") == 0
    found = {str(path.relative_to(toy / "one")) for path in (toy / "one").rglob("*") if path.is_file()}
    [checkpoint] = [name for name in found if name.startswith("checkpoints/train/step-000000030-")]
    hydra = {".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"}
    files = {"run.json", "run.lock", "run.log", "metrics.jsonl", "report.html", "model/net/model.safetensors"}
    assert found == {checkpoint, *hydra, *files}
    assert "step 30/30" in (toy / "one/run.log").read_text()
    assert capfd.readouterr().err.count("step 30/30") == 1
    assert record("one")["overrides"] == ["seed=5"]


def test_folders_are_named_by_command_and_time(toy):
    for _ in range(2):
        assert run_here("optim.num_steps=1") == 0
    assert len(list((toy / "runs/train-toy").iterdir())) == 2


def test_a_preset_wins_over_the_command_and_the_command_line_over_the_preset(toy):
    run_here("experiment=toy_wide", "hydra.run.dir=one")
    run_here("experiment=toy_wide", "optim.num_steps=3", "hydra.run.dir=two")
    assert record("one")["config"]["network"]["width"] == 16 and record("one")["config"]["optim"]["num_steps"] == 20
    assert record("two")["config"]["optim"]["num_steps"] == 3


def test_references_between_keys_work_and_are_resumed_as_typed(toy):
    from toolkit.resume import resume

    assert run_here("optim.batch_size=${network.width}", "hydra.run.dir=one") == 0
    assert record("one")["config"]["optim"]["batch_size"] == 8
    assert record("one")["overrides"] == ["optim.batch_size=${network.width}"]
    assert resume(toy / "one") == 0


def test_flags_may_stand_anywhere(toy, capfd):
    assert run_here("seed=7", "--cfg", "job", "optim.lr=0.5") == 0
    out = capfd.readouterr().out
    assert "seed: 7" in out and "lr: 0.5" in out
    assert list(toy.iterdir()) == []


def test_a_folder_of_ones_own_presets(toy):
    (toy / "mine/experiment").mkdir(parents=True)
    preset = "# @package _global_\n# Mine.\ncommand: train-toy\noptim:\n  num_steps: 2\n"
    (toy / "mine/experiment/my_toy.yaml").write_text(preset)
    assert run_here("--config-dir", "mine", "experiment=my_toy", "hydra.run.dir=one") == 0
    assert record("one")["stages"]["train"]["step"] == 2


@pytest.mark.parametrize("words", [["--config-dir", "a b"], ["--config-dir=a b"], ["hydra.searchpath=['a b']"]])
def test_a_dry_run_composes_presets_of_ones_own(toy, words):
    (toy / "a b/experiment").mkdir(parents=True)
    (toy / "a b/experiment/mine.yaml").write_text("# @package _global_\ncommand: train-toy\noptim: {num_steps: 37}\n")
    assert compose(COMMANDS["train-toy"], [*words, "experiment=mine", "seed=4"]).optim.num_steps == 37


@pytest.mark.parametrize(
    "words, problem",
    [
        (["-cd", "nix"], "-cd nix: no such folder"),
        (["seed=1", "--config-dir"], "--config-dir: names no folder"),
        (["-m", "seed=1,2"], "-m: only runs take this flag"),
        (["--config-dir", ".", "hydra.searchpath=[.]"], "give one of them"),
    ],
)
def test_flags_that_a_dry_run_cannot_take_are_refused_in_one_line(toy, words, problem):
    with pytest.raises(UserError, match=problem):
        compose(COMMANDS["train-toy"], words)


@pytest.mark.parametrize(
    "words, problem",
    [
        (["hydra.run.dir="], "hydra.run.dir=: names no folder"),
        (["hydra.run.dir=''"], "hydra.run.dir='': names no folder"),
        (["-m", "seed=1,2", "hydra.sweep.dir="], "hydra.sweep.dir=: names no folder"),
        (["-m", "seed=1,2", "--cfg", "job"], "--cfg: describes one job; leave out -m"),
        (["-m", "seed=1,2", "--info", "defaults"], "--info: describes one job; leave out -m"),
    ],
)
def test_what_hydra_would_misread_is_refused(toy, capfd, words, problem):
    assert run_here(*words) == 2 and problem in capfd.readouterr().err
    assert list(toy.iterdir()) == []


def test_a_wrong_preset_is_held_against_ones_own_and_the_commands(toy, capfd):
    (toy / "mine/experiment").mkdir(parents=True)
    (toy / "mine/experiment/my_toy.yaml").write_text("# @package _global_\ncommand: train-toy\n")
    assert run_here("--config-dir", "mine", "experiment=my_tou") == 2
    said = capfd.readouterr().err
    assert "did you mean 'my_toy'" in said and "disco_smoke" not in said


def test_the_root_logger_and_argv_are_given_back(toy):
    import logging

    before = (logging.getLogger().handlers[:], logging.getLogger().level, sys.argv[:])
    run_here("optim.num_steps=1")
    assert (logging.getLogger().handlers, logging.getLogger().level, sys.argv) == before


def test_a_signal_that_finds_the_environment_emptied_is_still_one(toy, monkeypatch):
    """accelerate empties it for a moment; the code is then 143, and all is there again."""
    from tests.toyroom import job

    monkeypatch.setenv("MINE", "1")
    before = dict(os.environ)

    def stopped(*_):
        os.environ.clear()
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(job, "_measure", stopped)
    assert run_here("optim.num_steps=1") == 143
    assert dict(os.environ) == before


@pytest.mark.parametrize("where", ["in the job", "while the config is composed"])
def test_a_signal_that_breaks_a_library_is_still_one(toy, capfd, monkeypatch, where):
    """A library's ``finally`` fails with an error of its own, as OmegaConf's does: that error is not the reason."""
    from omegaconf.errors import ConfigAttributeError

    from tests.toyroom import job
    from toolkit import launch

    def stopped(*_):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            try:
                None.flags  # noqa: B018
            except AttributeError as error:
                raise ConfigAttributeError("half composed") from error

    in_job = where == "in the job"
    monkeypatch.setattr(*((job, "_measure") if in_job else (launch, "register")), stopped)
    assert run_here("optim.num_steps=1", "hydra.run.dir=one") == 143
    said = capfd.readouterr().err
    assert "Traceback" not in said and "error" not in said
    assert not in_job or record("one")["status"] == "interrupted"
