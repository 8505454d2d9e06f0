"""Both stages' loops against loops written out: what is saved is what was averaged, codes are redrawn every epoch."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from tests.disco import tiny
from toolkit.disco import job
from toolkit.disco.artefact import Parts
from toolkit.disco.build import build_denoiser, build_encoder, build_prior
from toolkit.disco.stage1 import JointModel
from toolkit.disco.stage2 import train_prior
from toolkit.runs.device import make_accelerator
from toolkit.runs.record import Run
from toolkit.runs.seeds import generator, seed_all


def opened(folder, config):
    run = Run(folder, config)
    run.open([])
    return run


def logged(folder, stage, key):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if row["stage"] == stage and key in row]


def test_the_saved_denoiser_is_the_average_of_its_weights(tmp_path, monkeypatch):
    """Half-life of 8 images, 4 a step, never under the ramp: each step keeps 0.5^(4/8) of the average."""
    config, data = tiny.config(num_workers=0, log_every_steps=1), tiny.images()
    config.optim.num_steps, config.optim.batch_size, config.optim.lr = 4, 4, 3e-3
    config.optim.ema_half_life_images, config.optim.ema_ramp_up = 8, None
    weights, step = [], job.train_step

    def watched(number, trained, joint, *rest):
        step(number, trained, joint, *rest)
        weights.append({name: one.detach().clone() for name, one in joint.denoiser.named_parameters()})

    monkeypatch.setattr(job, "train_step", watched)
    run = opened(tmp_path / "run", config)
    with run.stage("denoiser"):
        job._train_denoiser(run, config, data, make_accelerator(config), "denoiser")
    run.close("done")
    seed_all(config.seed, "denoiser", "init")
    average = {name: one.detach().clone() for name, one in build_denoiser(config, data, True).named_parameters()}
    for now in weights:
        average = {name: 0.5**0.5 * average[name] + (1 - 0.5**0.5) * now[name] for name in average}
    (path,) = (tmp_path / "run" / "model" / "denoiser").glob("*.safetensors")
    saved = load_file(path)
    for name, one in average.items():
        torch.testing.assert_close(saved[name], one, rtol=1e-4, atol=1e-6)
    assert any((saved[name] - weights[-1][name]).abs().max() > 1e-3 for name in average)


def test_without_a_limit_the_gradient_stays_as_it_is(tmp_path):
    """AdamW forgets the gradient's size but for its epsilon, so that of a tiny limit shows."""

    def trained(grad_clip):
        config, data = tiny.config(tiny.mlp(), num_workers=0), tiny.images()
        config.optim.num_steps, config.optim.batch_size, config.optim.grad_clip = 2, 8, grad_clip
        run = opened(tmp_path / str(grad_clip), config)
        with run.stage("denoiser"):
            job._train_denoiser(run, config, data, make_accelerator(config), "denoiser")
        run.close("done")
        return load_file(next((run.dir / "model" / "denoiser").glob("*.safetensors")))

    free, wide, narrow = (trained(limit) for limit in (None, 1e9, 1e-9))
    assert all(torch.equal(free[name], wide[name]) for name in free)
    assert any((free[name] - narrow[name]).abs().max() > 1e-5 for name in free)


def test_the_encoder_has_its_own_learning_rate():
    config, data = tiny.config(), tiny.images()
    config.optim.lr, config.optim.encoder_lr, config.optim.weight_decay = 2e-3, 5e-4, 0.03
    model = JointModel(build_denoiser(config, data, True), build_encoder(config, data), config)
    denoiser, encoder = job.make_optimizer(model, config).param_groups
    assert denoiser["base_lr"] == 2e-3 and encoder["base_lr"] == 5e-4
    assert {id(one) for one in encoder["params"]} == {id(one) for one in model.encoder.parameters()}
    assert denoiser["weight_decay"] == encoder["weight_decay"] == 0.03


def test_the_priors_losses_are_those_of_the_loop_written_out(tmp_path):
    """Two epochs of two batches: codes drawn anew in each, AdamW on a cosine, the best held-out weights kept."""
    config, data = tiny.config(num_workers=0, log_every_steps=1), tiny.images(num=32)
    keys = {"num_steps": 4, "batch_size": 16, "lr": 1.0, "dropout": 0.0, "grad_clip": 0.5, "weight_decay": 0.1}
    config = dataclasses.replace(config, prior=dataclasses.replace(config.prior, eval_every_steps=1, **keys))
    torch.manual_seed(0)
    parts = Parts(build_denoiser(config, data, True), build_encoder(config, data))
    prior, again = build_prior(config, data), build_prior(config, data)
    again.load_state_dict(prior.state_dict())
    run = opened(tmp_path / "run", config)
    with run.stage("prior"):
        train_prior(run, config, parts, prior, data.train, data.valid, make_accelerator(config))
    run.close("done")

    def codes_of(rng):
        with torch.no_grad():
            logits = parts.encoder(data.train.all()[0]).float()
        return (
            logits - torch.log(-torch.log(torch.rand(logits.shape, generator=rng).clamp(1e-30, 1 - 2**-24)))
        ).argmax(-1)

    def nats(codes):
        log_probs = again(codes).log_softmax(-1)
        return -sum(log_probs[:, slot].gather(1, codes[:, slot, None])[:, 0] for slot in range(codes.shape[1])).mean()

    optimizer = torch.optim.AdamW(again.parameters(), lr=1.0, weight_decay=0.1)
    held_out, seen, found, best = codes_of(generator(0, "prior", "valid")), [], [], []
    for epoch in range(2):
        rng = generator(0, "prior", epoch)
        codes = codes_of(rng)
        seen.append(codes)
        order = torch.randperm(32, generator=rng)
        for part in order.split(16):
            rate = (1 + torch.cos(torch.tensor(torch.pi * len(found) / 4))) / 2
            optimizer.param_groups[0]["lr"] = float(rate)
            loss = nats(codes[part])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(again.parameters(), 0.5)
            optimizer.step()
            found.append(loss.item())
            with torch.no_grad():
                best.append((nats(held_out).item(), {k: v.clone() for k, v in again.state_dict().items()}))
    assert not torch.equal(*seen)
    assert logged(tmp_path / "run", "prior", "loss") == pytest.approx(found, rel=1e-4)
    assert logged(tmp_path / "run", "prior", "held_out_nats") == pytest.approx([one for one, _ in best], rel=1e-4)
    assert best[-1][0] > min(nats for nats, _ in best)
    kept = min(best, key=lambda one: one[0])[1]
    for name, one in prior.state_dict().items():
        torch.testing.assert_close(one, kept[name], rtol=1e-2, atol=3e-4)
