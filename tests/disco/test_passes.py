"""A step over several passes is the step of the whole batch, in both stages and for every kind of latents."""

import dataclasses
import json

import pytest
import torch

from tests.disco import tiny
from toolkit.disco import job
from toolkit.disco.artefact import Parts
from toolkit.disco.build import build_denoiser, build_encoder, build_prior
from toolkit.disco.stage1 import JointModel, backward
from toolkit.disco.stage2 import train_prior
from toolkit.runs.device import make_accelerator
from toolkit.runs.record import Run


def curves(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [value for row in rows for key, value in sorted(row.items()) if key not in ("stage", "step")]


def tiny_config(kind):
    config = tiny.config(kind=kind, num_workers=0, log_every_steps=1)
    config.loss.label_drop, config.latents.usage_bonus, config.latents.encoder.init_scale = 0.3, 5.0, 30.0
    return config


@pytest.mark.parametrize("kind", ["discrete", "continuous", "labels", "none", "discrete, bf16"])
def test_gradients_of_passes_of_three_and_a_smaller_last_one_are_those_of_the_whole(kind):
    """With bf16 they are near, and weights and gradients stay in float32."""
    kind, half = kind.split(",")[0], "bf16" in kind
    config, data = tiny_config(kind), tiny.images(num_classes=4)
    torch.manual_seed(0)
    model = JointModel(build_denoiser(config, data, kind != "none"), build_encoder(config, data), config)
    with torch.no_grad():  # latents start without effect
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    y, labels = data.train.all(8)
    drawn, found = model.draw(8), []
    for micro_batch_size, precision in ((None, "fp32"), (3, "bf16" if half else "fp32")):
        model.zero_grad()
        accelerator = make_accelerator(dataclasses.replace(config, precision=precision))
        trained = accelerator.prepare_model(model)
        loss, _ = backward(trained, model, (y, labels, labels), drawn, micro_batch_size, accelerator)
        assert {one.dtype for one in model.parameters()} == {torch.float32}
        gradients = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
        found.append((loss.item(), gradients))
    (loss, whole), (other, parts) = found
    assert parts.dtype == torch.float32 and other == pytest.approx(loss, rel=3e-2 if half else 1e-6)
    assert half * 1e-4 * whole.norm() <= (parts - whole).norm() < (0.2 if half else 1e-4) * whole.norm()


def test_stage_one_in_passes_has_the_same_curves(tmp_path):
    found = []
    for micro_batch_size in (None, 3):
        config, folder = tiny_config("discrete"), tmp_path / str(micro_batch_size)
        optim = config.optim
        optim.num_steps, optim.batch_size, optim.lr, optim.micro_batch_size = 3, 8, 3e-3, micro_batch_size
        run = Run(folder, config)
        run.open([])
        with run.stage("denoiser"):
            job._train_denoiser(run, config, tiny.images(), make_accelerator(config), "denoiser")
        run.close("done")
        found.append(curves(folder))
    assert len(found[0]) > 9 and found[1] == pytest.approx(found[0], rel=2e-4)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_the_prior_in_passes(tmp_path, kind):
    found = []
    for micro_batch_size in (None, 5):
        config, data = tiny.config(kind=kind, num_workers=0, log_every_steps=1), tiny.images()
        keys = {"num_steps": 3, "batch_size": 16, "dropout": 0.0, "micro_batch_size": micro_batch_size}
        config = dataclasses.replace(config, prior=dataclasses.replace(config.prior, **keys))
        torch.manual_seed(0)
        parts = Parts(build_denoiser(config, data, True), build_encoder(config, data))
        prior, folder = build_prior(config, data), tmp_path / str(micro_batch_size)
        run = Run(folder, config)
        run.open([])
        with run.stage("prior"):
            train_prior(run, config, parts, prior, data.train, data.valid, make_accelerator(config))
        run.close("done")
        found.append(curves(folder))
    assert len(found[0]) > 3 and found[1] == pytest.approx(found[0], rel=1e-5)
