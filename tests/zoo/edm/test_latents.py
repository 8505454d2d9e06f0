"""LatentEmbedding: lookup, null tokens, gradients through dropped samples, mixing, bad input."""

import pytest
import torch
from torch.nn import functional as F

from toolkit.zoo.edm.latents import LatentEmbedding, SlotLinear


@pytest.fixture(params=[0, 2], ids=["direct", "mixed"])
def embedding(request):
    torch.manual_seed(0)
    return LatentEmbedding(num_latents=3, codebook_size=5, width=8, num_layers=request.param, num_heads=2)


def test_codes_and_one_hots_give_the_same_tokens(embedding):
    codes = torch.randint(5, (7, 3))
    from_codes = embedding(codes, 7)
    from_one_hot = embedding(F.one_hot(codes, 5).float(), 7)
    assert from_codes.shape == (7, 3, 8)
    torch.testing.assert_close(from_codes, from_one_hot)


def test_none_dropped_and_minus_one_are_all_the_null_tokens(embedding):
    codes = torch.randint(5, (4, 3))
    null = embedding(None, 4)
    torch.testing.assert_close(embedding(codes, 4, drop=torch.ones(4, dtype=torch.bool)), null)
    torch.testing.assert_close(embedding(torch.full_like(codes, -1), 4), null)
    torch.testing.assert_close(null[0], null[1])


def test_one_slot_can_be_null_alone():
    embedding = LatentEmbedding(3, 5, 8)
    tokens = embedding(torch.tensor([[2, -1, 4]]), 1)[0]
    torch.testing.assert_close(tokens[1], embedding.null[1])
    torch.testing.assert_close(tokens[0], embedding.maps.weight[0, 2])
    torch.testing.assert_close(tokens[2], embedding.maps.weight[2, 4])


def test_slots_are_told_apart(embedding):
    tokens = embedding(torch.tensor([[0, 1, 2], [2, 1, 0]]), 2)
    assert not torch.allclose(tokens[0].sum(0), tokens[1].sum(0))


def test_dropped_samples_give_exactly_no_gradient(embedding):
    latents = torch.rand(4, 3, 5, requires_grad=True)
    drop = torch.tensor([True, False, True, False])
    embedding(latents, 4, drop).square().sum().backward()
    norms = latents.grad.flatten(1).norm(dim=1)
    assert (norms[drop] == 0).all() and (norms[~drop] > 0).all()


def test_dropped_samples_train_the_null_and_the_others_do_not():
    embedding = LatentEmbedding(2, 3, 4)
    embedding(torch.zeros(2, 2, dtype=torch.int64), 2, torch.tensor([False, False])).sum().backward()
    assert (embedding.null.grad == 0).all()
    embedding(None, 2).sum().backward()
    assert (embedding.null.grad == 2).all()


def test_continuous_latents_have_a_map_per_slot():
    embedding = LatentEmbedding(2, 3, 4, kind="continuous")
    z = torch.randn(5, 2, 3)
    expected = torch.stack([z[:, s] @ embedding.maps.weight[s] + embedding.maps.bias[s] for s in range(2)], dim=1)
    torch.testing.assert_close(embedding(z, 5), expected)


def test_tokens_have_unit_variance_at_initialisation(embedding):
    wide = LatentEmbedding(10, 100, 192, num_layers=6 if embedding.mixer else 0)
    tokens = wide(torch.randint(100, (16, 10)), 16)
    assert 0.8 < tokens.std().item() < 1.2


@pytest.mark.parametrize(
    "latents",
    [
        torch.zeros(2, 3, 4),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.zeros(2, 3, dtype=torch.int32),
        torch.zeros(3, 3, dtype=torch.int64),
    ],
)
def test_wrong_shapes_and_types_are_refused(latents):
    with pytest.raises(ValueError, match="latents"):
        LatentEmbedding(3, 5, 8)(latents, 2)


def test_a_code_outside_the_codebook_is_refused():
    with pytest.raises(IndexError):
        LatentEmbedding(3, 5, 8)(torch.tensor([[0, 5, 0]]), 1)


def test_a_wrong_kind_and_an_empty_codebook_are_refused():
    with pytest.raises(ValueError, match="latent_kind"):
        LatentEmbedding(1, 2, 4, kind="binary")
    with pytest.raises(ValueError, match="codebook_size"):
        LatentEmbedding(1, 0, 4)
    with pytest.raises(ValueError, match="continuous"):
        LatentEmbedding(1, 2, 4, kind="continuous")(torch.zeros(1, 1, dtype=torch.int64), 1)


def test_a_slots_map_keeps_the_size_of_what_it_maps():
    """Weights of deviation 1 / sqrt(inputs): of unit inputs come unit outputs, in every slot."""
    torch.manual_seed(0)
    mapped = SlotLinear(3, 64, 200)(torch.randn(500, 3, 64))
    assert torch.allclose(mapped.std(dim=(0, 2)), torch.ones(3), atol=0.05)


def test_each_slot_has_a_map_and_a_bias_of_its_own():
    torch.manual_seed(0)
    maps = SlotLinear(3, 5, 8, bias=True)
    with torch.no_grad():
        maps.bias.normal_()
    z = torch.randn(2, 3, 5)
    for slot in range(3):
        wanted = z[:, slot] @ maps.weight[slot] + maps.bias[slot]
        torch.testing.assert_close(maps(z)[:, slot], wanted)
        torch.testing.assert_close(maps.one_slot(slot, z[:, slot]), wanted)
