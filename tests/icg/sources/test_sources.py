"""What sample-icg draws from: our models and diffusers pipelines; sample i is the same alone and in a batch."""

import dataclasses
import json

import pytest
import torch

from tests.icg import tiny
from toolkit.data.config import Data
from toolkit.errors import UserError
from toolkit.icg import IndependentConditionGuidance
from toolkit.icg.config import SampleICG, Sampling
from toolkit.icg.labels_and_prompts import PROMPTS, draw_labels, read_labels, read_prompts
from toolkit.icg.methods import CFG, ICG, PAG, SAG, TCFG, TSG, AutoGuidance, CFGAndTSG, ICGAndTSG, NoGuidance
from toolkit.icg.sources.base import Request
from toolkit.icg.sources.denoiser import DenoiserSource, WeakModelDenoiser, trained_how
from toolkit.icg.sources.pipeline import PipelineSource
from toolkit.icg.sources.pipeline_files import condition_of, find_index, refuse
from toolkit.icg.sources.small import save_model
from toolkit.zoo.disco.prior import MarginalPrior
from toolkit.zoo.edm.mlp import MLPDenoiser

CPU = torch.device("cpu")
K, M, CODES = 5, 3, 4


def request(start=0, stop=3):
    return Request(seed=0, repeat=0, start=start, stop=stop)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    for kind in ("dit", "stable_diffusion", "sdxl", "ddpm", "ldm"):
        getattr(tiny, kind)().save_pretrained(folder / kind)
    return folder


def config_for(model, num_samples, **settings):
    return SampleICG(model=model, sampling=Sampling(num_steps=3, num_samples=num_samples), **settings)


def open_pipeline(folder, num_samples=64, **settings):
    return PipelineSource(str(folder), config_for(str(folder), num_samples, **settings), CPU)


def make_model(folder, num_classes=K, num_latents=M):
    torch.manual_seed(0)
    latents = {"num_latents": num_latents, "codebook_size": CODES if num_latents else 0}
    model = MLPDenoiser(sample_shape=(1, 4, 4), width=16, depth=2, num_classes=num_classes, **latents).eval()
    for name, parameter in model.named_parameters():
        if "embed_latents" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_model(folder / "model" / "denoiser", model, Data(), 0.1)
    if num_latents:
        MarginalPrior(num_latents, CODES, num_classes).save_pretrained(folder / "model" / "prior")
    return str(folder)


def open_model(folder, **settings):
    return DenoiserSource(folder, config_for(folder, num_samples=4, **settings), CPU)


# -- models of ours --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [NoGuidance(), ICG(), TSG(), CFG(), ICGAndTSG(), CFGAndTSG(), ICG(num_draws=2)])
@pytest.mark.parametrize("sizes", [(K, 0), (0, M), (K, M)])
def test_sample_i_is_the_same_alone_and_in_a_batch(tmp_path, guidance, sizes):
    source = open_model(make_model(tmp_path, *sizes))
    source.prepare(guidance)
    together, calls = source.draw(guidance, 2.0, request())
    alone = torch.cat([source.draw(guidance, 2.0, request(i, i + 1))[0] for i in range(3)])
    torch.testing.assert_close(together, alone, atol=5e-4, rtol=0)
    per_step = 1 if guidance.method == "none" else 3 if "_" in guidance.method or guidance == ICG(num_draws=2) else 2
    assert calls == 5 * per_step


def test_all_columns_start_from_the_same_noise_and_scale_1_is_no_guidance(tmp_path):
    source = open_model(make_model(tmp_path))
    plain, _ = source.draw(NoGuidance(), 1.0, request())
    for guidance in (ICG(), TSG(), CFG()):
        source.prepare(guidance)
        assert torch.equal(source.draw(guidance, 1.0, request())[0], plain)
        assert not torch.equal(source.draw(guidance, 3.0, request())[0], plain)


def test_gaussian_conditions_take_the_place_of_class_vectors(tmp_path):
    source = open_model(make_model(tmp_path, num_latents=0))
    gaussian, by_class = (source.draw(ICG(condition=name), 3.0, request())[0] for name in ("gaussian", "class"))
    assert not torch.equal(gaussian, by_class)


def test_independent_latents_come_from_the_prior_with_their_class(tmp_path):
    source = open_model(make_model(tmp_path))
    source.prepare(ICG())
    assert {name: tuple(rows.shape) for name, rows in source.banks[1024].items()} == {
        "latents": (1024, M),
        "class_labels": (1024,),
    }
    only = source.draw(ICG(fields=["latents"]), 3.0, request())[0]
    assert not torch.equal(only, source.draw(ICG(), 3.0, request())[0])


def test_methods_with_banks_of_different_sizes_keep_their_own(tmp_path, monkeypatch):
    source, given = open_model(make_model(tmp_path)), []
    monkeypatch.setattr(
        IndependentConditionGuidance, "set_condition_bank", lambda _, bank: given.append(len(bank["latents"]))
    )
    for rows in (3, 5, None):
        source.prepare(ICG(bank_rows=rows))
    for rows in (3, None, 5):
        source._guided(ICG(bank_rows=rows), 2.0, request(), 3)
    assert given == [3, 1024, 5]


def test_cfg_on_what_was_not_dropped_warns(tmp_path):
    source = open_model(make_model(tmp_path, num_latents=0))
    assert source.warning(CFG()) == ""
    source.training["class_labels_dropped"] = False
    assert "null condition that it never saw" in source.warning(CFG()) and source.warning(ICG()) == ""


def test_what_is_known_of_a_train_disco_run(tmp_path):
    config = {"data": {"name": "mnist8"}, "loss": {"label_drop": 0.0}, "latents": {"drop": 0.1}}
    (tmp_path / "run.json").write_text(json.dumps({"command": "train-disco", "status": "done", "config": config}))
    found = trained_how(str(tmp_path), None)
    assert found == {"data": {"name": "mnist8"}, "class_labels_dropped": False, "latents_dropped": True}


def test_what_is_known_of_a_model_of_our_own_making(tmp_path):
    model = MLPDenoiser(sample_shape=(2,), width=8, depth=1, num_classes=2)
    for share in (0.0, 0.2):
        save_model(tmp_path / str(share) / "model" / "denoiser", model, Data(name="ring"), share)
        found = trained_how(str(tmp_path / str(share)), None)
        assert found["data"]["name"] == "ring" and found["class_labels_dropped"] == (share > 0)


def test_a_worse_version_guides_and_must_fit(tmp_path):
    source = open_model(make_model(tmp_path / "a", num_latents=0))
    with pytest.raises(UserError, match=r"guidance\.weak: autoguidance needs"):
        source.refuse(AutoGuidance())
    with pytest.raises(UserError, match="for samples"):
        source.refuse(AutoGuidance(weak=make_model(tmp_path / "b", num_classes=3, num_latents=0)))
    source.refuse(AutoGuidance(weak=make_model(tmp_path / "c", num_latents=0)))
    images, calls = source.draw(AutoGuidance(), 2.0, request())
    assert calls == 10 and torch.equal(images, source.draw(NoGuidance(), 1.0, request())[0]), "equal weights: no push"


def test_autoguidance_keeps_to_its_interval_and_rescales():
    """x is 4 and the strong model says 1, 2, 3, 4; the weak one says 0: w = 2 doubles that."""
    strong = torch.tensor([[1.0, 2.0, 3.0, 4.0]])

    def denoise(num_evaluations, **settings):
        made = AutoGuidance(scale=2.0, **settings)
        return WeakModelDenoiser(lambda *_: strong, lambda *_: 0 * strong, 2.0, made, {}, num_evaluations)

    limited = denoise(4, start=0.25, stop=0.75)
    assert [limited(strong, 1.0)[0, 3].item() for _ in range(4)] == [4, 8, 8, 4] and limited.num_calls == 6
    assert torch.allclose(denoise(4, rescale=1.0)(strong, 1.0), strong), "the deviation is the strong model's again"


@pytest.mark.parametrize("setting", [{"start": 0.2}, {"t_max": 500.0}, {"sigma_min": 0.1}, {"rescale": 0.5}])
def test_what_a_pipeline_of_its_own_would_ignore_is_refused(setting):
    for kind in (PAG, SAG):
        kind().check()
        with pytest.raises(UserError, match=rf"guidance\.{next(iter(setting))}=.*no such setting"):
            kind(**setting).check()


@pytest.mark.parametrize(
    ("make", "guidance", "message"),
    [
        ((0, 0), ICG(), "is unconditional and has no condition"),
        ((0, 0), CFGAndTSG(), "is unconditional"),
        ((K, 0), ICG(fields=["latents"]), "guidance.fields=latents"),
        ((K, 0), PAG(), "works on Stable Diffusion pipelines only"),
        ((K, 0), TSG(max_layers=3), "max_layers=3"),
        ((K, 0), TCFG(), "guidance=tcfg: works on pipelines"),
        ((K, 0), ICG(control_std=1.0), r"guidance\.control_std: .* has no ControlNet"),
    ],
)
def test_what_a_model_of_ours_cannot_do(tmp_path, make, guidance, message):
    with pytest.raises(UserError, match=message):
        open_model(make_model(tmp_path, *make)).refuse(guidance)


def test_latents_need_their_prior(tmp_path):
    folder = make_model(tmp_path)
    for path in (tmp_path / "model" / "prior").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="has latents, and no prior"):
        open_model(folder)


# -- diffusers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dit", "stable_diffusion", "sdxl", "ddpm", "ldm"])
def test_a_pipeline_is_sampled_and_says_what_it_makes(pipelines, kind):
    source = open_pipeline(pipelines / kind)
    promised = source.shape
    source.prepare(TSG())
    images, calls = source.draw(TSG(), 2.0, request(0, 2))
    assert images.shape == (2, *promised) and calls == 6
    assert images.min() >= -1 and images.max() <= 1


@pytest.mark.parametrize("kind", ["dit", "stable_diffusion", "sdxl"])
def test_sample_i_of_a_pipeline_is_the_same_alone(pipelines, kind):
    source = open_pipeline(pipelines / kind, num_samples=2)
    source.prepare(ICG())
    together, calls = source.draw(ICG(), 2.0, request(0, 2))
    alone = torch.cat([source.draw(ICG(), 2.0, request(i, i + 1))[0] for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)
    assert calls == 6


@pytest.mark.parametrize("kind", ["stable_diffusion", "sdxl"])
def test_cfg_is_the_pipelines_own(pipelines, kind):
    source = open_pipeline(pipelines / kind, prompts=["a", "b"])
    source.prepare(CFG())
    ours, _ = source.draw(CFG(), 3.0, request(0, 2))
    native = source.pipe(**source._arguments(request(0, 2), 3), guidance_scale=3.0).images
    theirs = torch.as_tensor(native).permute(0, 3, 1, 2) * 2 - 1
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("kind", "guidance"), [("stable_diffusion", PAG()), ("sdxl", PAG()), ("stable_diffusion", SAG())]
)
def test_peers_of_diffusers_run_and_leave_the_pipeline_as_it_was(pipelines, kind, guidance):
    source = open_pipeline(pipelines / kind, prompts=["a"])
    before, _ = source.draw(NoGuidance(), 1.0, request(0, 1))
    guided, calls = source.draw(guidance, 3.0, request(0, 1))
    assert not torch.equal(guided, before) and calls == 6
    assert torch.equal(source.draw(NoGuidance(), 1.0, request(0, 1))[0], before)
    torch.testing.assert_close(source.draw(guidance, 1.0, request(0, 1))[0], before, atol=1e-5, rtol=0)


def test_labels_of_a_pipeline_default_to_a_seeded_draw(pipelines):
    labels = [open_pipeline(pipelines / "dit", seed=seed, num_samples=8).labels for seed in (0, 0, 1)]
    assert labels[0] == labels[1] != labels[2] and all(0 <= one < tiny.NUM_CLASSES for one in labels[0])
    assert open_pipeline(pipelines / "dit", labels=[3, 7]).labels == [3, 7]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("dit", {"labels": 12}, "labels: 12 is out of range; the model has the classes 0 to 11"),
        ("dit", {"labels": ["cat"]}, "no class 'cat'"),
        ("dit", {"prompts": ["a cat"]}, "takes no text \\(give labels="),
        ("stable_diffusion", {"labels": [1]}, "has no classes \\(give prompts="),
        ("ddpm", {"labels": [1]}, "it is unconditional"),
        ("dit", {"size_px": 64}, "size_px=64"),
        ("dit", {"part": "denoiser"}, "part: is of networks of ours; DiTPipeline has parts of its own"),
        ("ddpm", {"vae": "vae"}, "vae: is of networks of ours; DDPMPipeline"),
    ],
)
def test_conditions_that_do_not_fit(pipelines, kind, settings, message):
    with pytest.raises(UserError, match=message):
        open_pipeline(pipelines / kind, **settings)


def test_what_families_cannot_do_is_said_before_anything_is_loaded():
    conditions = {"DiTPipeline": "class", "FluxPipeline": "text", "WanPipeline": "text", "DDPMPipeline": "none"}
    for kind, condition in conditions.items():
        assert condition_of(kind) == condition
        for guidance in (ICG(), CFG(), ICGAndTSG(), CFGAndTSG()):
            if condition == "none":
                with pytest.raises(UserError, match="unconditional and has no condition"):
                    refuse(kind, guidance)
            else:
                refuse(kind, guidance)
        refuse(kind, TSG())
    with pytest.raises(UserError, match="this is DiTPipeline"):
        refuse("DiTPipeline", PAG())


def test_pipelines_that_are_not_there_or_not_known(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_index("/nowhere/at/all")
    with pytest.raises(UserError, match="as a hub id: it is not in the cache"):
        find_index("nobody/nothing")
    assert find_index(str(tmp_path)) is None
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(UserError, match="not the index of a diffusers pipeline"):
        find_index(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline", "unet": ["evil", "UNet2DModel"]}')
    with pytest.raises(UserError, match="unet comes from evil, and only parts of diffusers and transformers"):
        find_index(str(tmp_path))
    for kind, line in {
        "KandinskyPipeline": "image_embeds, negative_image_embeds, which a command line cannot give",
        "ShapEPipeline": "no scheduler with a UNet or a transformer",
        "os.path": "os.path is not a pipeline of diffusers",
        "UNet2DModel": "is not a pipeline of diffusers",
    }.items():
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
        with pytest.raises(UserError, match=line):
            find_index(str(tmp_path))


def test_pickled_weights_are_refused(pipelines, tmp_path):
    import shutil

    shutil.copytree(pipelines / "ddpm", tmp_path / "ddpm")
    weights = tmp_path / "ddpm" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="cannot be loaded"):
        open_pipeline(tmp_path / "ddpm")


# -- labels and prompts ----------------------------------------------------------------------------------------------


def test_labels_inline_in_a_file_and_by_name(tmp_path):
    (tmp_path / "labels.txt").write_text("3\n\nboot\n")
    assert read_labels(str(tmp_path / "labels.txt"), 10, {"boot": 9}) == [3, 9]
    assert read_labels(4, 10, {}) == [4] and read_labels([1, "boot"], 10, {"boot": 9}) == [1, 9]
    with pytest.raises(UserError, match="did you mean 'boot'"):
        read_labels("boots", 10, {"boot": 9})
    with pytest.raises(UserError, match=r"labels=missing\.txt: no such file"):
        read_labels("missing.txt", 10, {})
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="the file is empty"):
        read_labels(str(tmp_path / "empty.txt"), 10, {})


def test_prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    assert read_prompts(str(tmp_path / "prompts.txt")) == ["a cat", "a dog"]
    assert read_prompts("a cat, sitting") == ["a cat, sitting"] and read_prompts(None) == PROMPTS
    assert draw_labels(0, 4, 3) == draw_labels(0, 4, 3)


def test_a_byte_order_mark_is_no_part_of_the_first_label_or_prompt(tmp_path):
    (tmp_path / "one.txt").write_text("3\n", encoding="utf-8-sig")
    assert read_labels(str(tmp_path / "one.txt"), 10, {}) == [3] and read_prompts(str(tmp_path / "one.txt")) == ["3"]


@pytest.mark.parametrize("text", ["\u00b2", "--5", "5-"])
def test_what_is_no_number_is_refused_as_a_label(text):
    with pytest.raises(UserError, match="labels: no class"):
        read_labels([text], 10, {})


def test_requests_number_their_samples():
    whole = dataclasses.replace(request(), stop=5)
    assert whole.seeds("x")[2:4] == request(2, 4).seeds("x") and whole.seeds("x") != whole.seeds("y")
