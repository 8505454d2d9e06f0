"""Gumbel-softmax and draws follow softmax(logits); the use of latents is measured as defined."""

import math

import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from toolkit.disco.discretize import (
    gumbel_softmax,
    joint_codes,
    latent_use,
    normalized_mutual_information,
    sample_codes,
    split_gaussian,
    usage_bonus,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("temperature", [0.01, 1.0, 5.0])
def test_hard_samples_are_one_hot_draws_at_every_temperature(temperature):
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]]).expand(50_000, 1, 4)
    samples = gumbel_softmax(logits, temperature, generator=seeded())
    assert ((samples == 0) | (samples == 1)).all() and (samples.sum(-1) == 1).all()
    torch.testing.assert_close(samples.mean(0)[0], logits[0, 0].softmax(-1), atol=0.01, rtol=0)
    codes = sample_codes(logits, temperature, seeded())
    assert torch.equal(codes, samples.argmax(-1))


def test_the_bonus_of_a_whole_batch_has_the_value_and_slope_of_the_batch_in_one():
    logits = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mean = logits.softmax(-1).mean(0)
    wanted = 0.3 * (mean * mean.log()).sum(-1).mean()  # minus the entropy, the mean over slots
    found = usage_bonus(logits, 0.3, mean.detach())
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(usage_bonus(logits, 0.3), wanted)
    slopes = [torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (found, wanted)]
    torch.testing.assert_close(*slopes)


def test_the_log_variance_of_a_gaussian_is_held_between_bounds():
    mean, log_variance = split_gaussian(torch.tensor([[1.0, 2.0, -99.0, 99.0]]))
    assert mean.tolist() == [[1, 2]] and log_variance.tolist() == [[-12, 6]]


def test_soft_samples_lie_on_the_simplex_and_harden_as_temperature_falls():
    logits = torch.randn(200, 2, 5, generator=seeded())
    peaks = []
    for temperature in (5.0, 1.0, 0.01):
        samples = gumbel_softmax(logits, temperature, hard=False, generator=seeded())
        torch.testing.assert_close(samples.sum(-1), torch.ones(200, 2))
        peaks.append(samples.max(-1).values.mean().item())
    assert peaks[0] < peaks[1] < peaks[2] and peaks[2] > 0.95


def test_hard_samples_pass_the_gradient_of_the_soft_ones():
    logits, weights = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    gradients = []
    for hard in (True, False):
        leaf = logits.clone().requires_grad_()
        (gumbel_softmax(leaf, 0.7, hard, seeded()) * weights).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients) and gradients[0].abs().sum() > 0


def test_low_precision_logits_are_raised_to_float32():
    samples = gumbel_softmax(torch.zeros(1000, 1, 3, dtype=torch.bfloat16), generator=seeded())
    assert samples.dtype == torch.float32 and samples.isfinite().all()


def test_temperature_zero_takes_the_most_likely_code():
    logits = torch.randn(10, 2, 4)
    assert torch.equal(sample_codes(logits, 0.0), logits.argmax(-1))
    for bad in (lambda: sample_codes(logits, -1.0), lambda: gumbel_softmax(logits, 0.0)):
        with pytest.raises(ValueError, match="temperature"):
            bad()


def test_use_of_a_perfect_an_ignorant_and_a_collapsed_slot():
    perfect = 50 * torch.eye(4).repeat(25, 1)
    ignorant = torch.zeros(100, 4)
    collapsed = torch.tensor([50.0, 0, 0, 0]).expand(100, 4)
    use = latent_use(torch.stack([perfect, ignorant, collapsed], dim=1))
    expected = {
        "usage_entropy": [math.log(4), math.log(4), 0],
        "conditional_entropy": [0, math.log(4), 0],
        "mutual_information": [math.log(4), 0, 0],
        "perplexity": [4, 4, 1],
        "dead_codes": [0, 0, 3],
    }
    for name, values in expected.items():
        torch.testing.assert_close(use[name].float(), torch.tensor(values).float(), atol=1e-4, rtol=1e-4, msg=name)


def test_usage_bonus_rewards_even_use():
    even, collapsed = 50 * torch.eye(4)[:, None], torch.tensor([[[50.0, 0, 0, 0]]]).expand(4, 1, 4)
    assert usage_bonus(even, 0.1).item() == pytest.approx(-0.1 * math.log(4))
    assert usage_bonus(collapsed, 0.1).item() == pytest.approx(0)
    logits = torch.tensor([[[2.0, 0, 0, 0]]], requires_grad=True)
    usage_bonus(logits, 1.0).backward()
    assert logits.grad[0, 0, 0] > 0 and (logits.grad[0, 0, 1:] < 0).all()  # a step down evens the use out


def test_mutual_information_with_labels_is_the_usual_one():
    a, b = torch.randint(5, (300,), generator=seeded()), torch.randint(3, (300,), generator=seeded(1))
    b[:150] = a[:150] % 3
    ours = normalized_mutual_information(a, b)
    assert ours == pytest.approx(normalized_mutual_info_score(a.numpy(), b.numpy()), abs=1e-9)
    assert normalized_mutual_information(a, (a * 7 + 2) % 5) == pytest.approx(1)
    assert normalized_mutual_information(torch.zeros(4), a[:4]) == pytest.approx(0, abs=1e-12)


def test_joint_codes_count_distinct_tuples():
    ids, distinct = joint_codes(torch.tensor([[0, 1], [1, 0], [0, 1], [1, 1]]))
    assert distinct == 3 and ids[0] == ids[2] and len(set(ids.tolist())) == 3
