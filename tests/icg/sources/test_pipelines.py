"""``sample-icg model=FOLDER`` on pipelines that no table of ours names: pictures, films, pictures from pictures."""

import copy
import dataclasses
import json

import pytest
import torch

from tests.icg.pipelines import films, pictures, unets  # noqa: F401 (they fill CASES)
from tests.icg.pipelines.parts import CASES, picture
from toolkit.errors import UserError
from toolkit.icg.config import SampleICG, Sampling
from toolkit.icg.methods import CFG, ICG, TCFG, TSG, CFGAndTSG, CFGZeroStar, NoGuidance
from toolkit.icg.sources.base import Request
from toolkit.icg.sources.pipeline import PipelineSource
from toolkit.icg.sources.pipeline_files import check_settings, find_index, load_pipeline, refuse

PLAIN = {"use_resolution_binning": False}
CALLS = {
    "PixArtSigmaPipeline": PLAIN,
    "HunyuanDiTPipeline": PLAIN,
    "CogVideoXPipeline": {"num_frames": 9, "max_sequence_length": 6},
    "LTXPipeline": {"num_frames": 9, "max_sequence_length": 6},
    "WanPipeline": {"num_frames": 5, "max_sequence_length": 6},
    "MochiPipeline": {"num_frames": 7, "max_sequence_length": 6},
    "CogView3PlusPipeline": {"max_sequence_length": 6},
    "BriaPipeline": {"max_sequence_length": 6},
    "IFPipeline": {},
    "LattePipeline": {"video_length": 16, "clean_caption": False},
    "ChromaPipeline": {"max_sequence_length": 6},
    "AnimateDiffPipeline": {"num_frames": 3},
}
FAST = ("PixArtSigmaPipeline", "WanPipeline")
SIZES = {"LTXPipeline": 32, "LattePipeline": 8}


def opened(tmp_path, name, **settings):
    """The pipeline of this name, written to a folder and opened again."""
    CASES[name]().pipe.save_pretrained(tmp_path / name)
    sampling = Sampling(num_steps=2, num_samples=2)
    config = SampleICG(model=str(tmp_path / name), sampling=sampling, **{"prompts": ["ab", "cd"]} | settings)
    config.guidance = ICG()
    check_settings(name, config)
    return PipelineSource(str(tmp_path / name), config, torch.device("cpu"))


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in CALLS])
def test_a_folder_of_any_pipeline_is_sampled_with_every_method(tmp_path, name):
    source = opened(tmp_path, name, call=CALLS[name], size_px=SIZES.get(name, 16))
    request = Request(seed=0, repeat=0, start=0, stop=2)
    plain, calls = source.draw(NoGuidance(), 1.0, request)
    films_made = {"num_frames", "video_length"} & CALLS[name].keys()
    assert plain.shape[0] == 2 and plain.shape[1] == 3 and (plain.shape[3] > plain.shape[2]) == bool(films_made)
    for guidance in (ICG(), TSG(), CFG()):
        source.refuse(guidance)
        source.prepare(guidance)
        images, twice = source.draw(guidance, 3.0, request)
        assert twice == 2 * calls and torch.isfinite(images).all() and not torch.equal(images, plain)
    ours = source.draw(CFG(), 3.0, request)[0]
    native = source._pictures(source.pipe(**source._arguments(request, 2) | {"guidance_scale": 3.0}))
    torch.testing.assert_close(ours, native.permute(0, 3, 1, 2) * 2 - 1, atol=2e-3, rtol=0)


def test_a_picture_and_another_scheduler_and_a_negative_prompt(tmp_path):
    picture().save(tmp_path / "in.png")
    name = "StableDiffusionImg2ImgPipeline"
    call = {"image": str(tmp_path / "in.png"), "strength": 1.0}
    source = opened(tmp_path, name, call=call, scheduler="EulerDiscreteScheduler", negative_prompt="x")
    request = Request(seed=0, repeat=0, start=0, stop=1)
    assert type(source.pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    source.prepare(CFG())
    ours = source.draw(CFG(), 3.0, request)[0]
    arguments = source._arguments(request, 2) | {"guidance_scale": 3.0}
    native = torch.as_tensor(source.pipe(**arguments, negative_prompt=["x"]).images)
    torch.testing.assert_close(ours, native.permute(0, 3, 1, 2) * 2 - 1, atol=2e-3, rtol=0)
    plain = torch.as_tensor(source.pipe(**arguments).images)
    assert not torch.allclose(native, plain)


@pytest.mark.parametrize("guidance", [CFGZeroStar(), TCFG()], ids=["cfg_zero_star", "tcfg"])
def test_variants_of_diffusers_stand_beside(tmp_path, guidance):
    source = opened(tmp_path, "WanPipeline", call=CALLS["WanPipeline"], size_px=16)
    request = Request(seed=0, repeat=0, start=0, stop=2)
    plain, calls = source.draw(NoGuidance(), 1.0, request)
    cfg, _ = source.draw(CFG(), 3.0, request)
    images, twice = source.draw(guidance, 3.0, request)
    assert twice == 2 * calls and torch.isfinite(images).all()
    assert not torch.equal(images, cfg) and not torch.equal(images, plain)
    assert torch.equal(source.draw(guidance, 1.0, request)[0], plain)
    with pytest.raises(UserError, match=r"guidance\.t_min=100: .* takes start and stop alone"):
        dataclasses.replace(guidance, t_min=100).check()


def test_a_scale_that_the_network_embeds_is_an_argument_like_others_and_there_is_no_null_condition(tmp_path):
    source = opened(tmp_path, "LatentConsistencyModelPipeline", call={"guidance_scale": 7.0})
    request = Request(seed=0, repeat=0, start=0, stop=1)
    strong, _ = source.draw(ICG(), 2.0, request)
    source.call["guidance_scale"] = 3.0
    assert not torch.equal(source.draw(ICG(), 2.0, request)[0], strong)
    with pytest.raises(UserError, match="LatentConsistencyModelPipeline has no guidance of its own"):
        source.draw(CFG(), 2.0, request)


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        ("WanPipeline", {"call": {"num_frame": 5}}, r"call\.num_frame: .* did you mean 'num_frames'"),
        ("WanPipeline", {"call": {"guidance_scale": 5}}, r"call\.guidance_scale: is set by the command"),
        ("StableDiffusionInpaintPipeline", {"scheduler": "EulerScheduler"}, "scheduler=EulerScheduler: did you mean"),
        ("StableDiffusionPipeline", {"scheduler": "FlowMatchEulerDiscreteScheduler"}, "a schedule of another kind"),
        ("StableDiffusionUpscalePipeline", {"call": {"image": "no.png"}}, r"call\.image: no\.png: not a readable"),
        ("DDPMPipeline", {"negative_prompt": "x"}, "negative_prompt: DDPMPipeline takes no text"),
    ],
)
def test_what_does_not_fit_a_pipeline_is_one_line(tmp_path, name, settings, line):
    with pytest.raises(UserError, match=line) as error:
        opened(tmp_path, name, **{"prompts": None} | settings if name == "DDPMPipeline" else settings)
    assert "\n" not in str(error.value)


def test_a_random_control_picture_needs_a_controlnet(tmp_path):
    refuse("StableDiffusionControlNetPipeline", ICG(control_std=1.0))
    with pytest.raises(UserError, match="StableDiffusionPipeline has no ControlNet"):
        refuse("StableDiffusionPipeline", ICG(control_std=1.0))
    picture().save(tmp_path / "in.png")
    source = opened(tmp_path, "StableDiffusionControlNetPipeline", call={"image": str(tmp_path / "in.png")})
    request = Request(seed=0, repeat=0, start=0, stop=2)
    kept, drawn = (source.draw(ICG(control_std=std), 3.0, request)[0] for std in (None, 1.0))
    assert not torch.equal(kept, drawn)
    alone = source.draw(ICG(control_std=1.0), 3.0, Request(seed=0, repeat=0, start=1, stop=2))[0]
    torch.testing.assert_close(alone, drawn[1:], atol=5e-3, rtol=0)


def test_keys_that_nothing_reads_are_refused():
    config = SampleICG(model="x", negative_prompt="ugly")
    config.guidance = TSG()
    with pytest.raises(UserError, match="only cfg, cfg_tsg"):
        config.check()
    config.guidance = CFGAndTSG()
    config.check()
    config.call = "num_frames"
    with pytest.raises(UserError, match="must be arguments by name"):
        config.check()


def test_prompts_are_shown_with_the_run(tmp_path):
    from toolkit.api import run

    CASES["PixArtSigmaPipeline"]().pipe.save_pretrained(tmp_path / "pixart")
    words = [f"model={tmp_path / 'pixart'}", "prompts=[a cat,a dog]", "size_px=16", "sampling.num_samples=3"]
    words += ["sampling.num_steps=2", "call={use_resolution_binning: false}"]
    run("sample-icg", *words, folder=tmp_path / "run")
    table = json.loads((tmp_path / "run" / "tables" / "prompts.json").read_text())
    assert table["rows"] == [[0, "a cat"], [1, "a dog"], [2, "a cat"]]  # of every sample; they are used in turn


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_folder_in_half_precision_or_of_a_variant_is_read_in_the_precision_asked_for(tmp_path, variant, caplog):
    name = "PixArtSigmaPipeline"
    pipe = CASES[name]().pipe
    own = type(pipe)(**copy.deepcopy(pipe.components))  # other tests share the parts
    own.to(torch.float16).save_pretrained(tmp_path / name, variant=variant)
    with caplog.at_level("INFO", "toolkit"):
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            parts = load_pipeline(str(tmp_path / name), precision).components.values()
            assert {one.dtype for one in parts if hasattr(one, "dtype")} == {dtype}
    assert ("its weights are those of the variant fp16" in caplog.text) == (variant is not None)


def test_parts_that_a_pipeline_was_saved_without_stay_away(tmp_path):
    pipe = CASES["StableDiffusion3Pipeline"]().pipe
    assert pipe.text_encoder_3 is None
    pipe.save_pretrained(tmp_path / "sd3")
    assert load_pipeline(str(tmp_path / "sd3")).text_encoder_3 is None


def test_a_pipeline_that_is_not_whole_is_one_line(tmp_path):
    def said(model):
        with pytest.raises(UserError) as caught:
            find_index(str(model))
        return str(caught.value)

    folder = tmp_path / "pipe"
    CASES["DDPMPipeline"]().pipe.save_pretrained(folder)
    assert find_index(str(folder))
    assert "is one file; give a folder, as diffusers' from_single_file()" in said(next(folder.rglob("*.safetensors")))
    (folder / "unet").rename(tmp_path / "unet")
    assert said(folder) == f"{folder / 'model_index.json'}: names unet, a folder that is not there; copy it too"
    (folder / "model_index.json").unlink()
    assert said(folder).startswith(f"model={folder}: no model_index.json there")
