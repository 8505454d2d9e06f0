"""The training loss of enhancement written out from the paper, and the noise that key frames get on the way in."""

import math
from types import SimpleNamespace

import pytest
import torch

from tests.venhancer.networks import clip, tiny_pipeline
from toolkit.venhancer.model.schedule import VideoNoiseSchedule
from toolkit.venhancer.train import augment, objective
from toolkit.venhancer.train.objective import Denoising, conditions


def batch_of(pipeline, levels):
    clips = torch.stack(
        [torch.from_numpy(clip(5, 8, 12, seed=seed)).permute(0, 3, 1, 2) for seed in range(len(levels))]
    )
    scale = torch.linspace(1, 4, len(levels))
    return augment.degrade(clips, 2, scale, torch.tensor(levels), pipeline.fill)


def alpha_sigma(pipeline, step):
    sigma = pipeline.scheduler.sigmas[step].double().item()
    return math.sqrt(1 - sigma**2), sigma


def latents(pipeline, frames):
    """(B, F, 3, H, W) -> (B, C, F, h, w)."""
    return pipeline.codec.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)


@pytest.mark.parametrize(("weighting", "power"), [("uniform", 1.0), ("proportional", 0.5)])
def test_the_loss_is_the_weighted_error_of_v_told_the_level_that_noised_the_key_frames(weighting, power):
    pipeline = tiny_pipeline(diffuses="latents")
    batch = batch_of(pipeline, [0, 1, 40, 300])
    text = pipeline.encode_prompt("", "", guided=False).expand(4, -1, -1)
    torch.manual_seed(1)
    with torch.no_grad():
        loss = Denoising(pipeline, controlled=True, step_weighting=weighting)(batch, text)

    torch.manual_seed(1)
    x0, keys = latents(pipeline, batch.clean), latents(pipeline, batch.keys)
    steps = [int(u**power * 1000) for u in torch.rand(4).tolist()]
    noise, key_noise = torch.randn(x0.shape), torch.randn(keys.shape)
    told, hints, x, v = [], [], [], []
    for item, level in enumerate([0, 1, 40, 300]):
        alpha, sigma = alpha_sigma(pipeline, steps[item])
        x.append(alpha * x0[item] + sigma * noise[item])
        v.append(alpha * noise[item] - sigma * x0[item])
        told.append(max(level - 1, 0))  # level n is step n - 1; level 0 leaves key frames as they are
        alpha, sigma = alpha_sigma(pipeline, told[-1])
        hints.append(alpha * keys[item] + sigma * key_noise[item] if level else keys[item])
    given = {"hint": torch.stack(hints), "t_hint": torch.tensor(told), "up_scale": batch.scale}
    index = torch.tensor([[0, -1, 1, -1, 2]]).expand(4, -1)
    with torch.no_grad():
        step = torch.tensor(steps)
        out = pipeline.velocity(torch.stack(x), step, text, **given, key_frame_index=index)
        weight = pipeline.loss_weight(step, torch.stack(x))
        wanted = (weight * (out - torch.stack(v)) ** 2).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_only_clips_with_a_level_get_noise_and_as_much_as_it_says():
    pipeline = tiny_pipeline(diffuses="latents")
    batch = batch_of(pipeline, [0, 1, 200, 301])
    keys = torch.ones(4, 12, 3, 64, 64)
    torch.manual_seed(0)
    found = conditions(pipeline, batch, keys, torch.randn_like(keys))
    assert torch.equal(found["hint"][0], keys[0]) and found["t_hint"].tolist() == [0, 0, 199, 300]
    for item in (1, 2, 3):
        alpha, sigma = alpha_sigma(pipeline, found["t_hint"][item])
        assert found["hint"][item].mean().item() == pytest.approx(alpha, abs=0.01)
        assert found["hint"][item].std().item() == pytest.approx(sigma, rel=0.02)
    assert torch.equal(found["up_scale"], batch.scale)


def test_each_step_weighs_its_clips_error_and_an_even_number_of_one_is_the_last_step(monkeypatch):
    """Of v = 0 and no noise the error is sigma^2: weights of 1, 10 and 100 at the first, the 500th and the last."""
    told, clean = [], torch.ones(3, 2, 1, 2, 2)
    monkeypatch.setattr(objective, "latents_of", lambda *_: (clean, None))
    pipeline = SimpleNamespace(denoiser=None, scheduler=VideoNoiseSchedule())
    pipeline.velocity = lambda x, step, text: told.append(step.tolist()) or torch.zeros_like(x)
    pipeline.loss_weight = lambda step, x: torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1, 1, 1)
    drawn = {"step": torch.tensor([0.0, 0.4999, 1.0]), "noise": torch.zeros_like(clean)}
    loss = Denoising(pipeline, controlled=False)(None, torch.zeros(3), drawn)
    assert told == [[0, 499, 999]]
    sigmas = 0.001106, 0.942608, 1.0  # the published table's
    assert loss.item() == pytest.approx(sum(w * s**2 for w, s in zip((1, 10, 100), sigmas, strict=True)) / 3, rel=1e-5)
