"""Numbers of each sample's own: the published generator, the right laws, and nothing that a batch could change."""

import pytest
import torch

from toolkit.zoo.edm.noise import SampleNoise, philox

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # kat_vectors of the authors' Random123, philox 4x32 10
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_words_of_its_authors(counter, key, words):
    assert tuple(int(word) for word in philox([torch.tensor([one]) for one in counter], key)) == words


def test_a_sample_has_the_same_numbers_in_every_batch_and_new_ones_at_every_draw():
    whole = SampleNoise(2**62 + 5, range(100, 107))
    part, alone = whole[2:5], SampleNoise(2**62 + 5, range(103, 104))
    for shape in ((3, 5), (1,), (2, 4, 4)):
        numbers = whole.normal((7, *shape))
        assert torch.equal(part.normal((3, *shape)), numbers[2:5])
        assert torch.equal(alone.normal((1, *shape)), numbers[3:4])
    later = whole[3:4]
    assert torch.equal(whole.uniform((7, 9))[3:4], alone.uniform((1, 9)))
    assert torch.equal(later.uniform((1, 9)), SampleNoise.uniform(_after(alone, -1), (1, 9)))
    assert len(torch.cat([SampleNoise(seed, range(50)).normal((50, 6)) for seed in (1, 2)]).unique(dim=0)) == 100
    assert not torch.equal(whole.normal((7, 4)), whole.normal((7, 4)))
    far = SampleNoise(0, range(2**32 + 1, 2**32 + 2)).normal((1, 8))
    assert not torch.equal(far, SampleNoise(0, range(1, 2)).normal((1, 8)))


def _after(noise, num):
    """``noise`` moved by ``num`` draws."""
    moved = noise[:]
    moved.num_draws += num
    return moved


def test_the_laws_are_those_that_the_names_say():
    from scipy.stats import kstest

    noise = SampleNoise(7, range(2000))
    normal, uniform = noise.normal((2000, 26)).double(), noise.uniform((2000, 25)).double()
    assert kstest(normal.flatten().numpy(), "norm").pvalue > 0.001
    assert kstest(uniform.flatten().numpy(), "uniform").pvalue > 0.001
    assert uniform.min() > 0 and uniform.max() < 1 and normal.isfinite().all()
    correlation = torch.corrcoef(torch.cat([normal, normal.square()], dim=1).T)
    assert (correlation - torch.eye(52)).abs().max() < 6 / 2000**0.5


def test_all_64_bits_of_the_seed_count():
    first, other = (SampleNoise(seed, range(2)).normal((2, 8)) for seed in (5, 5 + 2**32))
    assert not torch.equal(first, other)
