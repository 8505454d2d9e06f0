"""Which seed, how many steps and which average each stage of training has; how clips are degraded; held-out batches."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.venhancer.networks import clip, tiny_pipeline
from tests.venhancer.train.test_loop_by_hand import CPU, config_of, crops_in
from toolkit.runs.seeds import derive
from toolkit.venhancer.model.conditioning import Fill
from toolkit.venhancer.train import augment, held_out, stage
from toolkit.venhancer.train import batches as batching
from toolkit.venhancer.train.augment import degrade, draw_scales
from toolkit.venhancer.train.batches import Batches
from toolkit.venhancer.train.objective import Denoising, conditions


def test_base_and_control_train_for_their_own_steps_and_what_is_averaged_is_kept(monkeypatch, tmp_path):
    """The base without key frames; its average is what the control network is put on."""
    config = config_of({"num_steps": 7, "base_num_steps": 3, "ema_half_life_images": 50.0, "betas": [0.8, 0.9]})
    told, built = {}, []

    class Steps:
        def __init__(self, run, name, num_steps, state):
            told[name] = (num_steps, set(state), state["ema"], state["optimizer"])
            assert state["model"].training and not state["ema"].model.training

        def __iter__(self):
            _, _, ema, _ = [*told.values()][-1]
            for one in ema.model.parameters():
                one.fill_(len(told) / 2)  # what is averaged: 0.5 in the base, 1 in the control network
            return iter(())

    monkeypatch.setattr(stage, "Loop", Steps)
    own = stage.Denoising
    monkeypatch.setattr(stage, "Denoising", lambda pipeline, **keys: built.append(keys) or own(pipeline, **keys))
    accelerator = SimpleNamespace(device=CPU, scaler=None, prepare_model=lambda module: module)
    pipeline = tiny_pipeline(diffuses="latents")
    monkeypatch.setattr(stage, "build_pipeline", lambda *_: pipeline)
    base = stage._train_base(config, None, accelerator, pipeline.denoiser.unet, None, crops_in(tmp_path))
    assert told["base"][:2] == (3, {"model", "optimizer", "ema"}) and base is pipeline.denoiser.unet
    run = SimpleNamespace(record={}, path=lambda *_: tmp_path / "model")
    stage._train_control(config, run, accelerator, pipeline, crops_in(tmp_path))
    assert told["train"][:2] == (7, {"model", "optimizer", "ema"})
    assert [keys["controlled"] for keys in built] == [False, True]
    counted = {"base": pipeline.denoiser.unet, "control": pipeline.denoiser.controlnet}
    for value, network in zip((0.5, 1.0), counted.values(), strict=True):
        assert all((one == value).all() for one in network.parameters())
    assert run.record["parameters"] == {name: sum(p.numel() for p in one.parameters()) for name, one in counted.items()}
    for _, _, ema, optimizer in told.values():
        assert (ema.half_life_images, ema.ramp_up_ratio) == (50.0, 0.2) and optimizer.defaults["betas"] == (0.8, 0.9)
    trained = {id(one) for group in told["train"][3].param_groups for one in group["params"]}
    assert trained == {id(one) for one in counted["control"].parameters()}


def test_the_bases_average_takes_its_place(monkeypatch, tmp_path):
    pipeline = tiny_pipeline(diffuses="latents")
    average = tiny_pipeline(diffuses="latents").denoiser.unet
    with torch.no_grad():
        for one in average.parameters():
            one.add_(1.0)
    monkeypatch.setattr(stage, "build_pipeline", lambda *_: pipeline)
    monkeypatch.setattr(stage, "_optimise", lambda *_: average)
    base = stage._train_base(config_of(), None, None, None, None, None)
    for one, other in zip(base.parameters(), average.parameters(), strict=True):
        assert torch.equal(one, other)


def test_every_stage_of_a_training_begins_by_the_runs_seed(monkeypatch):
    seeded, cut = [], []
    monkeypatch.setattr(stage, "seed_all", lambda *names: seeded.append(names))
    monkeypatch.setattr(stage, "build_vae", lambda _: None)
    monkeypatch.setattr(stage, "as_codec", lambda _: SimpleNamespace(channels=12, factor=2))
    for name in ("held_out_clips", "build_base", "check_crop", "build_pipeline", "_train_base", "_train_control"):
        monkeypatch.setattr(stage, name, lambda *_: None)
    monkeypatch.setattr(stage, "clip_paths", lambda *_: ["a"])
    monkeypatch.setattr(stage, "clip_crops", lambda *given: cut.append(given))
    config = config_of()
    config.seed, config.stage, config.data.rate_fps = 4, "train", 12.0
    run = SimpleNamespace(stage=lambda name: __import__("contextlib").nullcontext())
    stage.train(config, run, None)
    assert seeded == [(4, "base", "init"), (4, "train", "init")]
    assert cut == [(["a"], config.data.num_crops, 5, 16, 12.0, 4)]


def test_crops_are_whole_numbers_of_latents():
    config = config_of()
    base = SimpleNamespace(check_size=lambda *size: sizes.append(size))
    sizes = []
    stage.check_crop(config, SimpleNamespace(factor=4), base)
    assert sizes == [(4, 4)]
    with pytest.raises(Exception, match=r"data\.crop_px=16: must be a multiple of 3"):
        stage.check_crop(config, SimpleNamespace(factor=3), base)


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_process_degrades_its_own_rows_of_one_draw(tmp_path, monkeypatch):
    """Levels, scales and flips of a batch of six are those of the process that has rows 2 to 4."""
    crops, pipeline = crops_in(tmp_path), tiny_pipeline()
    given = {"max_frame_factor": 8, "max_key_frames": 3, "clean_fraction": 0.0, "scale_weighting": "uniform"}
    batches = Batches(config_of({"batch_size": 6}, **given), crops, pipeline, CPU)
    asked, flips = [], []
    monkeypatch.setattr(batching.augment, "degrade", lambda *words: asked.append(words))
    own = Batches._flipped
    monkeypatch.setattr(Batches, "_flipped", staticmethod(lambda clips, flip: flips.append(flip) or own(clips, flip)))
    for mine in (slice(0, 6), slice(2, 5)):
        monkeypatch.setattr(batching, "own_part", lambda size, mine=mine: mine)
        for step in range(40):
            batches(step)
    whole, part = asked[:40], asked[40:]
    for (_, factor, scale, level, _), (clips, again, some, some_levels, _) in zip(whole, part, strict=True):
        assert factor == again <= 4 and torch.equal(scale[2:5], some) and torch.equal(level[2:5], some_levels)
        assert clips.shape[1] == min(4 // factor, 2) * factor + 1
    assert {factor for _, factor, *_ in whole} == {1, 2, 3, 4}  # five frames hold four steps
    assert all((one[2:5] == other).all() for one, other in zip(flips[:40], flips[40:], strict=True))
    assert np.stack(flips[:40]).mean() == pytest.approx(0.5, abs=0.06)
    scales = torch.cat([scale for _, _, scale, _, _ in whole])
    assert scales.mean() == pytest.approx(4.5, abs=0.5)  # evenly from 1 to 8


def test_scales_are_drawn_with_their_own_weighting():
    """The mean of s over 1..8: 4.5 evenly, 2 (512 - 1) / 3 / 63 = 5.41 in proportion, 7 / ln 8 = 3.37 inversely."""
    for weighting, mean in (("uniform", 4.5), ("proportional", 5.407), ("inverse", 3.366)):
        assert draw_scales(np.random.default_rng(0), 40000, 8.0, weighting).mean() == pytest.approx(mean, rel=0.01)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_key_frame_is_made_smaller_with_antialiasing_stored_in_eight_bits_and_resized_as_asked(mode):
    clips = torch.from_numpy(clip(3, 18, 24)).permute(0, 3, 1, 2)[None]
    made = degrade(clips, 2, torch.tensor([3.0]), torch.tensor([0]), Fill(mode))
    clean = clips[0, ::2].float() / 127.5 - 1
    low = F.interpolate(clean, size=(6, 8), mode="bicubic", antialias=True)
    levels = ((low + 1) * 127.5).round().clamp(0, 255)
    wanted = F.interpolate(levels / 127.5 - 1, size=(18, 24), mode=mode, align_corners=False)
    torch.testing.assert_close(made.keys[0], wanted, rtol=0, atol=1e-6)
    assert torch.equal(made.fill[0, 1], made.keys[0, 0])  # not blended: the one before


def test_conditions_are_the_step_of_each_level_and_the_scale_itself():
    pipeline = tiny_pipeline()
    clean = torch.zeros(3, 5, 3, 8, 8)
    batch = augment.Degraded(clean, clean[:, ::2], clean, 2, torch.tensor([1.5, 2.0, 4.0]), torch.tensor([0, 1, 40]))
    hint, noise = torch.ones(3, 12, 3, 4, 4), torch.full((3, 12, 3, 4, 4), 2.0)
    found = conditions(pipeline, batch, hint, noise)
    assert found["t_hint"].tolist() == [0, 0, 39] and found["up_scale"].tolist() == [1.5, 2.0, 4.0]
    assert torch.equal(found["hint"][0], hint[0])  # level 0 is no noise, level 1 the schedule's first
    for row, step in ((1, 0), (2, 39)):
        sigma = pipeline.scheduler.sigmas[step]
        wanted = (1 - sigma**2).sqrt() + 2 * sigma
        torch.testing.assert_close(found["hint"][row], torch.full((12, 3, 4, 4), float(wanted)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("weighting", "power"), [("uniform", 1.0), ("proportional", 0.5)])
def test_steps_are_drawn_by_the_root_of_an_even_number(weighting, power):
    assert Denoising(tiny_pipeline(), controlled=True, step_weighting=weighting).power == power


def test_held_out_batches_take_factors_and_scales_in_turn_whatever_the_seed(tmp_path, monkeypatch):
    """Nineteen crops: batches of 8, 8 and 3, every second, every and every fourth frame kept in turn."""
    crops = crops_in(tmp_path, 19)
    asked = []
    monkeypatch.setattr(held_out, "held_out_clips", lambda _: ["a"])
    monkeypatch.setattr(held_out, "clip_crops", lambda *given, **more: asked.append((given, more)) or crops)
    config = config_of()
    config.seed = 9
    found = list(held_out._batches(config, tiny_pipeline(), CPU))
    assert asked[0][1] == {"seed": 0} and [len(batch.scale) for batch, _ in found] == [8, 8, 3]
    assert [batch.frame_factor for batch, _ in found] == [1, 2, 4]
    assert found[0][0].scale.tolist() == [1.5, 2, 4, 8] * 2
    assert [seed for _, seed in found] == [derive(0, "noise", number) for number in range(3)]
    assert list(held_out.STEPS) == [99, 299, 499, 699, 899]  # the middle of each fifth of 1000
    levels = [batch.noise_level.tolist() for batch, _ in found]
    assert levels[0] != levels[1] and max(levels[0] + levels[1]) > 100
    order = np.random.default_rng(0).permutation(19)
    clean = crops.read(order[:8].tolist(), 5).float() / 127.5 - 1
    assert torch.equal(found[0][0].clean, clean)
