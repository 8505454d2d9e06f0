"""The training loop against one written out, what a batch is drawn from, the held-out cases, and what residuals are."""

import json
import math

import numpy as np
import pytest
import torch

from tests.venhancer.networks import clip, tiny_pipeline
from tests.venhancer.train.test_objective_by_hand import batch_of, latents
from toolkit.data.video.crops import ClipCrops
from toolkit.runs.device import make_accelerator
from toolkit.runs.record import Run
from toolkit.runs.seeds import seed_all
from toolkit.venhancer.config import Augment, ClipData, EnhanceVideo, Optim
from toolkit.venhancer.model import residuals
from toolkit.venhancer.train import batches as batching
from toolkit.venhancer.train import held_out, stage
from toolkit.venhancer.train.batches import Batches
from toolkit.venhancer.train.objective import Denoising, conditions, latents_of

CPU = torch.device("cpu")


def crops_in(folder, num=6):
    pixels = np.stack([clip(5, 8, 8, seed=seed) for seed in range(num)])
    (folder / "crops.u8").write_bytes(pixels.tobytes())
    return ClipCrops(folder / "crops.u8", pixels.shape, tuple(f"text {index}" for index in range(num)))


def config_of(optim=None, **augment):
    data = ClipData(num_frames=5, crop_px=16)
    return EnhanceVideo(data=data, augment=Augment(**augment), optim=Optim(**optim or {}), log_every_steps=1)


def test_the_loop_is_adamw_on_clipped_gradients_and_what_is_saved_is_the_average(tmp_path):
    """A warm-up of two in four steps times a cosine; the half-life is a fifth of the clips seen, at most one."""
    optim = {"joint": True, "num_steps": 4, "batch_size": 2, "lr": 3e-2, "warmup_steps": 2, "schedule": "cosine"}
    config = config_of(optim | {"weight_decay": 0.3, "grad_clip": 0.05, "ema_half_life_images": 1.0})
    crops, pipeline, again = crops_in(tmp_path), tiny_pipeline(), tiny_pipeline()
    run = Run(tmp_path / "run", config)
    run.open([])
    with run.stage("train"):
        stage._train_control(config, run, make_accelerator(config), pipeline, crops)
    run.close("done")

    network, batches = again.denoiser.train(), Batches(config, crops, again, CPU)
    denoising = Denoising(again, controlled=True)
    average = {name: one.detach().clone() for name, one in network.named_parameters()}
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.3)
    losses, norms = [], []
    for step in range(4):
        seed_all(config.seed, "train", 0, step)
        loss = denoising(*batches(step))
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        norms.append(math.sqrt(sum(float(one.square().sum()) for one in gradients)))
        for parameter, one in zip(network.parameters(), gradients, strict=True):
            parameter.grad = one * min(1.0, 0.05 / norms[-1])
        factor = min(1, (step + 1) / 2) * (1 + math.cos(math.pi * step / 4)) / 2
        optimizer.param_groups[0]["lr"] = 3e-2 * factor
        optimizer.step()
        kept = 0.5 ** (2 / min(1.0, 0.2 * 2 * step)) if step else 0.0
        average = {name: kept * average[name] + (1 - kept) * one.detach() for name, one in network.named_parameters()}
        losses.append(loss.item())
    rows = [json.loads(line) for line in (run.dir / "metrics.jsonl").read_text().splitlines()]
    assert min(norms) > 0.05 and [row["grad_norm"] for row in rows] == pytest.approx(norms, rel=1e-3)
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-3)
    for name, one in pipeline.denoiser.named_parameters():
        torch.testing.assert_close(one, average[name], rtol=1e-2, atol=2e-4)
    assert any((one - average[name]).abs().max() > 1e-3 for name, one in network.named_parameters())


def test_a_batch_differs_from_step_to_step_and_its_shares_are_as_asked(tmp_path, monkeypatch):
    crops, pipeline = crops_in(tmp_path), tiny_pipeline()
    monkeypatch.setattr(Batches, "_text", lambda self, text: [said.append(text), torch.zeros(1, 1, 4)][1])

    def drawn(**augment):
        batches = Batches(config_of({"batch_size": 6}, **augment), crops, pipeline, CPU)
        return batches, [batches(step)[0] for step in range(4)]

    said = []
    batches, found = drawn(clean_fraction=0.0, max_noise_level=2, text_drop=0.0)
    levels = torch.cat([one.noise_level for one in found])
    assert set(levels.tolist()) == {0, 1, 2} and (levels == 0).sum() < 14  # each a third of 24
    assert said == [f"text {index}" for step in range(4) for index in batches._indices(step)]
    assert len({tuple(one.scale.tolist()) for one in found}) == 4
    assert sorted(batches._indices(0)) == sorted(batches._indices(1)) and batches._indices(0) != batches._indices(1)
    said.clear()
    _, found = drawn(clean_fraction=1.0, text_drop=1.0)
    assert not any(one.noise_level.any() for one in found) and set(said) == {""}


def test_a_text_is_encoded_once_and_without_a_negative_beside_it(tmp_path, monkeypatch):
    pipeline, asked = tiny_pipeline(), []

    def encode(*words, **keys):
        asked.append((words, keys))
        return torch.zeros(1, 1, 4)

    monkeypatch.setattr(pipeline, "encode_prompt", encode)
    batches = Batches(config_of(), crops_in(tmp_path), pipeline, CPU)
    assert batches._text("a street").shape == batches._text("a street").shape == (1, 1, 4)
    assert asked == [(("a street", ""), {"guided": False})]


def test_processes_share_a_batch_out_and_no_crop_is_seen_twice(tmp_path, monkeypatch):
    batches = Batches(config_of({"batch_size": 2}), crops_in(tmp_path), tiny_pipeline(), CPU)
    whole = [batches._indices(step) for step in range(3)]
    parts = []
    for mine in (slice(0, 1), slice(1, 2)):
        monkeypatch.setattr(batching, "own_part", lambda size, mine=mine: mine)
        parts.append([batches._indices(step) for step in range(3)])
    assert [[*a, *b] for a, b in zip(*parts, strict=True)] == whole
    assert len({index for step in whole for index in step}) == 6


def test_clips_are_mirrored_and_played_backwards():
    clips = torch.arange(4 * 2 * 3 * 2 * 2).view(4, 2, 3, 2, 2)
    made = Batches._flipped(clips, np.array([[False, False], [True, False], [False, True], [True, True]]))
    wanted = [clips[0], clips[1][:, :, :, [1, 0]], clips[2][[1, 0]], clips[3][[1, 0]][:, :, :, [1, 0]]]
    assert torch.equal(made, torch.stack(wanted))


def test_held_out_cases_differ_in_what_is_told_alone(monkeypatch):
    pipeline = tiny_pipeline(diffuses="latents")
    for one in pipeline.denoiser.parameters():
        torch.nn.init.normal_(one, std=0.3)  # so that its control is heard
    batch = batch_of(pipeline, [0, 40, 200])
    monkeypatch.setattr(held_out, "STEPS", (499,))
    monkeypatch.setattr(held_out, "_batches", lambda *_: iter([(batch, 7)]))
    found = held_out.held_out_losses(pipeline, config_of(), CPU)

    seed_all(7, "held_out")
    x0, hint = latents(pipeline, batch.clean), latents(pipeline, batch.keys)
    noise, text = torch.randn_like(x0), pipeline.encode_prompt("", "", guided=False).expand(3, -1, -1)
    given = conditions(pipeline, batch, hint, torch.randn_like(hint))
    sigma = pipeline.scheduler.sigmas[499].item()
    alpha = math.sqrt(1 - sigma**2)
    x, target = alpha * x0 + sigma * noise, alpha * noise - sigma * x0
    last_first = [2, 0, 1]
    cases = {
        "loss": given,
        "without_control": {},
        "shuffled_scale": given | {"up_scale": given["up_scale"][last_first]},
        "shuffled_noise_level": given | {"t_hint": given["t_hint"][last_first]},
    }
    with torch.no_grad():
        errors = {
            name: (pipeline.velocity(x, torch.full((3,), 499), text, **case) - target).square().flatten(1).mean(1)
            for name, case in cases.items()
        }
    assert {name: found[name] for name in cases} == pytest.approx(
        {name: float(one.mean()) for name, one in errors.items()}, rel=1e-4
    )
    assert len({round(found[name], 4) for name in cases}) == 4
    for scale, one in zip(batch.scale.tolist(), errors["loss"], strict=True):
        assert found[f"loss.scale_{scale:g}"] == pytest.approx(float(one), rel=1e-4)


def test_residuals_in_their_units_on_top_of_the_filled_in_clip_are_the_clip():
    pipeline = tiny_pipeline()
    batch = batch_of(pipeline, [0, 0])
    x0, _ = latents_of(pipeline, batch)
    clean, fill, keys = (latents(pipeline, one) for one in (batch.clean, batch.fill, batch.keys))
    for frame in range(5):
        first, rest = divmod(frame, 2)
        parts = [(first, 0.5), (first + 1, 0.5)] if rest else [(first, 1.0)]
        wide = [(residuals.with_margin(keys[:, :, key]), weight) for key, weight in parts]
        unit = residuals.expected(wide, batch.scale)
        torch.testing.assert_close(x0[:, :, frame] * unit + fill[:, :, frame], clean[:, :, frame], rtol=1e-4, atol=1e-4)
