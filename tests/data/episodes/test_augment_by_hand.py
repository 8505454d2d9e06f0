"""The crop and the colours of an augmented clip, with plain numbers in the place of drawn ones."""

import colorsys
import math

import pytest
import torch

from toolkit.data.episodes.augment import _crop, _recolor, _uniform, augment


def drawing(*values):
    """Gives one list after the other, whatever range is asked for, and keeps the ranges."""
    left, ranges = [torch.tensor(value) for value in values], []

    def uniform(*bounds):
        ranges.append(bounds)
        return left.pop(0)

    return uniform, ranges


def test_a_crop_is_a_window_of_the_drawn_area_shape_and_place():
    """Of 8 rows and 10 columns: 0.72 of the area 1.125 times as wide as high is 0.9 by 0.8; at its top right."""
    ramp = torch.stack([torch.arange(10.0).expand(8, 10), torch.arange(8.0)[:, None].expand(8, 10), torch.zeros(8, 10)])
    frames = ramp.expand(2, 3, 3, 8, 10)
    uniform, ranges = drawing([0.72, 1.0], [math.log(1.125), 0.0], [1.0, 0.5], [0.0, 0.5])
    made = _crop(frames, uniform)
    assert ranges == [(0.8, 1.0), (pytest.approx(math.log(0.9)), pytest.approx(math.log(1.1))), (), ()]
    torch.testing.assert_close(made[1], frames[1], atol=1e-4, rtol=0)
    columns = [0.9 * (column + 0.5) - 0.5 + 0.1 * 10 for column in range(10)]  # the last is a twentieth past the edge
    rows = [0.8 * (row + 0.5) - 0.5 for row in range(8)]
    for frame in made[0]:
        torch.testing.assert_close(frame[0], torch.tensor(columns).clamp(0, 9).expand(8, 10), atol=1e-4, rtol=0)
        torch.testing.assert_close(frame[1], torch.tensor(rows).clamp(0, 7)[:, None].expand(8, 10), atol=1e-4, rtol=0)


def test_colours_are_brighter_further_from_the_mean_grey_further_from_grey_and_turned():
    torch.manual_seed(0)
    frames = 0.3 + 0.3 * torch.rand(1, 2, 3, 2, 2)
    uniform, ranges = drawing([1.1], [0.9], [1.05], [0.0])
    x = 1.1 * frames
    luma = lambda x: 0.299 * x[:, :, :1] + 0.587 * x[:, :, 1:2] + 0.114 * x[:, :, 2:]  # noqa: E731
    mean = float(luma(x).mean())
    x = mean + 0.9 * (x - mean)
    x = luma(x) + 1.05 * (x - luma(x))
    torch.testing.assert_close(_recolor(frames, uniform), x, atol=1e-5, rtol=0)
    assert ranges == [(0.9, 1.1)] * 3 + [(-0.05, 0.05)]


def test_hue_is_turned_about_grey_by_a_share_of_the_circle():
    grey, red = torch.full((1, 1, 3, 1, 1), 0.4), torch.tensor([0.5, 0.4, 0.4]).view(1, 1, 3, 1, 1)
    turned = [_recolor(red, drawing([1.0], [1.0], [1.0], [share])[0]).flatten() for share in (0.0, 0.05, 0.5)]
    torch.testing.assert_close(turned[0], red.flatten(), atol=1e-5, rtol=0)
    weights = torch.tensor([0.299, 0.587, 0.114])
    chroma = [one - (weights @ one) for one in turned]
    assert all(abs(float(weights @ one)) < 1e-4 for one in chroma)  # as bright as before
    torch.testing.assert_close(chroma[2], -chroma[0], atol=1e-4, rtol=0)  # half the circle: the complement
    hues = [colorsys.rgb_to_hsv(*one.tolist())[0] for one in turned]
    assert hues[0] == pytest.approx(0, abs=1e-3) and abs((hues[1] + 0.5) % 1 - 0.5) == pytest.approx(0.05, abs=0.03)
    again = _recolor(grey, drawing([1.0], [1.0], [1.0], [0.05])[0])
    torch.testing.assert_close(again, grey, atol=1e-3, rtol=0)


def test_a_share_of_a_batch_is_changed_as_in_the_whole():
    frames = torch.rand(5, 2, 3, 8, 8)
    whole = augment(frames, torch.Generator().manual_seed(4))
    part = augment(frames[2:4], torch.Generator().manual_seed(4), num=5, first=2)
    torch.testing.assert_close(part, whole[2:4], atol=1e-6, rtol=0)


def test_numbers_lie_between_their_bounds_and_are_drawn_for_the_whole_of_which_a_part_is_taken():
    drawn = [_uniform(torch.Generator().manual_seed(3), 400, slice(0, 400), 0.9, 1.1)]
    drawn.append(_uniform(torch.Generator().manual_seed(3), 400, slice(100, 130), 0.9, 1.1))
    assert 0.9 <= drawn[0].min() < 0.91 and 1.09 < drawn[0].max() < 1.1
    assert torch.equal(drawn[1], drawn[0][100:130])
