"""Stage 1's training loss written out from the paper, and what a step leaves: weights, averages, rates."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.disco import tiny
from toolkit.disco.build import build_denoiser, build_encoder
from toolkit.disco.discretize import latent_use
from toolkit.disco.stage1 import JointModel


def joint(kind, num_classes=0, **keys):
    """A model whose every part has an effect; ``keys`` are of config.latents."""
    torch.manual_seed(0)
    config, data = tiny.config(kind=kind), tiny.images(num_classes=num_classes)
    for name, value in keys.items():
        setattr(config.latents, name, value)
    config.loss.p_mean, config.loss.p_std = -0.7, 0.9
    model = JointModel(build_denoiser(config, data, kind != "none"), build_encoder(config, data), config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    y, labels = data.train.all()
    return model, y[:16], None if labels is None else labels[:16]


def noised(y):
    """The draws of eq. 2 of Karras et al. in their order: one level an item, then the noise."""
    sigma = (0.9 * torch.randn(len(y)) - 0.7).exp()
    return y + sigma[:, None, None, None] * torch.randn(y.shape), sigma


def gumbel(shape):
    return -torch.log(-torch.log(torch.rand(shape).clamp(1e-30, 1 - 2**-24)))


def edm_loss(model, denoised, y, sigma):
    data = model.denoiser.sigma_data
    weight = (sigma**2 + data**2) / (sigma * data) ** 2
    return torch.stack([weight[i] * ((denoised[i] - y[i]) ** 2).mean() for i in range(len(y))]).mean()


def test_the_loss_with_discrete_latents_and_dropped_labels_is_the_papers():
    model, y, labels = joint("discrete", num_classes=4, drop=0.3, usage_bonus=0.2, temperature=0.5)
    model.loss_config.label_drop = 0.2
    torch.manual_seed(3)
    loss, logs = model(y, labels)

    torch.manual_seed(3)
    x, sigma = noised(y)
    logits = model.encoder(y).float()
    codes = (logits + gumbel(logits.shape)).argmax(-1)
    dropped = torch.rand(16) < 0.3
    no_label = torch.rand(16, 1) < 0.2
    assert 0 < dropped.sum() < 8 and 0 < no_label.sum() < 8  # both kinds are there, and not in equal shares
    one_hot = torch.where(no_label, torch.zeros(16, 4), F.one_hot(labels, 4).float())
    latents = torch.where(dropped[:, None], -1, codes)
    wanted = edm_loss(model, model.denoiser(x, sigma, one_hot, latents=latents), y, sigma)
    use = logits.softmax(-1).mean(0)
    bonus = 0.2 * -(use * use.log()).sum(-1).mean()  # the entropy of the use of codes is rewarded
    assert logs["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert loss.item() == pytest.approx((wanted - bonus).item(), rel=1e-5) and bonus > 0.01


def test_the_loss_with_continuous_latents_adds_the_divergence_per_number_of_the_data():
    model, y, _ = joint("continuous", drop=0.25, kl_weight=0.7)
    torch.manual_seed(5)
    loss, logs = model(y, None)

    torch.manual_seed(5)
    x, sigma = noised(y)
    mean, log_variance = model.encoder(y).float().chunk(2, dim=-1)
    z = mean + torch.randn(mean.shape) * (log_variance / 2).exp()
    dropped = torch.rand(16) < 0.25
    assert 0 < dropped.sum() < 8
    wanted = edm_loss(model, model.denoiser(x, sigma, latents=z, drop=dropped), y, sigma)
    divergence = (mean**2 + log_variance.exp() - 1 - log_variance).sum((1, 2)).mean() / 2
    assert logs["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert (loss - logs["loss"]).item() == pytest.approx(0.7 * divergence.item() / 64, rel=1e-4)


def test_the_relaxed_sample_is_softmax_of_noisy_logits_over_the_temperature():
    model, y, _ = joint("discrete", hard=False, temperature=0.4, drop=0.0)
    torch.manual_seed(6)
    loss, _ = model(y, None)
    torch.manual_seed(6)
    x, sigma = noised(y)
    logits = model.encoder(y).float()
    z = ((logits + gumbel(logits.shape)) / 0.4).softmax(-1)
    wanted = edm_loss(model, model.denoiser(x, sigma, latents=z), y, sigma)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_dead_codes_are_told_by_a_running_mean_of_their_use():
    model, y, _ = joint("discrete", restart_dead_codes=True)
    model.train()
    before = model.mean_usage.clone()
    model.note_usage(model(y, None)[1]["logits"])
    use = model.encoder(y).softmax(-1).mean(0)
    torch.testing.assert_close(model.mean_usage, 0.95 * before + 0.05 * use, rtol=1e-4, atol=1e-5)
    assert math.isclose(float(before[0, 0]), 1 / 3, rel_tol=1e-6)


def test_a_dead_code_is_given_what_the_most_used_one_had():
    model, _, _ = joint("discrete")
    tables = model.denoiser.latent_embedding[0].maps.weight
    used, other = tables[1, 2].detach().clone(), tables[0].detach().clone()
    with torch.no_grad():
        model.mean_usage.copy_(torch.tensor([[0.3, 0.3, 0.4], [0.0, 0.1, 0.9]]))
    bias = model.encoder.head.bias.detach().clone().view(2, 3)
    assert model.restart_dead_codes() == 1
    assert torch.equal(tables[1, 0], used) and torch.equal(tables[1, 2], used) and torch.equal(tables[0], other)
    halved = bias[1, 2] - math.log(2)
    wanted = [float(halved), float(bias[1, 1]), float(halved)]
    assert model.encoder.head.bias.view(2, 3)[1].tolist() == pytest.approx(wanted)


def test_codes_are_dead_below_a_hundredth_of_even_use():
    shares = torch.tensor([0.994, 0.004, 0.0015, 0.0005])  # a hundredth of a quarter is 0.0025
    assert latent_use(shares.log().expand(7, 1, 4))["dead_codes"].tolist() == [2]
