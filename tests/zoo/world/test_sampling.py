"""How tokens are drawn: their distribution, their noise, the most likely one."""

from __future__ import annotations

import math

import torch

from toolkit.zoo.world.sampling import GREEDY, Sampling, draw, gumbel, hash64


def test_draws_follow_the_distribution():
    """20,000 seeds: frequencies of a top-3 of five within four standard errors, tempered; nothing outside the top 3."""
    logits, num = torch.tensor([2.0, 1.0, 0.0, 0.5, -1.0]).double(), 20_000
    found = draw(logits.expand(num, 1, 5), 10, Sampling(temperature=2.0, top_k=3), torch.arange(num), 0, 0)
    expected = torch.tensor([2.0, 1.0, 0.5]).div(2).softmax(0)
    counts = torch.bincount(found.tokens.flatten() - 10, minlength=5) / num
    for share, probability in zip(counts[[0, 1, 3]].tolist(), expected.tolist(), strict=True):
        assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / num)
    assert not counts[[2, 4]].any()
    torch.testing.assert_close(found.logprobs[:, 0], logits.log_softmax(0)[found.tokens[:, 0] - 10].float())
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(found.entropies[0, 0], entropy.float())


def test_noise_depends_on_every_part_of_its_key():
    logits = torch.zeros(50, 2, 1000).double()
    base = draw(logits, 0, Sampling(top_k=None), torch.arange(50), 3, 1).tokens
    assert torch.equal(base, draw(logits, 0, Sampling(top_k=None), torch.arange(50), 3, 1).tokens)
    for seeds, frame, place in ((torch.arange(50) + 1000, 3, 1), (torch.arange(50), 4, 1), (torch.arange(50), 3, 3)):
        assert (draw(logits, 0, Sampling(top_k=None), seeds, frame, place).tokens == base).float().mean() < 0.05
    assert torch.equal(draw(logits[:, 1:], 0, Sampling(top_k=None), torch.arange(50), 3, 2).tokens, base[:, 1:])
    noise = gumbel(hash64(torch.arange(100_000)))
    assert abs(noise.mean() - 0.5772) < 0.02 and abs(noise.var() - math.pi**2 / 6) < 0.04 and noise.isfinite().all()
    # splitmix64 of seed 0, first output (Steele et al.; the reference implementation of Vigna)
    assert int(hash64(torch.tensor(0))) & (2**64 - 1) == 0xE220A8397B1DCDAF


def test_greedy_is_the_arg_max_of_all_ids():
    logits = torch.randn(4, 3, 9)
    assert torch.equal(draw(logits, 0, GREEDY, torch.arange(4), 0, 0).tokens, logits.argmax(-1))
