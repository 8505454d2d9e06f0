"""Pieces of the flow whose results are known: sizes, slopes, the search of the coarsest level, the bound of a step."""

import math

import torch

from toolkit.metrics import flow as module
from toolkit.metrics.flow import _gradient, _refine, _search, halve, resize_flow


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


def test_of_equal_matches_the_nearer_one_counts_more():
    """Stripes of period 3 that went by 1: two back fits as well, and so does every row; a pixel costs half a level."""
    stripes = torch.tensor([0.0, 90.0, 200.0]).repeat(14).expand(1, 1, 40, 42).contiguous()
    found = _search(stripes, stripes.roll(1, 3))[0, :, 20, 20]
    weights = {(x, y): math.exp(-0.5 * math.hypot(x, y)) for x in (-2, 1) for y in range(-3, 4)}
    across = sum(x * weight for (x, _), weight in weights.items()) / sum(weights.values())
    torch.testing.assert_close(found, torch.tensor([across, 0.0]), atol=1e-4, rtol=0)


def test_a_flow_is_in_pixels_of_its_own_size_and_slopes_are_per_pixel():
    flow = torch.tensor([1.0, 10.0]).view(1, 2, 1, 1).expand(1, 2, 4, 6)
    assert resize_flow(flow, 8, 18)[0, :, 3, 3].tolist() == [3, 20]  # thrice as wide, twice as high
    plane = 3 * torch.arange(5.0) + 7 * torch.arange(4.0)[:, None]
    assert _gradient(plane[None, None])[0, :, 1, 2].tolist() == [3, 7]


def test_a_step_is_of_two_pixels_at_most_and_the_result_is_freed_of_outliers(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    a, b = (255 * torch.rand(1, 1, 24, 32, generator=rng) for _ in range(2))
    monkeypatch.setattr(module, "SMOOTHNESS", 1.0)
    monkeypatch.setattr(module, "median", lambda flow: flow)
    start = torch.full((1, 2, 24, 32), 0.5)
    made = _refine(start, a, b, 1, 1)
    assert (made - start).abs().max() == 2
    monkeypatch.setattr(module, "median", lambda flow: "freed")
    assert _refine(start, a, b, 1, 1) == "freed"
