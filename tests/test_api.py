"""The public face: what ``import toolkit`` gives, to a program, to an editor and to a type checker."""

import ast
import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import get_overloads

import pytest
import torch

import toolkit
from tests.toyroom.harness import REPO, result
from toolkit import api
from toolkit.commands import COMMANDS
from toolkit.errors import JobError, UserError
from toolkit.moved import MOVED
from toolkit.zoo.edm.mlp import MLPDenoiser


def in_a_process(code, **env):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})


# -- names -----------------------------------------------------------------------------------------------------------


def test_importing_costs_no_torch_and_dir_tells_every_name():
    done = in_a_process("""
        import sys, toolkit
        assert {"run", "load", "read_run", "compose", "data", "zoo", "guided", "WorldModel"} <= set(dir(toolkit))
        assert toolkit.UserError is not None and toolkit.run is not None
        heavy = {"torch", "numpy", "hydra", "omegaconf", "diffusers", "transformers", "rich"} & set(sys.modules)
        assert not heavy, heavy
    """)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", dir(toolkit))
def test_every_name_leads_somewhere_and_is_explained(name):
    found = getattr(toolkit, name)
    assert found.__name__.rpartition(".")[2] == name and found.__doc__


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'toolkit' has no attribute 'lod'"):
        toolkit.lod  # noqa: B018


def test_type_checkers_see_the_same_names_at_the_same_homes():
    tree = ast.parse((REPO / "toolkit" / "__init__.py").read_text())
    [block] = [node for node in tree.body if ast.unparse(node).startswith("if TYPE_CHECKING:")]
    seen = {
        alias.name: f"toolkit.{alias.name}" if node.module == "toolkit" else node.module
        for node in block.body
        for alias in node.names
        if alias.asname == alias.name  # ``as`` the same name: re-exported
    }
    [table] = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES"]
    assert seen == ast.literal_eval(table.value) and (REPO / "toolkit" / "py.typed").exists()


def test_every_command_composes_to_its_own_type():
    typed = [ast.unparse(ast.parse(str(one.__annotations__["return"]))) for one in get_overloads(api.compose)]
    commands = [name for name in COMMANDS if name != "train-toy"]
    assert typed == [*(type(toolkit.compose(name)).__name__ for name in commands), "Any"]


@pytest.mark.slow
def test_a_users_mypy_sees_the_names(tmp_path):
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""\
            import toolkit

            run = toolkit.run("train-disco", "experiment=disco_smoke", seed=1)
            reveal_type(run)
            reveal_type(run.metrics)
            reveal_type(run.curves["denoiser"]["loss"].values)
            reveal_type(toolkit.compose("train-disco").latents.codebook_size)
            reveal_type(toolkit.advise(1e9, 1e11).growth_tokens)
            reveal_type(toolkit.data.load)
            reveal_type(toolkit.heun)
            toolkit.lod("x")
            toolkit.compose("train-disco").latents.codebok_size
        """)
    )
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "mine.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    said = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    revealed = [line.split('"')[1] for line in said if "Revealed type" in line]
    assert revealed[:5] == [
        "toolkit.api.Run",
        "dict[str, float]",
        "list[float]",
        "int",
        "float",
    ]
    assert "Dataset" in revealed[5] and "Tensor" in revealed[6]
    assert [line for line in said if line.startswith("error")] == [
        'error: Module has no attribute "lod"  [attr-defined]',
        'error: "Latents" has no attribute "codebok_size"; maybe "codebook_size"?  [attr-defined]',
    ]


# -- old names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_module_warns_and_is_the_new_one(old, new):
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}; 0.2 is the last version to know the old name"):
        assert importlib.import_module(old) is importlib.import_module(new)
    del sys.modules[old]


def test_the_warning_points_at_the_line_that_names_the_old_place():
    done = in_a_process("""
        import warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            from toolkit.zoo.samplers import heun
            from toolkit.schema import JobError, UserError
        import toolkit
        assert heun is toolkit.heun and JobError is toolkit.JobError and UserError is toolkit.UserError
        print(*(f"{one.filename}:{one.lineno}" for one in caught if one.category is DeprecationWarning))
    """)
    assert done.stdout.split() == ["<string>:5", "<string>:6", "<string>:6"], done.stdout + done.stderr


def test_a_module_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("toolkit.zoo.sampler")


# -- jobs ------------------------------------------------------------------------------------------------------------


def test_a_job_runs_and_its_run_tells_what_it_left(toy):
    run = toolkit.run("train-toy", "optim.num_steps=20", seed=3, log_every_steps=5, optim={"lr": 0.02})
    assert run.status == "done" and run.command == "train-toy" and run.folder.parent == Path("runs/train-toy")
    assert run.config["optim.lr"] == 0.02 and run.config["seed"] == 3 and run.record["seed"] == 3
    assert run.metrics["loss"] == run.record["metrics"]["loss"]
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert run.curves == {"train": {"loss": ([5, 10, 15, 20], [line["loss"] for line in lines])}}
    assert repr(run) == f"<toolkit.Run {run.folder} (done)>"


def test_keys_as_words_and_as_values_are_the_same_run(toy):
    first = toolkit.run("train-toy", "experiment=toy_wide", "optim.lr=0.02", "optim.drift=[0.5,0.6]", folder="a b/one")
    keys = {"optim.lr": 0.02, "optim.drift": [0.5, 0.6]}
    second = toolkit.run("train-toy", experiment="toy_wide", folder=Path("two"), **keys)
    assert first.folder == Path("a b/one") and second.folder == Path("two") and first.config == second.config
    assert first.config["network.width"] > 8 and result(first.folder) == result(second.folder)


def test_the_same_call_does_what_is_done_only_once(toy):
    before = toolkit.run("train-toy", folder="mine", optim={"num_steps": 5})
    weights = (before.folder / "model" / "net" / "model.safetensors").stat().st_mtime_ns
    assert toolkit.run("train-toy", folder="mine", optim={"num_steps": 5}).status == "done"
    assert (before.folder / "model" / "net" / "model.safetensors").stat().st_mtime_ns == weights


@pytest.mark.parametrize(
    ("words", "keys", "said"),
    [
        ([], {"optim.lrr": 1}, "optim.lrr: no such key; did you mean 'optim.lr'?"),
        ([], {"optim.lr": -1.0}, "optim.lr=-1.0: must be greater than 0"),
        ([], {"data_path": "no, such"}, "data_path=no, such: no such folder"),
        (["experiment=wide"], {}, "experiment=wide: no such preset"),
        (["-m", "seed=1,2"], {}, "-m: not an override; write 'KEY=VALUE'"),
        (["seed=1,2"], {}, "seed=1,2"),
    ],
)
def test_what_is_wrong_is_a_user_error_and_nothing_is_left(toy, words, keys, said):
    with pytest.raises(UserError) as caught:
        toolkit.run("train-toy", *words, folder="mine", **keys)
    assert said in str(caught.value) and "\n" not in str(caught.value) and not Path("mine").exists()


@pytest.mark.parametrize("call", [toolkit.run, toolkit.compose])
def test_an_unknown_command_is_named(toy, call):
    with pytest.raises(UserError, match="train-toi: no such command; did you mean 'train-toy'"):
        call("train-toi")


def test_a_job_that_fails_is_a_job_error_and_its_folder_can_be_read(toy):
    with pytest.raises(JobError, match="loss"):
        toolkit.run("train-toy", folder="mine", amplitude=1e30)
    run = toolkit.read_run("mine")
    assert run.status == "failed" and "inf" in run.record["error"]


def test_a_bug_is_a_job_error_too(toy, monkeypatch, capfd):
    monkeypatch.setattr("tests.toyroom.job.seed_all", lambda *_: 1 / 0)
    with pytest.raises(JobError, match="ZeroDivisionError: division by zero"):
        toolkit.run("train-toy")
    assert "Traceback" in capfd.readouterr().err


def test_an_interrupted_call_goes_on_when_it_is_made_again(toy):
    keys = {"optim": {"num_steps": 40}, "log_every_steps": 1, "seed": 1}
    whole = toolkit.run("train-toy", folder="whole", **keys)

    def stop_it_early():
        while not Path("parts/metrics.jsonl").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    stop = threading.Thread(target=stop_it_early)
    stop.start()
    with pytest.raises(KeyboardInterrupt):
        toolkit.run("train-toy", folder="parts", step_time_s=0.05, **keys)
    stop.join()
    assert toolkit.read_run("parts").status == "interrupted"
    assert 0 < len(toolkit.read_run("parts").curves["train"]["loss"].steps) < 40
    assert result(toolkit.run("train-toy", folder="parts", **keys).folder) == result(whole.folder)


# -- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_gives_its_networks_and_samples(tmp_path):
    network = MLPDenoiser(sample_shape=(1, 4, 4), width=8, depth=1)
    with toolkit.open_run(tmp_path / "own", toolkit.compose("train-disco")) as writer:
        network.save_pretrained(writer.path("model", "denoiser"))
        writer.path("samples", "grid.png").write_bytes(b"")
    run = toolkit.read_run(tmp_path / "own")
    assert run.models == ["denoiser"] and run.samples == [tmp_path / "own" / "samples" / "grid.png"]
    loaded, kept = run.load("denoiser").state_dict(), network.state_dict()
    assert all(torch.equal(loaded[name], kept[name]) for name in kept) and not run.load().training
    with pytest.raises(UserError, match="no network 'prior' there"):
        run.load("prior")


@pytest.mark.parametrize("content", [None, "{"])
def test_a_folder_without_a_record_is_refused(tmp_path, content):
    if content:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"no run\.json here|not a run record"):
        toolkit.read_run(tmp_path)


def test_a_loop_of_ones_own_goes_on_where_it_stopped(toy):
    """Half the steps, an error, the rest: the same numbers as in one go."""
    config = toolkit.compose("train-toy", checkpoint_every_steps=5, log_every_steps=1)

    def train(folder, fail_at=None):
        model = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(model.weight)
        with toolkit.open_run(folder, config) as run, run.stage("own"):
            for step in (loop := toolkit.Loop(run, "own", 20, {"model": model})):
                if step == fail_at:
                    raise RuntimeError("stopped")
                with torch.no_grad():
                    model.weight += torch.rand(1, 1)
                loop.log(weight=model.weight.item())
        return toolkit.read_run(folder)

    whole = train("whole")
    with pytest.raises(RuntimeError):
        train("parts", fail_at=13)
    assert any(Path("parts/checkpoints/own").iterdir())
    assert toolkit.read_run("parts").status == "failed"
    assert "RuntimeError: stopped" in toolkit.read_run("parts").record["error"]
    assert train("parts").curves == whole.curves and train("parts").status == "done"


def test_an_own_folder_of_another_config_is_refused(toy):
    with toolkit.open_run("own", toolkit.compose("train-toy")):
        pass
    other = toolkit.open_run("own", toolkit.compose("train-toy", "optim.lr=0.5"))
    with pytest.raises(UserError, match=r"own: holds a run of another config: optim\.lr is 0\.01 there"), other:
        raise AssertionError
