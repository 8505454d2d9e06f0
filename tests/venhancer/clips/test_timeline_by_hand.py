"""Counts, factors and blends with numbers that are not their own mirror."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.venhancer.clips.test_timeline import clip
from toolkit.venhancer.clips.classic import Between, interpolate
from toolkit.venhancer.clips.colour import fix_colour
from toolkit.venhancer.clips.timeline import make_timeline
from toolkit.venhancer.config import Classic
from toolkit.venhancer.engine.windows import plan_windows


@pytest.mark.parametrize(("rate", "frames"), [(20, 15), (21, 16), (22, 17), (23, 17), (31, 23), (17, 13)])
def test_the_result_lasts_as_long_as_the_input_to_the_nearest_frame(rate, frames):
    """9 frames at 12 a second are 0.75 s: 15, 15.75, 16.5, 17.25, 23.25, 12.75 frames."""
    assert make_timeline(clip(9, 12), Fraction(rate)).num_frames == frames


@pytest.mark.parametrize(("rate", "factor"), [(12, 1), (13, 2), (24, 2), (25, 3), (30, 3), (96, 8), (5, 1)])
def test_a_network_must_make_at_least_as_many_steps_as_are_asked_for(rate, factor):
    assert make_timeline(clip(9, 12), Fraction(rate)).factor == factor


def test_the_share_of_a_window_rises_from_nothing_over_what_it_has_in_common():
    windows = plan_windows(145, 3)
    assert windows.spans[:2] == ((0, 31), (18, 49))
    assert [windows.weight(1, frame) for frame in (18, 19, 24, 30)] == [0, 1 / 13, 6 / 13, 12 / 13]
    assert windows.settled(0) == (0, 18) and windows.settled(len(windows) - 1)[1] == 145


def test_nearer_the_first_frame_more_of_it_is_seen():
    """No motion: two flat pictures are mixed by the share, whichever way it is warped."""
    a, b = torch.full((1, 3, 16, 16), 40.0), torch.full((1, 3, 16, 16), 200.0)
    still = torch.zeros(1, 2, 16, 16)
    for share in (0.25, 0.6):
        mixed = interpolate(a, b, still, still, a[:, :1], b[:, :1], share)
        torch.testing.assert_close(mixed, torch.full_like(mixed, 40 + share * 160), atol=0.01, rtol=0)


@pytest.mark.parametrize("share", [0.25, 0.8])
def test_warped_frames_are_weighed_by_the_share(share):
    """A texture moves 8 pixels to the right and becomes 30 levels brighter: in between it is where and as it should."""
    y, x = np.mgrid[:96, :128].astype(float)
    texture = lambda shift: 90 + 40 * np.sin((x - shift) / 5) * np.cos(y / 7)  # noqa: E731
    to_frame = lambda grey: np.repeat(np.rint(grey)[..., None], 3, 2).astype(np.uint8)  # noqa: E731
    made = Between(to_frame(texture(0)), to_frame(texture(8) + 30), Classic()).at(share)
    wanted = texture(8 * share) + 30 * share
    error = np.abs(made[16:-16, 24:-24, 0] - wanted[16:-16, 24:-24])
    assert error.mean() < 3


def test_adain_gives_mean_and_deviation_of_the_guide_and_keeps_the_picture():
    rng = np.random.default_rng(0)
    pixels = rng.integers(100, 140, (20, 30, 3), dtype=np.uint8)
    guide = rng.integers(40, 110, (20, 30, 3), dtype=np.uint8)
    made = fix_colour(pixels, guide, "adain").astype(float)
    for channel in range(3):
        one, p, g = made[..., channel], pixels[..., channel].astype(float), guide[..., channel].astype(float)
        wanted = (p - p.mean()) / p.std() * g.std() + g.mean()
        assert np.abs(one - wanted).max() <= 0.51
