"""Stage 1's loop against one written out, and where stage 2 looks, stops and counts."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from tests.disco import tiny
from tests.disco.test_steps_by_hand import logged, opened
from toolkit.data.sets import MemorySplit
from toolkit.data.stream import batches
from toolkit.disco import job, stage2
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


def test_a_better_look_begins_the_waiting_anew(tmp_path, monkeypatch):
    config, data, parts = priors(num_steps=9, eval_every_steps=1, patience=2)
    nats = iter([3.0, 4.0, 2.0, 5.0, 1.0, 6.0, 7.0])
    monkeypatch.setattr(stage2, "evaluate", lambda *_: next(nats))
    run = opened(tmp_path, config)
    with run.stage("prior"):
        train_prior(run, config, parts, build_prior(config, data), data.train, data.valid, make_accelerator(config))
    run.close("done")
    assert len(logged(tmp_path, "prior", "held_out_nats")) == 7


def test_a_prior_learns_mirrored_training_items_and_is_held_against_plain_validation_items(monkeypatch):
    made = []

    class Noted:
        def __init__(self, parts, split, temperature, flip=False):
            self.split = split
            made.append((split, temperature, flip))

        def draw(self, rng):
            return f"codes of {self.split}"

    monkeypatch.setattr(stage2, "Latents", Noted)
    noting = lambda run, config, prior, latents, held_out, accelerator: made.append((latents.split, held_out))  # noqa: E731
    monkeypatch.setattr(stage2, "_maximise_likelihood", noting)
    config, parts = tiny.config(), SimpleNamespace(denoiser=SimpleNamespace(device="cpu"))
    config.data.flip, config.latents.extraction_temperature = True, 0.3
    train_prior(None, config, parts, torch.nn.Identity(), "train", "valid", None)
    assert made == [("train", 0.3, True), ("valid", 0.3, False), ("train", "codes of valid")]


def test_batches_begin_where_the_run_goes_on_and_hold_labels_for_those_that_may_read_them(monkeypatch):
    asked, labels = [], torch.tensor([1, 2])

    def stream(split, batch_size, seed, **more):
        asked.append((split, batch_size, seed, more))
        return iter([(torch.zeros(2), labels)] * 3)

    monkeypatch.setattr(job.data, "batches", stream)
    given = {}
    for kind in ("discrete", "labels"):
        for num_classes in (0, 4):
            config = tiny.config(kind=kind, seed=3, num_workers=2)
            config.optim.batch_size, config.data.flip = 6, True
            dataset = SimpleNamespace(train="train", num_classes=num_classes)
            read = job.device_batches(dataset, config, SimpleNamespace(device=torch.device("cpu")))
            given[kind, num_classes] = [one is not None for one in read(5)[1:]]
            read(6)
    assert given == {  # of the network, and of the encoder
        ("discrete", 0): [False, False], ("discrete", 4): [True, False],
        ("labels", 0): [False, True], ("labels", 4): [True, True],
    }  # fmt: skip
    more = {"start_step": 5, "rank": 0, "world_size": 1, "num_workers": 2, "flip": True}
    assert asked == [("train", 6, 3, more)] * 4


def test_labels_as_latents_are_read_and_are_no_condition_and_the_frechet_distance_is_the_objective(monkeypatch):
    read = []
    data = tiny.images(num_classes=4)
    monkeypatch.setattr(job.data, "load", lambda chosen, seed: read.append((chosen.class_labels, seed)) or data)
    plain, labels = tiny.config(seed=3), tiny.config(kind="labels", seed=3)
    plain.data.class_labels = labels.data.class_labels = False
    assert job.load_data(plain) is data and job.load_data(labels).num_classes == 0
    assert read == [(False, 3), (True, 3)]
    found = {"quality.energy.ours.nfe_9": 1.0, "quality.frechet.ours.nfe_9": 2.0, "quality.frechet.ours.nfe_5": 3.0}
    assert job._objective(found, 9) == 2.0 and job._objective(found, 7) is None


@pytest.mark.parametrize("num_classes", [0, 4])
def test_codes_of_a_split_are_of_its_items_with_their_labels_at_the_extraction_temperature(monkeypatch, num_classes):
    labels, told = torch.tensor([2, 0, 3, 1, 1]), []
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 2, 3).contiguous()
    split = MemorySplit(images, labels.numpy(), conditional=True)  # known labels go to the encoder in any case

    def logits(encoder, y, known):
        items = ((y[:, 0, 0, 0] + 1) * 127.5).round().long()
        told.extend(zip(items.tolist(), known.tolist(), strict=True))
        return torch.nn.functional.one_hot(items, 5)[:, None].float()

    monkeypatch.setattr(stage2, "ENCODE_BATCH", 2)
    monkeypatch.setattr(stage2, "code_logits", logits)
    monkeypatch.setattr(
        stage2, "draw_encoded", lambda parts, encoded, temperature, rng: encoded.argmax(-1) * temperature
    )
    denoiser = SimpleNamespace(device=torch.device("cpu"), latent_kind="discrete", num_classes=num_classes)
    made = stage2.Latents(SimpleNamespace(denoiser=denoiser, encoder=object()), split, 0.25)
    for _ in range(2):
        codes, given = made.draw(torch.Generator())
        assert codes.flatten().tolist() == [0, 0.25, 0.5, 0.75, 1]
        assert given is None if not num_classes else torch.equal(given, labels)
    assert told == list(enumerate(labels.tolist()))  # encoded once


def test_a_prior_sees_every_item_once_an_epoch_each_with_its_own_class(tmp_path, monkeypatch):
    config, data, _ = priors(num_steps=4, eval_every_steps=9)
    codes = torch.arange(32)[:, None] % 3
    stub = SimpleNamespace(split=range(32), draw=lambda rng: (codes.expand(-1, 2), torch.arange(32)))
    batches_seen = []

    def accumulate(loss_of, batch, micro_batch_size, accelerator):
        batches_seen.append(batch)
        return {"loss": torch.tensor(1.0)}

    monkeypatch.setattr(stage2, "accumulate", accumulate)
    monkeypatch.setattr(stage2, "update", lambda *_: None)
    monkeypatch.setattr(stage2, "evaluate", lambda *_: 1.0)
    run, prior = opened(tmp_path, config), build_prior(config, data)
    with run.stage("prior"):
        stage2._maximise_likelihood(run, config, prior, stub, (codes, None), make_accelerator(config))
    run.close("done")
    seen = [labels.tolist() for _, labels, _ in batches_seen]
    for first, second in (seen[:2], seen[2:]):  # two batches of sixteen are an epoch
        assert sorted(first + second) == list(range(32)) and first != sorted(first)
    assert all(torch.equal(found[:, 0], labels % 3) for found, labels, _ in batches_seen) and seen[:2] != seen[2:]


def test_the_marginal_counts_the_codes_of_the_training_items(tmp_path):
    config, data, parts = priors()
    fitted = MarginalPrior(2, 3)
    few = tiny.images(num=6).valid
    train_prior(opened(tmp_path, config), config, parts, fitted, data.train, few, make_accelerator(config))
    shares = fitted.log_probs.exp()[0] * (32 + 1)  # one pseudo count is spread over the codes
    torch.testing.assert_close((shares - 1 / 3).round(), shares - 1 / 3, atol=1e-3, rtol=0)
