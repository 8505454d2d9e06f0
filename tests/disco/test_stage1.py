"""Stage 1: who gets gradients, what the weighting is, what the remedies do."""

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from tests.disco import tiny
from toolkit.disco.build import build_denoiser, build_encoder
from toolkit.disco.config import Loss
from toolkit.disco.stage1 import (
    EDM_P_MEAN,
    JointModel,
    _whole_use,
    collapse_warning,
    latent_summary,
    loss_weight,
)


def joint(kind="discrete", **changes):
    torch.manual_seed(0)
    config, data = tiny.config(kind=kind, **changes), tiny.images()
    model = JointModel(build_denoiser(config, data, kind != "none"), build_encoder(config, data), config)
    with torch.no_grad():  # latents start without effect (zero-initialised): give them one
        for name, parameter in model.denoiser.named_parameters():
            if "latent" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model, data


def encoder_gradient(model, y):
    model.zero_grad()
    model(y, None)[0].backward()
    return sum(p.grad.abs().sum().item() for p in model.encoder.parameters() if p.grad is not None)


def test_the_encoder_learns_through_the_denoiser_and_not_through_dropped_latents():
    model, data = joint()
    y, _ = data.train.all()
    model.latents.drop = 0.0
    assert encoder_gradient(model, y) > 0
    model.latents.drop = 0.999999  # every sample dropped
    assert encoder_gradient(model, y) == 0


@pytest.mark.parametrize("kind", ["none", "labels", "kmeans", "random", "continuous", "discrete"])
def test_every_kind_of_latents_trains(kind):
    model, data = joint(kind)
    y, _ = data.train.all()
    known = torch.from_numpy(data.train.labels)
    loss, logs = model(y, None, known if kind == "labels" else None)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logs["loss"])
    trains = model.encoder is not None and any(p.grad is not None for p in model.encoder.parameters())
    assert trains == (kind in ("continuous", "discrete"))


def test_class_labels_are_dropped_by_whole_rows():
    model, _ = joint()
    model.loss_config.label_drop = 0.5
    model.denoiser.register_to_config(num_classes=4)
    torch.manual_seed(0)
    one_hot = model._drop_labels(torch.zeros(1000, dtype=torch.int64))
    rows = one_hot.sum(1)
    assert set(rows.tolist()) == {0.0, 1.0} and 0.45 < rows.mean() < 0.55


def test_edm_weight_is_the_papers():
    sigma = torch.tensor([0.1, 0.5, 2.0])
    expected = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    assert torch.allclose(loss_weight(sigma, 0.5, Loss()), expected)


def test_monotonic_weight_never_falls_as_noise_grows_and_is_edms_below_its_peak():
    config = Loss(weighting="edm_monotonic")
    sigma = torch.logspace(-2, 1.5, 200, dtype=torch.float64)

    def per_log_snr(weight):
        density = (-0.5 * ((sigma.log() - config.p_mean) / config.p_std).square()).exp()
        return weight * density * sigma.square()

    ours = per_log_snr(loss_weight(sigma, 0.5, config))
    assert (ours.diff() > -1e-9 * ours.max()).all()
    edm = per_log_snr(loss_weight(sigma, 0.5, Loss()))
    low = sigma.log() < EDM_P_MEAN
    ratio = ours[low] / edm[low]
    assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-6)


def test_shift_moves_the_monotonic_weight_along_log_sigma():
    sigma = torch.logspace(-2, 0.5, 50, dtype=torch.float64)
    wide = {"weighting": "edm_monotonic", "p_std": 3.0}

    def per_log_snr(sigma, shift):
        config = Loss(**wide, log_snr_shift=shift)
        density = (-0.5 * ((sigma.log() - config.p_mean) / config.p_std).square()).exp()
        return loss_weight(sigma, 0.5, config) * density * sigma.square()

    doubled = per_log_snr(2 * sigma, 2 * math.log(64 / 128))  # at twice the resolution, twice the noise
    assert torch.allclose(doubled, per_log_snr(sigma, 0.0), rtol=1e-6)


def test_a_dead_code_gets_half_of_the_most_used_one():
    model, data = joint()
    model.eval()
    y, _ = data.train.all()
    head = model.encoder.head
    with torch.no_grad():
        head.weight[0, :, 2] = 0
        head.bias[0] = torch.tensor([5.0, 3.0, -50.0])
        model.mean_usage.copy_(model.encoder(y).softmax(-1).mean(0))
        before = model.mean_usage[0, 0].item()
        assert model.restart_dead_codes() == 1
        usage = model.encoder(y).softmax(-1).mean(0)[0]
    table = model.denoiser.latent_embedding[0].maps.weight
    assert torch.equal(table[0, 2], table[0, 0])
    assert model.mean_usage[0, [0, 2]].tolist() == pytest.approx([before / 2, before / 2])
    assert usage[2] == pytest.approx(before / 2, rel=0.1) and usage[0] == pytest.approx(before / 2, rel=0.1)


def test_codes_of_an_untrained_encoder_are_of_the_random_numbers_that_are_given():
    model, data = joint("random")
    y, _ = data.train.all(6)
    drawn = torch.rand(6, 2, 3, generator=torch.Generator().manual_seed(1))
    codes = [model._draw_latents(y, None, drawn.clone())[0] for _ in range(5)]
    assert all(torch.equal(one, codes[0]) for one in codes) and not codes[0].requires_grad
    assert not torch.equal(model._draw_latents(y, None, drawn.flip(0))[0], codes[0])


def test_the_use_of_codes_is_the_mean_over_all_parts_and_all_processes():
    model, data = joint()
    y, _ = data.train.all(6)
    accelerator = SimpleNamespace(autocast=contextlib.nullcontext, reduce=lambda use, how: (use, how))
    found, how = _whole_use(model, y, 4, accelerator)  # parts of four and of two
    torch.testing.assert_close(found, model.encoder(y).softmax(-1).mean(0).detach())
    assert how == "mean"


def test_collapse_is_told_from_information_not_from_perplexity():
    flat = torch.zeros(64, 2, 4)  # perplexity 4 of 4, and no information
    assert "collapse" in collapse_warning(latent_summary(flat), 2)
    telling = 10 * F.one_hot(torch.arange(128) % 4, 4).float().view(64, 2, 4)
    assert collapse_warning(latent_summary(telling), 2) is None
    one_of_two = torch.stack([flat[:, 0], 10 * F.one_hot(torch.zeros(64, dtype=torch.int64), 4)], 1)
    assert latent_summary(one_of_two)["perplexity"] == pytest.approx(1, abs=0.01)  # of the slot that is used least
