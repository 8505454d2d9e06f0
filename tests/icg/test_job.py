"""``toolkit sample-icg`` from end to end: the smoke preset, given models, bad input, resume, reuse of the cache."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.icg import tiny
from tests.toyroom.harness import finish, record, start, start_ranks
from toolkit import zoo
from toolkit.launch import dry_run, launch
from toolkit.show.table import Table
from toolkit.zoo.edm.edm2 import EDM2UNet

SMOKE = ["experiment=icg_smoke", "seed=5"]
FIXED = ["guidance.scale=1.4", "sampling.num_samples=4", "sampling.num_steps=4", "hydra.run.dir=one"]
TWO_IN_TWO = ["sampling.num_samples=2", "sampling.num_steps=2"]
FEW = ["measure.num_samples=100", "compare=[none]", "measure.curve=[]"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a cache, models made by the smoke preset, a train-disco run, and pipelines of three kinds."""
    folder = tmp_path_factory.mktemp("home")
    for kind in ("dit", "stable_diffusion", "ddpm"):
        getattr(tiny, kind)().save_pretrained(folder / kind)
    return folder


@pytest.fixture
def work(home, tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(home / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sample(*words):
    return launch("sample-icg", list(words))


@pytest.fixture(scope="module")
def disco(home):
    small = ["optim.num_steps=6", "prior.num_steps=4", "stage=prior", "baseline=none", "data.class_labels=true"]
    assert launch("train-disco", ["experiment=disco_smoke", *small, f"hydra.run.dir={home / 'disco'}"]) == 0
    return home / "disco"


# -- models of its own -----------------------------------------------------------------------------------------------


def test_the_smoke_preset_leaves_a_whole_run_folder_and_models_that_are_used_again(work, home, capfd):
    assert sample(*SMOKE, "hydra.run.dir=one") == 0
    out = capfd.readouterr().out
    assert "ICG 1.5 + TSG 2.5" in out and "real images" in out and "one/report.html" in out
    saved = record("one")
    assert saved["status"] == "done" and list(saved["stages"]) == ["models", "sample", "report"]
    assert {path.stem for path in Path("one/figures").glob("*.png")} >= {"frechet", "accuracy", "frontier"}
    assert Path("one/samples/grid.png").exists() and len(list(Path("one/images/icg.w_1p5").glob("*.png"))) == 20
    assert not Path("one/draws").exists(), "batches are removed when they are scored"
    table = Table.load(Path("one/tables/headline.json"))
    calls = {row[0]: row[-2] for row in table.rows}
    assert calls["none"] == 9 and calls["ICG 1.5"] == calls["CFG 1.5 (drop)"] == calls["TSG 5"] == 18
    assert calls["ICG 1.5 + TSG 2.5"] == 27
    metrics = saved["metrics"]
    assert {"icg.w_1p5.frechet", "icg.w_2.accuracy", "cfg.w_2.precision", "none_dropping.recall"} <= set(metrics)
    assert all(isinstance(value, float) for value in metrics.values())
    assert "<html" in (Path("one") / "report.html").read_text()[:200].lower()

    weights = [load_file(f"one/model/{part}/diffusion_pytorch_model.safetensors") for part in ("denoiser", "dropping")]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    before = sorted((home / "cache" / "icg").glob("*/model/**/*.safetensors"))
    times = [path.stat().st_mtime_ns for path in before]
    assert sample(*SMOKE, *FEW, "hydra.run.dir=two") == 0
    assert [path.stat().st_mtime_ns for path in before] == times and len(before) == 2
    again = record("two")["metrics"]
    assert again["none.accuracy"] == pytest.approx(metrics["none.accuracy"], abs=0.2)
    assert "denoiser: step" not in (work / "two" / "run.log").read_text()

    # a finished run is left alone, and another config in its folder is refused
    assert sample(*SMOKE, "hydra.run.dir=one") == 0
    assert sample(*SMOKE, "guidance.scale=3", "hydra.run.dir=one") == 2


def test_a_run_of_its_own_is_a_model_and_knows_its_data(work):
    assert sample(*SMOKE, *FEW, "hydra.run.dir=one") == 0
    assert zoo.load("one").num_classes == 10
    given = ["model=one", "sampling.num_steps=5", "sampling.num_samples=100", "hydra.run.dir=two"]
    assert sample(*given, "seed=5") == 0
    one, two = record("one")["metrics"], record("two")["metrics"]
    assert two["none.frechet"] == pytest.approx(one["none.frechet"]) and two["none.accuracy"] == one["none.accuracy"]


def test_a_killed_run_goes_on_where_it_was(work):
    words = [*SMOKE, "seed=6", "measure.num_samples=400", "sampling.batch_size=100", "checkpoint_every_steps=1"]
    whole = [*words, "hydra.run.dir=whole"]
    process = start(*words, "hydra.run.dir=one", command="sample-icg")
    while not list(Path("one").glob("draws/*/*/*/*.safetensors")) and process.is_alive():
        time.sleep(0.01)
    process.kill()
    finish(process)
    assert record("one")["status"] == "running" and list(Path("one").glob("draws/**/*.safetensors"))
    assert sample(*words, "hydra.run.dir=one") == 0
    assert sample(*whole) == 0
    one, two = record("one")["metrics"], record("whole")["metrics"]
    assert {k: v for k, v in one.items() if "seconds" not in k} == {k: v for k, v in two.items() if "seconds" not in k}
    assert Path("one/samples/grid.png").read_bytes() == Path("whole/samples/grid.png").read_bytes()


@pytest.mark.slow
def test_a_killed_training_of_a_small_model_goes_on_where_it_was(work, monkeypatch):
    words = [*SMOKE, *FEW, "optim.num_steps=400", "checkpoint_every_steps=10", "hydra.run.dir=one"]
    caches = [work / name for name in ("killed", "whole")]
    settings = {"TOOLKIT_CACHE": str(caches[0])}
    process = start(*words, command="sample-icg", env=settings)
    while len(list(caches[0].glob("icg/*/checkpoints/denoiser/[!.]*"))) < 2 and process.is_alive():
        time.sleep(0.01)
    process.kill()
    finish(process)
    for cache, folder in zip(caches, ("one", "two"), strict=True):
        monkeypatch.setenv("TOOLKIT_CACHE", str(cache))
        assert sample(*words[:-1], f"hydra.run.dir={folder}") == 0
    assert "resuming after step" in (work / "one" / "run.log").read_text()
    first, second = (next(cache.glob("icg/*/model/denoiser/*.safetensors")).read_bytes() for cache in caches)
    assert first == second


def test_the_batch_size_changes_nothing(work):
    for size in (7, 100):
        assert sample(*SMOKE, *FEW, f"sampling.batch_size={size}", f"hydra.run.dir={size}") == 0
    one, two = record("7")["metrics"], record("100")["metrics"]
    assert one["icg.w_1p5.frechet"] == pytest.approx(two["icg.w_1p5.frechet"], rel=1e-3)
    assert Path("7/samples/grid.png").read_bytes() == Path("100/samples/grid.png").read_bytes()


def test_autoguidance_makes_its_own_worse_model(work):
    assert sample(*SMOKE, *FEW, "guidance=autoguidance", "hydra.run.dir=one") == 0
    assert record("one")["metrics"]["autoguidance.w_2.calls"] == 18 and Path("one/model/weak/config.json").exists()


@pytest.mark.slow
def test_a_sweep_over_the_scale(work):
    words = [*SMOKE, *FEW, "guidance.scale=1.25,2", "hydra.sweep.dir=sweep"]
    assert sample("-m", *words) == 0
    values = [record(f"sweep/{number}")["objective"] for number in range(2)]
    assert values[0] != values[1]


def test_points_are_scattered(work):
    words = ["data=ring", "network=mlp_narrow", "network.width=16", "optim.num_steps=20", "sampling.num_steps=5"]
    assert sample(*words, *FEW, "hydra.run.dir=one") == 0
    assert {path.name for path in Path("one/samples").glob("*.png")} == {"none.png", "icg.w_1p5.png"}


# -- given models ----------------------------------------------------------------------------------------------------


LONG = [pytest.param(name, marks=pytest.mark.slow) for name in ("tsg", "cfg", "none")]


@pytest.mark.parametrize("guidance", ["icg", "icg_tsg", *LONG])
@pytest.mark.parametrize("kind", ["dit", "stable_diffusion"])
def test_the_fixed_names_on_a_saved_pipeline(work, home, kind, guidance):
    assert sample(f"model={home / kind}", f"guidance={guidance}", *FIXED) == 0
    key = guidance if guidance == "none" else f"{guidance}.w_1p4"
    assert len(list(Path(f"one/images/{key}").glob("*.png"))) == 4 and Path("one/samples/grid.png").exists()
    calls = {"none": 4, "icg_tsg": 12}.get(guidance, 8)
    saved = record("one")["metrics"]
    assert saved[f"{key}.calls"] == calls and saved["none.calls"] == 4 and f"{key}.frechet" not in saved
    assert "not measured: the data of this model is not known" in Table.load("one/tables/headline.json").note


@pytest.mark.parametrize("guidance", ["icg", "icg_tsg", *LONG])
def test_the_fixed_names_on_a_run_of_train_disco(work, disco, guidance):
    assert sample(f"model={disco}", f"guidance={guidance}", *FIXED) == 0
    key = guidance if guidance == "none" else f"{guidance}.w_1p4"
    assert record("one")["metrics"][f"{key}.calls"] == {"none": 7, "icg_tsg": 21}.get(guidance, 14)
    assert "too few for distances" in Table.load("one/tables/headline.json").note


def test_an_unconditional_pipeline_takes_tsg_and_refuses_icg_in_one_line(work, home, capfd):
    assert sample(f"model={home / 'ddpm'}", "guidance=tsg", *FIXED) == 0
    assert record("one")["metrics"]["tsg.w_1p4.calls"] == 8
    capfd.readouterr()
    assert sample(f"model={home / 'ddpm'}", *FIXED[:-1], "hydra.run.dir=two") == 2 and not Path("two").exists()
    said = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert said == [
        "toolkit: error: guidance=icg: DDPMPipeline is unconditional and has no condition to guide on; take tsg"
    ]


def test_an_unconditional_model_of_ours_refuses_icg(work, home, capfd):
    small = ["optim.num_steps=2", "stage=denoiser", "baseline=none", "latents.kind=none"]
    assert launch("train-disco", ["experiment=disco_smoke", *small, "hydra.run.dir=plain"]) == 0
    assert sample("model=plain", "guidance=tsg", *FIXED) == 0
    assert sample("model=plain", *FIXED[:-1], "hydra.run.dir=two") == 2 and not Path("two").exists()
    assert "guidance=icg: the model in plain is unconditional" in capfd.readouterr().err


def test_latents_and_class_alone_or_together(work, disco):
    grids = []
    for name in ("latents", "class_labels", "latents,class_labels"):
        words = [f"model={disco}", f"guidance.fields=[{name}]", "guidance.scale=3", *FIXED[1:]]
        assert sample(*words) == 0
        grids.append(Path("one/samples/grid.png").read_bytes())
        shutil.rmtree("one")
    assert len(set(grids)) == 3


def test_prompts_and_labels_come_from_files(work, home):
    Path("prompts.txt").write_text("a b c\nd e f\n")
    words = [f"model={home / 'stable_diffusion'}", "prompts=prompts.txt", *TWO_IN_TWO]
    assert sample(*words, "hydra.run.dir=one") == 0
    Path("labels.txt").write_text("3\n7\n")
    words = [f"model={home / 'dit'}", "labels=labels.txt", *TWO_IN_TWO]
    assert sample(*words, "hydra.run.dir=two") == 0
    assert len(list(Path("two/images/icg.w_1p5").glob("*.png"))) == 2


def test_matching_data_is_measured_and_other_data_is_not(work):
    unet = tiny.unet2d(in_channels=1, out_channels=1)
    tiny.quiet(tiny.diffusers.DDPMPipeline(unet, tiny.schedulers.DDPMScheduler())).save_pretrained("grey")
    words = ["model=grey", "guidance=tsg", "sampling.num_samples=100", "sampling.num_steps=2"]
    assert sample(*words, "data=digits", "hydra.run.dir=one") == 0
    found = record("one")["metrics"]
    assert {"tsg.w_5.frechet", "none.precision", "floor.frechet"} <= set(found) and "none.accuracy" not in found
    assert sample(*words, "data=digits", "data.size_px=16", "hydra.run.dir=two") == 0
    note = Table.load("two/tables/headline.json").note
    assert "data=digits has samples of 1x16x16, the model makes 1x8x8" in note


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=nowhere"], "model=nowhere: no such folder"),
        (["model=no/where"], "as a hub id: it is not in the cache"),
        (["model={dit}", "labels=99"], "labels: 99 is out of range"),
        (["model={dit}", "prompts=x"], "DiTPipeline takes no text"),
        (["model={dit}", "guidance=sag"], "this is DiTPipeline"),
        (
            ["model={dit}", "guidance=tsg", "guidance.max_layers=2", "guidance.time_embedding_modules=[x]"],
            "no module 'x'",
        ),
        (["model={stable_diffusion}", "guidance=tsg", "guidance.max_layers=0"], "max_layers=0"),
        (
            ["model={stable_diffusion}", "call={{noise: 1}}"],
            "call.noise: StableDiffusionPipeline takes no such argument",
        ),
        (["guidance=tcfg"], "guidance=tcfg: works on pipelines, model=FOLDER"),
        (["guidance.control_std=1"], "guidance.control_std: works on ControlNet pipelines, model=FOLDER"),
        (["data=ring", "network=adm_tiny"], "needs square images"),
        (["data=folder"], "data.path"),
        (["model=exact", "guidance=tsg"], "model=exact has no time embedding"),
        (["model=exact", "guidance.num_draws=9"], "num_draws=9: there are 8 different conditions"),
        (["model={dit}", "guidance.condition=shuffle", "sampling.num_samples=1"], "needs a batch of at least 2"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(work, home, capfd, words, message):
    words = [word.format(**{kind: home / kind for kind in ("dit", "stable_diffusion")}) for word in words]
    assert sample(*words, "hydra.run.dir=one") == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("toolkit: error:")]
    assert len(errors) == 1 and message in errors[0] and not Path("one").exists()


def test_a_cache_that_cannot_be_written_is_named(work, monkeypatch, capfd):
    (work / "file").write_text("")
    monkeypatch.setenv("TOOLKIT_CACHE", str(work / "file"))
    assert sample(*SMOKE, *FEW, "hydra.run.dir=one") == 2
    assert "the cache cannot be written" in capfd.readouterr().err


def test_a_dry_run_counts_and_runs_nothing(work, home, disco, capfd):
    for words in ([], [f"model={home / 'dit'}", "guidance=icg_tsg"], [f"model={disco}"], ["model=exact"]):
        assert dry_run("sample-icg", words) == 0
    out = capfd.readouterr().out
    assert "small model, parameters" in out and "transformer, parameters" in out and "icg_tsg" in out
    assert not list(work.iterdir())
    assert dry_run("sample-icg", ["model=nowhere"]) == 2


def test_the_record_says_which_models_were_used(work, home):
    assert sample(*SMOKE, *FEW, "hydra.run.dir=one") == 0
    models = record("one")["models"]
    assert set(models) == {"plain"} and Path(models["plain"]).is_relative_to(home / "cache")
    noted = json.loads((Path(models["plain"]) / "model/denoiser/training.json").read_text())
    assert noted["label_drop"] == 0 and noted["data"]["name"] == "digits"


def test_edm2_is_sampled_through_its_autoencoder(work):
    settings = {"image_size": 8, "in_channels": 4, "num_classes": 5, "model_channels": 8, "channel_mult": (1, 2)}
    torch.manual_seed(0)
    network = EDM2UNet(**settings, num_blocks=1, channels_per_head=8, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    torch.nn.init.constant_(network.out_gain, 1.0)
    network.save_pretrained("edm2")
    tiny.vae().save_pretrained("vae")
    words = ["experiment=icg_edm2", "model=edm2", *TWO_IN_TWO, "compare=[none,tsg]"]
    assert sample(*words, "vae=vae", "hydra.run.dir=one") == 0
    assert record("one")["metrics"]["icg.w_1p25.calls"] == 6
    assert len(list(Path("one/images/tsg.w_5").glob("*.png"))) == 2
    assert sample(*words, "vae=nowhere", "hydra.run.dir=two") == 2


@pytest.mark.slow
def test_two_processes_share_the_batches(work):
    words = [*SMOKE, *FEW, "sampling.batch_size=16"]
    assert finish(*start_ranks(2, *words, "hydra.run.dir=two", command="sample-icg"), timeout_s=300) == [0, 0]
    assert sample(*words, "hydra.run.dir=one") == 0
    one, two = record("one")["metrics"], record("two")["metrics"]
    assert one["icg.w_1p5.frechet"] == pytest.approx(two["icg.w_1p5.frechet"], rel=1e-3)
    assert Path("one/samples/grid.png").read_bytes() == Path("two/samples/grid.png").read_bytes()
