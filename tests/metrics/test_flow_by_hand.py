"""Pieces of the flow whose results are known: a picture of half the size, and the search of the coarsest level."""

import torch

from toolkit.metrics.flow import _search, halve


def test_half_the_size_is_weighed_by_one_three_three_one():
    picture = torch.zeros(1, 2, 8, 8)
    picture[..., 3], picture[:, 1] = 8.0, 5.0  # a column, and a plain channel
    found = halve(picture)
    assert found.shape == (1, 2, 4, 4)
    assert found[0, 0].tolist() == [[0, 3, 1, 0]] * 4
    assert torch.allclose(found[0, 1], torch.full((4, 4), 5.0))


def test_the_search_finds_how_far_to_the_right_and_down_it_went():
    torch.manual_seed(0)
    a = torch.rand(1, 1, 32, 40) * 255
    b = a.roll((-1, 2), (2, 3))  # what was at p is seen two to the right and one up
    found = _search(a, b)[..., 8:-8, 8:-8]
    assert torch.allclose(found, torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand_as(found), atol=1e-3)
