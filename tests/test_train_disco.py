"""``toolkit train-disco experiment=disco_smoke`` from end to end."""

import json
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.toyroom.harness import finish, record, start
from toolkit import zoo
from toolkit.launch import launch

SMOKE = ["experiment=disco_smoke", "seed=5"]
SMALL = ["optim.num_steps=6", "prior.num_steps=4", "measure.names=[use]", "sampling.num_samples=4"]


def train(*words):
    return launch("train-disco", [*SMOKE, *words])


def test_the_smoke_preset_leaves_a_whole_run_folder(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert train("hydra.run.dir=one") == 0
    out = capfd.readouterr().out
    assert "baseline" in out and "one/report.html" in out and "one/samples" in out
    saved = record("one")
    assert saved["status"] == "done" and saved["seed"] == 5
    assert {name: stage["status"] for name, stage in saved["stages"].items()} == dict.fromkeys(
        ["denoiser", "baseline", "prior", "sample", "measure"], "done"
    )
    assert saved["metrics"] and all(isinstance(value, float) for value in saved["metrics"].values())
    one = Path("one")
    assert {path.parent.name for path in one.glob("model/**/*.safetensors")} == {
        "denoiser", "encoder", "prior", "baseline",
    }  # fmt: skip
    assert list(one.glob("figures/*.png")) and list(one.glob("samples/*.png")) and list(one.glob("tables/*.json"))
    assert "<html" in (one / "report.html").read_text()[:200].lower()
    stages = [json.loads(line)["stage"] for line in (one / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(stages)) == ["denoiser", "baseline", "prior"]
    assert zoo.load("one").shape == (1, 8, 8)


def test_stages_one_after_the_other_equal_all_at_once_and_a_trained_model_is_sampled_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train(*SMALL, "hydra.run.dir=whole") == 0
    for stage in ("denoiser", "prior", "all"):
        assert train(*SMALL, f"stage={stage}", "hydra.run.dir=parts") == 0
    for path in Path("whole").glob("model/**/*.safetensors"):
        assert path.read_bytes() == (Path("parts") / path.relative_to("whole")).read_bytes()
    assert (Path("parts") / "metrics.jsonl").read_bytes() == (Path("whole") / "metrics.jsonl").read_bytes()

    assert train(*SMALL, "stage=sample", "model=whole", "hydra.run.dir=again") == 0
    first, again = (load_file(f"{folder}/samples/samples.safetensors") for folder in ("whole", "again"))
    assert {name: (first[name] == again[name]).all().item() for name in first} == dict.fromkeys(first, True)
    assert train(*SMALL, "stage=sample", "model=nowhere", "hydra.run.dir=other") == 2
    assert not Path("other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kill_after_s", [0.5, 3.0])
def test_killed_and_resumed_equals_the_uninterrupted_run(tmp_path, monkeypatch, kill_after_s):
    monkeypatch.chdir(tmp_path)
    assert train("hydra.run.dir=whole") == 0
    process = start(*SMOKE, "checkpoint_every_steps=1", "hydra.run.dir=one", command="train-disco")
    while not Path("one/metrics.jsonl").exists():
        time.sleep(0.01)
    time.sleep(kill_after_s)
    process.kill()
    finish(process)
    assert train("hydra.run.dir=one") == 0
    for path in [*Path("whole").glob("model/**/*.safetensors"), *Path("whole").glob("samples/*.safetensors")]:
        assert path.read_bytes() == (Path("one") / path.relative_to("whole")).read_bytes()
    assert Path("one/metrics.jsonl").read_bytes() == Path("whole/metrics.jsonl").read_bytes()


def test_true_labels_as_latents_condition_nothing_but_z(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train(*SMALL, "latents.kind=labels", "baseline=none", "hydra.run.dir=one") == 0
    assert zoo.load("one").num_classes == 0 and zoo.load("one", "prior").config["num_classes"] == 0
