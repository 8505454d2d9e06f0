"""Stage 2: the prior's optimiser does what its keys say."""

import dataclasses

import pytest
import torch

from tests.disco import tiny
from toolkit.disco import stage2
from toolkit.disco.artefact import Parts
from toolkit.disco.build import build_denoiser, build_encoder, build_prior
from toolkit.disco.sampling import encode
from toolkit.disco.stage2 import Latents, train_prior
from toolkit.runs.device import make_accelerator
from toolkit.runs.record import Run


def trained(folder, **keys):
    """The prior's weights after three steps, and before."""
    config, data = tiny.config(num_workers=0), tiny.images()
    config = dataclasses.replace(config, prior=dataclasses.replace(config.prior, num_steps=3, dropout=0.0, **keys))
    torch.manual_seed(0)
    parts = Parts(build_denoiser(config, data, True), build_encoder(config, data))
    prior = build_prior(config, data)
    before = {name: one.detach().clone() for name, one in prior.named_parameters()}
    run = Run(folder, config)
    run.open([])
    with run.stage("prior"):
        train_prior(run, config, parts, prior, data.train, data.valid, make_accelerator(config))
    run.close("done")
    return {name: one.detach() for name, one in prior.named_parameters()}, before


def moved(weights, before):
    return sum(float((weights[name] - before[name]).abs().sum()) for name in before)


def test_weight_decay_pulls_the_weights_towards_zero(tmp_path):
    plain, before = trained(tmp_path / "plain", weight_decay=0.0, lr=1e-4)
    decayed, _ = trained(tmp_path / "decayed", weight_decay=1000.0, lr=1e-4)
    norms = [sum(float(one.square().sum()) for one in weights.values()) for weights in (plain, decayed, before)]
    assert norms[1] < 0.9 * norms[0] and 0.9 * norms[2] < norms[0]


def test_a_clipped_gradient_moves_less(tmp_path):
    """AdamW divides by the gradient's size, so only one below its epsilon (1e-8) shows."""
    free, clipped = (moved(*trained(tmp_path / str(clip), grad_clip=clip, weight_decay=0.0)) for clip in (1.0, 1e-9))
    assert clipped < 0.5 * free


def encoded_parts(kind="discrete", size=8):
    config, data = tiny.config(kind=kind), tiny.images(40, size=size)
    torch.manual_seed(0)
    parts = Parts(build_denoiser(config, data).eval(), build_encoder(config, data).eval())
    with torch.no_grad():
        for parameter in parts.encoder.head.parameters():
            parameter.mul_(8)
    return parts, data.train


def drawn_by_hand(parts, split, rng, flip):
    """z of every item, the encoder asked anew, in batches of 16."""
    drawn = []
    for index in torch.arange(len(split)).split(16):
        y = split.batch(index)[0]
        if flip:
            y = torch.where(torch.rand(len(y), 1, 1, generator=rng)[..., None] < 0.5, y.flip(-1), y)
        drawn.append(encode(parts, y, None, 0.01, rng))
    return torch.cat(drawn)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_the_encoder_runs_once_and_every_epoch_draws_what_it_would_have_drawn(monkeypatch, kind, flip):
    monkeypatch.setattr(stage2, "ENCODE_BATCH", 16)
    parts, split = encoded_parts(kind)
    wanted = [drawn_by_hand(parts, split, torch.Generator().manual_seed(epoch), flip) for epoch in range(3)]
    seen = []
    parts.encoder.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    latents = Latents(parts, split, 0.01, flip)
    found = [latents.draw(torch.Generator().manual_seed(epoch))[0] for epoch in range(3)]
    assert sum(seen) == 40 * (1 + flip)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert not torch.equal(found[0], found[1])


def test_what_is_too_large_to_keep_exactly_is_drawn_from_the_same_law(monkeypatch):
    parts, split = encoded_parts()
    [exact] = Latents(parts, split, 0.01)._encoded[0]
    monkeypatch.setattr(stage2, "MOST_EXACT_BYTES", 0)
    rounded = Latents(parts, split, 0.01)
    [kept] = rounded._encoded[0]
    assert exact.dtype == torch.float32 and kept.dtype == torch.float16
    assert exact.softmax(-1).max() > 0.8
    assert (kept.float().softmax(-1) - exact.softmax(-1)).abs().max() < 3e-4
    assert rounded.draw(torch.Generator().manual_seed(0))[0].shape == (40, 2)
