"""The pieces of EDM's loss against its formulas, draw by draw."""

import torch

from toolkit.zoo.edm.loss import add_noise, drop_labels, edm_weight, weighted_error


def test_sigma_is_drawn_before_the_noise():
    y = torch.linspace(-1, 1, 24).view(4, 3, 2)
    torch.manual_seed(7)
    log_sigma, noise = 1.2 * torch.randn(4) - 0.4, torch.randn(4, 3, 2)
    torch.manual_seed(7)
    x, sigma = add_noise(y, -0.4, 1.2)
    assert torch.allclose(sigma.log(), log_sigma)
    for item in range(4):
        assert torch.allclose(x[item], y[item] + sigma[item] * noise[item])


def test_a_network_that_always_says_zero_has_a_weighted_loss_of_one():
    torch.manual_seed(0)
    y = 0.5 * torch.randn(200_000, 1)
    sigma = torch.full((len(y),), 0.3)
    c_skip, c_out = 0.5**2 / (0.3**2 + 0.5**2), 0.3 * 0.5 / (0.3**2 + 0.5**2) ** 0.5
    skipped = c_skip * (y + 0.3 * torch.randn_like(y))  # F = 0 in D = c_skip x + c_out F (eq. 7)
    assert abs(weighted_error(skipped, y, edm_weight(sigma, 0.5)) - 1) < 0.01
    assert torch.allclose(edm_weight(sigma[:1], 0.5), torch.tensor([1 / c_out**2]))


def test_each_sample_counts_by_its_own_weight():
    y, denoised = torch.zeros(2, 3), torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, 1.0]])
    assert weighted_error(denoised, y, torch.tensor([3.0, 6.0])).item() == (3 * 1 + 6 * 5 / 3) / 2


def test_a_dropped_label_is_all_zeros():
    labels = torch.arange(4000) % 5
    torch.manual_seed(0)
    rows = drop_labels(labels, 5, 0.25)
    kept = rows.sum(1) == 1
    assert (rows[kept].argmax(1) == labels[kept]).all() and (rows[~kept] == 0).all()
    assert 0.72 < kept.double().mean() < 0.78
    assert drop_labels(labels, 5, 0.0).sum() == 4000 and drop_labels(labels, 5, 1.0).sum() == 0
