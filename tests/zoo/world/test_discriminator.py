"""The tokenizer's discriminator: the release's size, one logit per patch, bounded slope."""

import pytest
import torch

from toolkit.zoo.world.discriminator import PatchDiscriminator


def test_it_has_the_releases_size_and_patches():
    network = PatchDiscriminator()
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_551_489
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 1, 4, 4)


def test_its_convolutions_have_spectral_norm_one():
    torch.manual_seed(0)
    network = PatchDiscriminator(hidden_channels=32, depth=3)
    for _ in range(20):
        network(torch.rand(2, 3, 32, 32))
    for layer in network.trunk:
        if isinstance(layer, torch.nn.Conv2d):
            assert abs(float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) - 1) < 0.1


def test_a_width_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="must be a multiple of 8"):
        PatchDiscriminator(hidden_channels=12, depth=4)
