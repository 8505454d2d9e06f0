"""Stage 1's loop against one written out, and where stage 2 looks, stops and counts."""

import dataclasses
import math

import pytest
import torch

from tests.disco import tiny
from tests.disco.test_steps_by_hand import logged, opened
from toolkit.data.stream import batches
from toolkit.disco import job
from toolkit.disco.artefact import Parts
from toolkit.disco.build import build_denoiser, build_encoder, build_prior
from toolkit.disco.stage1 import JointModel
from toolkit.disco.stage2 import evaluate, train_prior
from toolkit.runs.device import make_accelerator
from toolkit.runs.seeds import seed_all
from toolkit.zoo.disco.prior import LatentDiffusionPrior, MarginalPrior


def test_stage_1_is_adamw_on_clipped_gradients_with_a_warm_up_times_a_cosine(tmp_path, monkeypatch):
    """Two steps of warm-up in five; both networks' gradients have one norm; dead codes are looked for every second."""
    config, data = tiny.config(tiny.mlp(), num_workers=0, log_every_steps=1), tiny.images()
    config.optim.num_steps, config.optim.batch_size, config.optim.lr, config.optim.encoder_lr = 5, 8, 2e-3, 5e-3
    config.optim.warmup_steps, config.optim.schedule, config.optim.grad_clip = 2, "cosine", 0.4
    config.optim.weight_decay, config.latents.restart_dead_codes = 0.2, True
    monkeypatch.setattr(job, "RESTART_EVERY_STEPS", 2)
    searched = []
    monkeypatch.setattr(JointModel, "restart_dead_codes", lambda self: searched.append(len(losses)) or 0)
    losses, step_of = [], job.train_step

    def counted(*arguments):
        losses.append(None)
        step_of(*arguments)

    monkeypatch.setattr(job, "train_step", counted)
    run = opened(tmp_path, config)
    with run.stage("denoiser"):
        job._train_denoiser(run, config, data, make_accelerator(config), "denoiser")
    run.close("done")
    assert searched == [2, 4]

    seed_all(config.seed, "denoiser", "init")
    joint = JointModel(build_denoiser(config, data, True), build_encoder(config, data), config)
    groups = [{"params": part.parameters()} for part in (joint.denoiser, joint.encoder)]
    optimizer = torch.optim.AdamW(groups, betas=tuple(config.optim.betas), weight_decay=0.2)
    stream, found, norms = batches(data.train, 8, config.seed), [], []
    for step in range(5):
        y, _ = next(stream)
        seed_all(config.seed, "denoiser", 0, step)
        loss, logs = joint(y, None)
        gradients = torch.autograd.grad(loss, list(joint.parameters()), allow_unused=True)
        norm = math.sqrt(sum(float(one.square().sum()) for one in gradients if one is not None))
        for parameter, one in zip(joint.parameters(), gradients, strict=True):
            parameter.grad = None if one is None else one * min(1.0, 0.4 / norm)
        factor = min(1, (step + 1) / 2) * (1 + math.cos(math.pi * step / 5)) / 2
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 2e-3 * factor, 5e-3 * factor
        optimizer.step()
        found.append(float(logs["loss"]))
        norms.append(norm)
    assert min(norms) > 0.4
    assert logged(tmp_path, "denoiser", "loss") == pytest.approx(found, rel=1e-4)
    assert logged(tmp_path, "denoiser", "grad_norm") == pytest.approx(norms, rel=1e-3)


def priors(**keys):
    """A config whose prior has ``keys``, encoder and prior."""
    config, data = tiny.config(num_workers=0, log_every_steps=1), tiny.images(num=32)
    config = dataclasses.replace(config, prior=dataclasses.replace(config.prior, batch_size=16, **keys))
    torch.manual_seed(0)
    return config, data, Parts(build_denoiser(config, data, True), build_encoder(config, data))


def test_held_out_nats_are_without_dropout_and_leave_the_prior_as_it_was():
    config, data, _ = priors(dropout=0.5)
    prior = build_prior(config, data)
    torch.nn.init.normal_(prior.head.weight)
    codes = torch.randint(0, 3, (20, 2), generator=torch.Generator().manual_seed(0))
    log_probs = prior.eval()(codes).log_softmax(-1)
    wanted = -log_probs.gather(-1, codes[..., None]).sum((1, 2)).mean()
    assert evaluate(prior.train(), codes, None) == pytest.approx(wanted.item(), rel=1e-5) and prior.training


def test_a_diffusion_priors_held_out_loss_has_the_same_noise_at_every_call():
    torch.manual_seed(0)
    prior, latents = LatentDiffusionPrior(num_latents=1, codebook_size=2, width=8, depth=1), torch.randn(30, 1, 2)
    first = evaluate(prior, latents, None)
    drawn = torch.rand(3)
    assert evaluate(prior, latents, None) == first and not torch.equal(torch.rand(3), drawn)


def test_training_ends_after_as_many_looks_without_a_better_one(tmp_path):
    """At a rate of next to nothing the first look is the best one: of patience 2, the third look is the last."""
    config, data, parts = priors(num_steps=9, eval_every_steps=1, patience=2, lr=1e-30, dropout=0.0)
    run = opened(tmp_path, config)
    with run.stage("prior"):
        train_prior(run, config, parts, build_prior(config, data), data.train, data.valid, make_accelerator(config))
    run.close("done")
    assert len(logged(tmp_path, "prior", "held_out_nats")) == 3


def test_the_marginal_counts_the_codes_of_the_training_items(tmp_path):
    config, data, parts = priors()
    fitted = MarginalPrior(2, 3)
    few = tiny.images(num=6).valid
    train_prior(opened(tmp_path, config), config, parts, fitted, data.train, few, make_accelerator(config))
    shares = fitted.log_probs.exp()[0] * (32 + 1)  # one pseudo count is spread over the codes
    torch.testing.assert_close((shares - 1 / 3).round(), shares - 1 / 3, atol=1e-3, rtol=0)
