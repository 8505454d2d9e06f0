"""A folder that somebody else made: taking it up again runs nothing that it names."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from tests.toyroom.harness import finished_run_and_sweep
from toolkit.claims.parse import load_claims
from toolkit.errors import UserError
from toolkit.paths import experiments_dir
from toolkit.resume import check_words, launch_replayed, resume

MADE = "MADE"  # the file that every attack would make
EVIL_CONFIG = f"""# @package _global_
command: train-toy
hydra:
  callbacks:
    evil:
      _target_: toolkit.data.fetching._run
      command: [touch, {MADE}]
      folder: .
"""
RUN = "toolkit.data.fetching._run"
TASK = {  # overrides of a run, or of a sweep's jobs
    "a callback": f"+hydra.callbacks.x={{_target_: {RUN}, command: [touch, {MADE}], folder: .}}",
    "a callback, forced": f"++hydra.callbacks.x={{_target_: {RUN}, command: [touch, {MADE}], folder: .}}",
    "a callback from builtins": f"+hydra.callbacks.x={{_target_: builtins.open, _args_: [{MADE}, w]}}",
    "a callback from pathlib": (
        f"+hydra.callbacks.x={{_target_: pathlib.Path.touch, self: {{_target_: pathlib.Path, _args_: [{MADE}]}}}}"
    ),
    "another class in ours": f"hydra.callbacks.sweep._target_={RUN}",
    "one of our helpers": f"+hydra.callbacks.x={{_target_: toolkit.runs.files.write_atomic, path: {MADE}, data: x}}",
    "a class in the launcher": f"hydra.launcher._target_={RUN}",
    "a class in the sweeper": "hydra.sweeper._target_=toolkit.runs.files.write_atomic",
    "handlers of the log": (f"+hydra.job_logging.handlers.x={{class: logging.FileHandler, filename: {MADE}}}"),
    "a log by name": "hydra/job_logging=default",
    "hydra's own log": f"+hydra.hydra_logging.handlers.x={{class: logging.FileHandler, filename: {MADE}}}",
    "a search path": "hydra.searchpath=[file://evil]",
    "a config by its path": "network=../../evil/evil",
    "a config by an absolute path": "network={here}/evil/evil",
    "a preset by its path": "experiment=../../work/evil/evil",
    "a list of configs by path": "network=[narrow,../../evil/evil]",
    "a sweep over configs by path": "network=narrow,../../evil/evil",
    "a package": "network@hydra.callbacks=narrow",
    "the environment": "data_path=${oc.env:HOME}",
    "the environment, escaped": "data_path=$\\{oc.env:HOME\\}",
    "a resolver that decodes": "data_path=${oc.decode:x}",
    "a resolver within one": "data_path=${oc.select:x,${oc.env:HOME}}",
    "a class in a value": f"optim={{_target_: {RUN}}}",
    "variables of the job": "hydra.job.env_set.LD_PRELOAD=./evil.so",
    "another working folder": "hydra.job.chdir=true",
    "an unknown key": "+optim.evil=1",
}
OWN = {  # overrides of Hydra's own, as a sweep keeps them
    "a launcher that is none": "hydra/launcher=evil",
    "a launcher's class": f"hydra.launcher._target_={RUN}",
    "commands before a job": f"hydra.launcher.setup=[touch {MADE}]",
    "another python": "+hydra.launcher.python=./evil.sh",
    "an expression": f"hydra.launcher.pre_dispatch=__import__('os').system('touch {MADE}')",
    "another line of a batch script": f"hydra.launcher.partition='x\ntouch {MADE}'",
    "parameters of the queue": "+hydra.launcher.additional_parameters.wrap=evil",
    "a cluster that is not ours": "+hydra.launcher.ray.init.address=evil:1",
    "pickles of somebody's": "hydra.launcher.submitit_folder=evil",
    "a backend by its module": "hydra.launcher.backend=${oc.env:HOME}",
    "a search space by its function": f"hydra.sweeper.custom_search_space={RUN}",
    "a data base": "hydra.sweeper.storage=sqlite:///evil.db",
    "a parameter of hydra's": f"+hydra.sweeper.params.hydra.callbacks.x='{{_target_: {RUN}}}'",
    "a parameter that is a path": "+hydra.sweeper.params.network='narrow,../../evil/evil'",
    "a folder outside": "hydra.sweep.subdir=../../outside",
    "an absolute folder": "hydra.sweep.subdir=/outside",
    "a callback": TASK["a callback"],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and a finished sweep."""
    return finished_run_and_sweep(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def hostile(toy, finished, monkeypatch):
    """The run and the sweep, which somebody may have changed; the attack's files lie around them."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(toy), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(toy))
    for name in ("one", "sweep"):
        shutil.copytree(finished / name, toy / name)
    for folder in (toy / "evil", toy.parent / "evil"):
        (folder / "experiment").mkdir(parents=True)
        for name in ("evil", "experiment/evil"):
            (folder / f"{name}.yaml").write_text(EVIL_CONFIG)
    (toy / "evil.py").write_text(f"open({MADE!r}, 'w')\n")
    return toy


def refused(folder, words, capfd):
    """Resuming ``folder`` is one line with ``words``; nothing was run and nothing is left."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError, match=words) as caught:
        resume(Path(folder))
    assert "\n" not in " ".join(str(caught.value).split()) and len(str(caught.value)) < 500
    assert sorted(Path().rglob("*")) == before and not Path(MADE).exists()
    assert capfd.readouterr() == ("", "")


def change(path, **values):
    content = json.loads(Path(path).read_text())
    Path(path).write_text(json.dumps(content | values))


@pytest.mark.parametrize("word", TASK.values(), ids=list(TASK))
def test_a_run_s_overrides_name_nothing_to_run(hostile, capfd, word):
    word = word.replace("{here}", str(hostile))
    change("one/run.json", overrides=["seed=0", word])
    capfd.readouterr()
    refused("one", r"one/run\.json: .*so it is not taken from a file", capfd)


@pytest.mark.parametrize("kind", ["task", "hydra"])
@pytest.mark.parametrize("word", (TASK | OWN).values(), ids=list(TASK | OWN))
def test_a_sweep_s_overrides_name_nothing_to_run(hostile, capfd, word, kind):
    saved = yaml.safe_load(Path("sweep/multirun.yaml").read_text())
    saved["hydra"]["overrides"][kind].append(word.replace("{here}", str(hostile)))
    Path("sweep/multirun.yaml").write_text(yaml.safe_dump(saved))
    capfd.readouterr()
    refused("sweep", r"sweep/multirun\.yaml: .*so it is not taken from a file", capfd)


def test_the_folder_s_own_configs_are_not_used(hostile, capfd):
    for path, folder in (("one/.hydra/hydra.yaml", "one"), ("sweep/multirun.yaml", "sweep")):
        saved = yaml.safe_load(Path(path).read_text())
        saved["hydra"]["runtime"]["config_sources"].append(
            {"path": str(hostile / "evil"), "schema": "file", "provider": "command-line"}
        )
        Path(path).write_text(yaml.safe_dump(saved))
        capfd.readouterr()
        refused(folder, f"{folder}: was started with a folder of configs of one's own; if it is yours", capfd)


def test_what_the_rest_of_a_folder_says_is_not_run(hostile):
    """Targets in the saved configs themselves are never made: only overrides are replayed."""
    for path in ("one/.hydra/hydra.yaml", "one/.hydra/config.yaml", "sweep/multirun.yaml"):
        saved = yaml.safe_load(Path(path).read_text())
        saved.setdefault("hydra", {})["callbacks"] = {"x": {"_target_": RUN, "command": ["touch", MADE], "folder": "."}}
        Path(path).write_text(yaml.safe_dump(saved))
    assert resume(Path("one")) == 0 and resume(Path("sweep")) == 0
    assert not Path(MADE).exists()


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system [touch MADE]", "a: !!python/name:os.system", "a: [*b]"]
)
def test_yaml_that_makes_objects_is_refused(hostile, capfd, text):
    for path, folder in (("one/.hydra/hydra.yaml", "one"), ("sweep/multirun.yaml", "sweep")):
        Path(path).write_text(text)
        capfd.readouterr()
        refused(folder, f"{path}: not what Hydra saves, or damaged", capfd)


def test_a_claim_names_nothing_to_run(hostile):
    for word in TASK.values():
        with pytest.raises(UserError, match="so it is not taken from a file"):
            launch_replayed("train-toy", [word, "hydra.run.dir=three"])
    assert not Path(MADE).exists() and not Path("three").exists()


def test_what_people_type_is_taken_up_again(toy):
    taken = [
        "seed=1,2,3", "optim.lr=0.1,0.2", "optim.drift=[0.5,0.6]", "optim={lr: 0.1}", "network=narrow,wide",
        "~experiment", "optim.batch_size=${network.width}", "data_path='a b, c=(d)'", "data_path='${now:%Y}/x'",
        "network.width=range(1,9)", "optim.num_steps=choice(1,2)", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
        "experiment=toy_wide", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu-a,gpu-b",
        "hydra.launcher.mem_per_gpu=20G",
        "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "+hydra.sweeper.params.optim.lr='interval(0.1,1)'",
        "hydra.sweep.subdir=seed_${seed}", "network=glob(*)",
    ]  # fmt: skip
    check_words("train-toy", taken, Path("sweep/multirun.yaml"))


def test_every_claim_may_be_reproduced():
    for path in sorted(experiments_dir().glob("*/claims.yaml")):
        for run in load_claims(path).runs.values():
            words = [word.replace("@", "runs/") for word in run.overrides + run.quick_overrides]
            check_words(run.command, words, path)
