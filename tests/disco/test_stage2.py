"""Stage 2: the prior's optimiser does what its keys say."""

import dataclasses

import torch

from tests.disco import tiny
from toolkit.disco.artefact import Parts
from toolkit.disco.build import build_denoiser, build_encoder, build_prior
from toolkit.disco.stage2 import train_prior
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
