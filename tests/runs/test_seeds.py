"""Random numbers are a pure function of (seed, purpose)."""

import torch

from toolkit.runs.seeds import derive, generator, seed_all


def test_seeds_differ_by_seed_purpose_and_step_and_nothing_else():
    seeds = {derive(seed, name, step) for seed in range(3) for name in ("a", "b") for step in range(50)}
    assert len(seeds) == 3 * 2 * 50
    assert derive(1, "a", 2) == derive(1, "a", 2)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive(0, "a") == 4950127121108668649  # the same on every machine and in every version


def test_a_generator_leaves_the_default_one_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = torch.rand(3, generator=generator(5, "noise"))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, torch.rand(3, generator=generator(5, "noise")))
    for other in (generator(6, "noise"), generator(5, "data"), generator(5, "noise", 1)):
        assert not torch.equal(first, torch.rand(3, generator=other))


def test_seed_all_repeats_the_default_generator():
    seed_all(3, "train", 0, 17)
    first = torch.randn(4)
    torch.randn(100)
    seed_all(3, "train", 0, 17)
    assert torch.equal(torch.randn(4), first)


def test_seed_all_gives_the_numbers_of_torchs_own_seed():
    seed_all(3, "train")
    first = torch.randn(4)
    torch.manual_seed(derive(3, "train"))
    assert torch.equal(torch.randn(4), first)
