"""What an earlier version left on disk is read, continued and used; tests/files/before says how it was written.

Keys of the config are under the names that they had then.
"""

import dataclasses
import html
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from toolkit import zoo
from toolkit.cli import main
from toolkit.disco.artefact import load_parts
from toolkit.disco.config import Sampling
from toolkit.disco.sampling import draw_latents, draw_samples
from toolkit.runs.seeds import generator

BEFORE = Path(__file__).parent.parent / "files" / "before"
FINISHED = [f"{name}/run" for name in ("train-disco", "sample-icg", "train-ivideogpt", "grow-llm", "enhance-video")]
STOPPED = [
    "train-disco/interrupted",
    "train-ivideogpt/interrupted",
    "train-ivideogpt/tokenizer",
    "grow-llm/interrupted",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Data sets and token files are made once for all tests here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch, cache):
    """A copy of what was written, every file as old as when it was read, as the working folder."""
    monkeypatch.setenv("TOOLKIT_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copytree(BEFORE, tmp_path / "work")
    for path in (tmp_path / "work").rglob("*"):
        os.utime(path, (0, 0))
    monkeypatch.chdir(tmp_path / "work")


def toolkit(*words):
    """``toolkit WORDS`` in this process; its exit code."""
    before, sys.argv = sys.argv, ["toolkit", *map(str, words)]
    try:
        main()
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before


def record(folder):
    return json.loads((Path(folder) / "run.json").read_text())


def metrics(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def again(folder, *words):
    """The words that the run in ``folder`` was started with, and more."""
    return [*record(folder)["overrides"], *words]


# -- reading -----------------------------------------------------------------------------------------------------------


def test_they_are_listed_with_how_far_they_came(capfd):
    assert toolkit("runs", "list", ".") == 0
    out = capfd.readouterr().out
    status = {line.split()[0]: line.split()[1:4] for line in out.splitlines() if line.startswith("  ") and "/" in line}
    assert {name for name, words in status.items() if words[0] == "done"} == {*FINISHED, "train-disco/sweep/0"}
    assert status["train-disco/interrupted"][:2] == ["interrupted", "(denoiser"]
    assert status["grow-llm/interrupted"][:2] == ["interrupted", "(grown"]
    assert "6 done, 7 interrupted" in out


@pytest.mark.parametrize("folder", FINISHED + STOPPED)
def test_one_is_shown_whole(folder, capfd):
    assert toolkit("runs", "show", folder) == 0
    out, kept = capfd.readouterr().out, record(folder)
    assert kept["config_hash"] in out and kept["git_commit"] in out and f"toolkit {kept['command']}" in out
    assert all(stage in out for stage in kept["stages"]) and all(key in out for key in kept["metrics"])


def test_they_are_compared(capfd):
    assert toolkit("runs", "compare", "train-disco/run", "train-disco/sweep") == 0
    out = capfd.readouterr().out
    found = {line.split()[0]: line.split()[1] for line in out.splitlines() if line.startswith("  use.")}
    assert float(found["use.perplexity"]) == pytest.approx(
        record("train-disco/run")["metrics"]["use.perplexity"], rel=1e-3
    )
    assert "train-disco/sweep/1 (interrupted)" in out and "network.family" in out


def test_reports_hold_their_tables_and_curves(capfd):
    for folder in FINISHED:
        assert toolkit("report", folder) == 0
        page = (Path(folder) / "report.html").read_text()
        headline = json.loads((Path(folder) / "tables/headline.json").read_text())
        assert record(folder)["config_hash"] in page and all(
            html.escape(str(row[0])) in page for row in headline["rows"]
        )
    assert toolkit("report", *FINISHED, *STOPPED, "train-disco/sweep", "--out", "all.html") == 0
    page = Path("all.html").read_text()
    assert all(folder in page for folder in FINISHED + STOPPED)


# -- continuing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [*FINISHED, "train-disco/sweep/0"])
def test_what_is_done_is_not_done_again(folder, capfd):
    before = record(folder)
    assert toolkit("runs", "resume", folder) == 0
    assert f"{folder} is done already" in capfd.readouterr().err
    kept = record(folder)
    assert kept["metrics"] == before["metrics"] and kept["stages"] == before["stages"]
    assert kept["config_hash"] == before["config_hash"]


@pytest.mark.parametrize("folder", STOPPED)
def test_an_interrupted_training_ends_as_if_it_had_not_been(folder, capfd):
    done = {(line["stage"], line["step"]) for line in metrics(f"{folder}/metrics.jsonl")}
    assert toolkit("runs", "resume", folder) == 0
    assert "resuming after step" in capfd.readouterr().err
    assert record(folder)["status"] == "done"
    agree(metrics(f"{folder}/metrics.jsonl"), metrics(f"{folder}.jsonl"), done)
    for samples in Path().glob(f"{folder}.safetensors"):  # by the average of the weights, which no loss shows
        draws_the_same_samples(folder, samples)


def draws_the_same_samples(folder, then):
    """From the noise of that version, one stream for all samples: every sample has a stream of its own now."""
    saved, parts, expected = record(folder), load_parts(folder), load_file(then)
    sampling = dataclasses.replace(Sampling(), **saved["config"]["sampling"])
    latents = draw_latents(parts, sampling.num_samples, sampling, generator(saved["seed"], "sample"))
    found = {"latents": latents}
    for name, denoiser, z in (("ours", parts.denoiser, latents), ("baseline", parts.baseline, None)):
        if denoiser is not None:
            noise = generator(saved["seed"], "sample", "noise")
            found[name] = draw_samples(denoiser, z, sampling.num_samples, sampling, noise)[0]
    assert found.keys() == expected.keys() and (found["latents"] == expected["latents"]).all()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], atol=5e-3)


def agree(lines, whole, done):
    """The same steps with the same losses, of which some are not among those ``done`` before."""
    assert [(line["stage"], line["step"]) for line in lines] == [(line["stage"], line["step"]) for line in whole]
    assert len(done) < len(whole)
    assert [line["loss"] for line in lines if "loss" in line] == pytest.approx(
        [line["loss"] for line in whole if "loss" in line], rel=1e-3
    )


def test_more_steps_than_it_was_begun_with_train_on(capfd):
    folder = "train-disco/interrupted"
    step = record(folder)["stages"]["denoiser"]["step"]
    assert toolkit("train-disco", *again(folder, "optim.num_steps=70", f"hydra.run.dir={folder}")) == 0
    assert f"denoiser: resuming after step {step} of 70" in capfd.readouterr().err
    assert record(folder)["stages"]["denoiser"]["step"] == 70 and record(folder)["extended"] == ["optim.num_steps"]


def test_an_interrupted_sweep_does_what_is_missing(capfd):
    assert toolkit("runs", "resume", "train-disco/sweep") == 0
    out, error = capfd.readouterr()
    assert "2 of 2 jobs done in train-disco/sweep" in out
    assert "sweep/0 is done already" in error and "denoiser: resuming after step 2" in error
    assert [record(f"train-disco/sweep/{job}")["seed"] for job in (0, 1)] == [1, 2]
    jobs = metrics("train-disco/sweep/jobs.jsonl")
    assert [(job["job"], job["exit_code"]) for job in jobs] == [(0, 0), (1, 0)]


def test_interrupted_sampling_keeps_what_it_drew():
    [*kept] = Path("sample-icg/interrupted/draws").rglob("*.safetensors")
    assert kept
    assert toolkit("runs", "resume", "sample-icg/interrupted") == 0
    levels = {}
    for path in sorted(Path("sample-icg/interrupted/images").glob("*/*.png")):
        levels.setdefault(path.parent.name, []).append(float(np.asarray(Image.open(path)).mean()))
    expected = json.loads(Path("sample-icg/interrupted.json").read_text())
    assert levels.keys() == expected.keys()
    for column, values in expected.items():
        assert levels[column] == pytest.approx(values, abs=0.5), column


def test_an_interrupted_enhancement_goes_on_with_its_parts():
    folder = "enhance-video/interrupted"
    assert Path(folder, "work/small/parts/part_000000.mp4").exists()
    assert toolkit("runs", "resume", folder) == 0
    found, expected = record(folder)["metrics"], json.loads(Path(f"{folder}.json").read_text())
    assert found.keys() == expected.keys()
    assert found["ours.psnr"] == pytest.approx(expected["ours.psnr"], abs=0.1)


# -- using models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "part", "files"),
    [
        ("train-disco/run", None, "model/denoiser"),
        ("train-disco/run", "encoder", "model/encoder"),
        ("train-disco/run/model", "prior", "prior"),
        ("train-disco/run/model/baseline", None, "."),
        ("train-disco/sweep/0", "prior", "model/prior"),
        ("sample-icg/run", "dropping", "model/dropping"),
        ("train-ivideogpt/run", None, "model/*"),
        ("train-ivideogpt/run/model", "tokenizer", "tokenizer"),
        ("enhance-video/run/model", "denoiser", "denoiser"),
    ],
)
def test_networks_are_loaded_with_all_their_weights(source, part, files):
    network = zoo.load(source, part)
    stored = [tensor for file in Path(source).glob(f"{files}/*.safetensors") for tensor in load_file(file).values()]
    assert stored
    found, expected = ([float(one.double().abs().sum()) for one in ones] for ones in (weights(network), stored))
    assert sorted(found) == pytest.approx(sorted(expected), rel=1e-9) and not network.training


def weights(network):
    return network.state_dict().values()


def test_a_disco_model_draws_the_samples_it_drew():
    words = again("train-disco/run", "stage=sample", "model=train-disco/run", "hydra.run.dir=new")
    assert toolkit("train-disco", *words) == 0
    found, expected = (load_file(f"{folder}/samples/samples.safetensors") for folder in ("new", "train-disco/run"))
    assert {name: one.shape for name, one in found.items()} == {name: one.shape for name, one in expected.items()}
    draws_the_same_samples("train-disco/run", "train-disco/run/samples/samples.safetensors")


def test_a_small_model_is_guided(capfd):
    words = ["model=sample-icg/run", "guidance=cfg", "num_samples=10", "num_steps=3", "measure.enabled=false"]
    assert toolkit("sample-icg", *words, "hydra.run.dir=new") == 0
    said = capfd.readouterr()
    assert "trained without dropping class_labels" in " ".join((said.out + said.err).split())
    assert len(list(Path("new/images/cfg.w_1p5").glob("*.png"))) == 10


def test_a_world_model_predicts_as_well_as_it_did():
    words = [
        "model=train-ivideogpt/run",
        "stage=measure",
        "measure.names=[tokenizer,prediction]",
        "rollout.num_clips=1",
    ]
    assert toolkit("train-ivideogpt", *again("train-ivideogpt/run", *words, "hydra.run.dir=new")) == 0
    found, expected = (record(folder)["metrics"] for folder in ("new", "train-ivideogpt/run"))
    assert found["tokenizer.psnr.future"] == pytest.approx(expected["tokenizer.psnr.future"], abs=0.05)
    assert found["prediction.cross_entropy"] == pytest.approx(expected["prediction.cross_entropy"], rel=0.01)


def test_a_world_model_is_where_training_starts():
    words = [
        "init=train-ivideogpt/run",
        "tokenizer_optim.num_steps=0",
        "transformer_optim.num_steps=5",
        "stage=transformer",
    ]
    assert toolkit("train-ivideogpt", *again("train-ivideogpt/run", *words, "hydra.run.dir=new")) == 0
    first = next(line for line in metrics("train-ivideogpt/run/metrics.jsonl") if line["stage"] == "transformer")
    [line] = metrics("new/metrics.jsonl")
    assert line["tokens"] < first["tokens"]


def test_a_grown_language_model_goes_on_from_the_loss_it_had():
    words = ["stage=pretrain", "source=grow-llm/run", "part=grown", "budget.tokens=512", "hydra.run.dir=new"]
    assert toolkit("grow-llm", *again("grow-llm/run", *words)) == 0
    curves = [
        json.loads(Path(name).read_text()) for name in ("new/curves/pretrain.json", "grow-llm/run/curves/grown.json")
    ]
    first, last = curves[0]["points"][0], curves[1]["points"][-1]
    assert first["valid_loss"] == pytest.approx(last["valid_loss"], rel=1e-4)
    assert first["flops.total"] == last["flops.total"]


def test_a_base_of_before_is_grown():
    words = ["stage=grow", "source=grow-llm/run/model/base", "factor=3", "out=grown", "hydra.run.dir=new"]
    assert toolkit("grow-llm", *words) == 0
    assert json.loads(Path("grown/config.json").read_text())["num_hidden_layers"] == 3


def test_an_enhancer_enhances_as_well_as_it_did():
    words = ["experiment=enhance_small", "stage=enhance", "model=enhance-video/run/model", "baselines=[]"]
    words.append("hydra.run.dir=new")
    assert toolkit("enhance-video", *again("enhance-video/run", *words)) == 0
    found, expected = (record(folder)["metrics"]["ours.psnr"] for folder in ("new", "enhance-video/run"))
    assert found == pytest.approx(expected, abs=0.1)
