"""Priors: sampling agrees with likelihood, caching changes nothing, prefixes stay, saved copies are the same."""

import math

import pytest
import torch

from toolkit.zoo.disco.prior import AutoregressivePrior, LatentDiffusionPrior, MarginalPrior, UniformPrior


def tiny(num_latents=3, codebook_size=2, num_classes=0, dropout=0.0):
    torch.manual_seed(0)
    prior = AutoregressivePrior(
        num_latents=num_latents,
        codebook_size=codebook_size,
        width=16,
        depth=2,
        num_heads=2,
        num_classes=num_classes,
        dropout=dropout,
    )
    torch.nn.init.normal_(prior.head.weight, std=0.5)
    return prior.eval()


def every_code(num_latents, codebook_size):
    return torch.cartesian_prod(*[torch.arange(codebook_size)] * num_latents).view(-1, num_latents)


def test_probabilities_sum_to_one():
    prior = tiny(num_classes=2)
    for label in (0, 1):
        codes = every_code(3, 2)
        nll = prior.nll(codes, torch.full((len(codes),), label))
        assert nll.neg().exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_an_untrained_prior_is_uniform():
    prior = AutoregressivePrior(num_latents=4, codebook_size=7, width=16, depth=1, num_heads=2)
    codes = torch.randint(7, (5, 4))
    torch.testing.assert_close(prior.nll(codes), torch.full((5,), 4 * math.log(7)))


def test_logits_of_a_slot_depend_on_earlier_slots_only():
    prior, codes = tiny(num_latents=4, codebook_size=5), torch.zeros(1, 4, dtype=torch.int64)
    before = prior(codes)
    for slot in range(4):
        changed = codes.clone()
        changed[0, slot] = 3
        after = prior(changed)
        torch.testing.assert_close(after[:, : slot + 1], before[:, : slot + 1])
        assert slot == 3 or not torch.allclose(after[:, slot + 1 :], before[:, slot + 1 :])


@pytest.mark.parametrize("prefix_length", [0, 1, 3])
def test_cached_logits_are_the_teacher_forced_ones(prefix_length):
    prior, labels = tiny(num_latents=5, codebook_size=4, num_classes=3), torch.tensor([0, 2])
    codes = torch.randint(4, (2, 5))
    with torch.no_grad():
        whole, step = prior(codes, labels), prior._slot_logits(codes, labels)
        for slot in range(prefix_length, 5):
            torch.testing.assert_close(step(slot), whole[:, slot], atol=1e-5, rtol=1e-5)


def test_samples_follow_the_likelihood():
    prior, codes = tiny(), every_code(3, 2)
    expected = prior.nll(codes).neg().exp()
    samples = prior.sample(40_000, generator=torch.Generator().manual_seed(0))
    frequencies = torch.bincount(samples @ torch.tensor([4, 2, 1]), minlength=8) / len(samples)
    torch.testing.assert_close(frequencies, expected.detach(), atol=0.01, rtol=0)


def test_classes_and_codes_are_learned_and_drawn():
    """Two classes with one tuple each: after training every sample of a class is its tuple."""
    prior, tuples = tiny(num_latents=3, codebook_size=4, num_classes=2).train(), torch.tensor([[0, 3, 1], [2, 2, 0]])
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-2)
    labels = torch.arange(2).repeat(8)
    for _ in range(60):
        loss = prior.nll(tuples[labels], labels).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    samples = prior.eval().sample(200, torch.arange(2).repeat(100), generator=torch.Generator().manual_seed(0))
    assert loss.item() < 0.1
    assert (samples == tuples.repeat(100, 1)).all(dim=1).float().mean().item() > 0.95


def test_temperature_sharpens_and_zero_takes_the_most_likely():
    prior, generator = tiny(num_latents=2, codebook_size=6), torch.Generator().manual_seed(0)
    greedy = prior.sample(4, temperature=0.0)
    assert (greedy == greedy[0]).all()
    assert greedy[0, 0] == prior(greedy)[0, 0].argmax()
    mean = {t: prior.nll(prior.sample(2000, temperature=t, generator=generator)).mean().item() for t in (0.3, 1, 3)}
    assert mean[0.3] < mean[1] < mean[3]


@pytest.mark.parametrize("kind", [AutoregressivePrior, MarginalPrior, UniformPrior])
def test_a_prefix_stays_and_the_generator_repeats(kind):
    prior = tiny(4, 5) if kind is AutoregressivePrior else kind(num_latents=4, codebook_size=5)
    prefix = torch.randint(5, (6, 2))
    first, again = (prior.sample(6, prefix=prefix, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first[:, :2], prefix) and torch.equal(first, again)
    assert first.dtype == torch.int64 and first.shape == (6, 4) and first.min() >= 0 and first.max() < 5
    assert torch.equal(prior.sample(6, prefix=first), first)


def test_marginals_are_the_counts_per_class():
    codes, labels = torch.tensor([[0, 2], [0, 1], [1, 1], [2, 2]]), torch.tensor([0, 0, 0, 1])
    prior = MarginalPrior(num_latents=2, codebook_size=3, num_classes=2).fit(codes, labels, pseudo_count=3.0)
    first = prior(codes[:1], torch.tensor([0]))[0].exp()
    torch.testing.assert_close(first, torch.tensor([[3, 2, 1], [1, 3, 2]]) / 6)
    samples = prior.sample(20_000, torch.zeros(20_000, dtype=torch.int64), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close((samples[:, 0] == 0).float().mean(), torch.tensor(0.5), atol=0.015, rtol=0)


def test_uniform_takes_any_class_and_costs_m_ln_k():
    prior = UniformPrior(num_latents=2, codebook_size=8, num_classes=3)
    samples = prior.sample(4000, torch.zeros(4000, dtype=torch.int64), generator=torch.Generator().manual_seed(0))
    assert torch.bincount(samples[:, 1], minlength=8).min() > 400
    torch.testing.assert_close(
        prior.nll(samples, torch.zeros(4000, dtype=torch.int64)), torch.full((4000,), 2 * math.log(8))
    )


def test_diffusion_prior_learns_a_gaussian_and_keeps_its_shape():
    torch.manual_seed(0)
    prior = LatentDiffusionPrior(num_latents=2, codebook_size=1, width=32, depth=2)
    optimizer, generator = torch.optim.Adam(prior.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    for _ in range(400):
        z = torch.randn(256, 2, 1, generator=generator)
        z[:, 1] = 0.9 * z[:, 0] + (1 - 0.9**2) ** 0.5 * z[:, 1]
        loss = prior.loss(z, noise=prior.draw(len(z), generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    samples = prior.eval().sample(2000, generator=generator)
    assert samples.shape == (2000, 2, 1) and samples.dtype == torch.float32
    covariance = torch.cov(samples[..., 0].T)
    torch.testing.assert_close(covariance, torch.tensor([[1, 0.9], [0.9, 1]]), atol=0.15, rtol=0)


@pytest.mark.parametrize(
    "prior",
    [
        tiny(num_classes=2, dropout=0.1),
        MarginalPrior(num_latents=3, codebook_size=2, num_classes=2).fit(torch.tensor([[0, 1, 1]]), torch.tensor([1])),
        UniformPrior(num_latents=3, codebook_size=2, num_classes=2),
    ],
    ids=["autoregressive", "marginal", "uniform"],
)
def test_saved_priors_come_back_the_same(prior, tmp_path):
    prior.save_pretrained(tmp_path)
    loaded = type(prior).from_pretrained(tmp_path)
    codes, labels = every_code(3, 2), torch.arange(8) % 2
    assert torch.equal(loaded.nll(codes, labels), prior.nll(codes, labels))
    assert not loaded.training and (tmp_path / "config.json").exists()


def test_saved_diffusion_prior_comes_back_the_same(tmp_path):
    prior = LatentDiffusionPrior(num_latents=2, codebook_size=3, width=16, depth=1, num_classes=4).eval()
    prior.save_pretrained(tmp_path)
    loaded = LatentDiffusionPrior.from_pretrained(tmp_path)
    samples = [p.sample(2, torch.tensor([0, 3]), generator=torch.Generator().manual_seed(0)) for p in (prior, loaded)]
    assert torch.equal(*samples)


def test_paper_size_on_the_meta_device():
    with torch.device("meta"):
        prior = AutoregressivePrior(num_classes=1000)
        logits = prior(torch.zeros(2, 10, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    assert logits.shape == (2, 10, 100)
    blocks = sum(p.numel() for p in prior.body.blocks.parameters())
    assert blocks == 12 * (12 * 512**2 + 13 * 512)  # the weights and biases of twelve standard blocks


def test_bad_requests_are_refused():
    prior = tiny(num_latents=3, codebook_size=2, num_classes=2)
    labels = torch.tensor([0, 1])
    for options, word in [
        ({}, "class_labels missing"),
        ({"class_labels": labels[:1]}, "class_labels"),
        ({"class_labels": labels, "temperature": -1.0}, "temperature"),
        ({"class_labels": labels, "prefix": torch.full((2, 1), 2)}, "prefix"),
        ({"class_labels": labels, "prefix": torch.zeros(2, 4, dtype=torch.int64)}, "prefix"),
        ({"class_labels": labels, "prefix": torch.zeros(1, 2, dtype=torch.int64)}, "prefix"),
    ]:
        with pytest.raises(ValueError, match=word):
            prior.sample(2, **options)
    with pytest.raises(ValueError, match="class_labels given"):
        tiny().nll(torch.zeros(2, 3, dtype=torch.int64), labels)
    with pytest.raises(ValueError, match="prefix"):
        LatentDiffusionPrior().sample(1, prefix=torch.zeros(1, 1, dtype=torch.int64))
