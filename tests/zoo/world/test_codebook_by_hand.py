"""Measures and draws of codebooks with plain numbers."""

import math

import pytest
import torch

from toolkit.zoo.world.codebook import _draw, perplexity


def test_perplexity_is_the_exponential_of_the_entropy():
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert perplexity(torch.tensor([[0, 0], [1, 2]]), 5) == pytest.approx(math.exp(entropy))


def test_rows_that_are_drawn_again_are_jittered_by_their_own_spread():
    latents = torch.tensor([[0.0, 0.0], [1.0, 100.0], [2.0, 200.0], [3.0, 300.0]])
    rows = _draw(latents, 4000, torch.Generator().manual_seed(0), 0.01)
    nearest = torch.cdist(rows / latents.std(0), latents / latents.std(0)).argmin(1)
    jitter = (rows - latents[nearest]).std(0)
    assert torch.allclose(jitter, 0.01 * latents.std(0), rtol=0.05)
    once = _draw(latents, 4, torch.Generator().manual_seed(0), 0.01)
    assert torch.equal(once[once[:, 0].argsort()], latents)
