"""Frames between two others from motions that are told, with plain numbers."""

import math

import numpy as np
import pytest
import torch

from toolkit.venhancer.clips import classic
from toolkit.venhancer.clips.classic import Between, interpolate
from toolkit.venhancer.config import Classic

HEIGHT, WIDTH = 48, 80


def picture(x, y):
    """A smooth grey (1, 3, h, w) at places x, y."""
    grey = 120 + 60 * torch.sin(x / 7) + 50 * torch.cos(y / 9)
    return grey.expand(1, 3, -1, -1).contiguous()


def places(height=HEIGHT, width=WIDTH):
    return torch.arange(width).float()[None], torch.arange(height).float()[:, None]


def constant(x, y, height=HEIGHT, width=WIDTH):
    return torch.tensor([x, y]).view(1, 2, 1, 1).expand(1, 2, height, width)


def greys(*pictures):
    return [one[:, :1] for one in pictures]


def inside(made):
    return made[:, :, 10:-10, 16:-16]


@pytest.mark.parametrize("wrong", ["forward", "backward", None])
def test_a_moved_picture_is_seen_a_share_of_the_way_by_the_motion_that_fits(wrong):
    """Twelve pixels across and six down, a quarter of the way: three and one and a half."""
    x, y = places()
    a, b = picture(x, y), picture(x - 12, y - 6)
    flows = {"forward": constant(12.0, 6.0), "backward": constant(-12.0, -6.0)}
    if wrong:
        flows[wrong] = constant(0.0, 0.0)
    made = interpolate(a, b, flows["forward"], flows["backward"], *greys(a, b), 0.25)
    assert (inside(made) - inside(picture(x - 3, y - 1.5))).abs().mean() < 0.5


def test_a_motion_in_small_is_enlarged_by_each_sides_own_factor():
    """Of half the height and a quarter of the width: 12 pixels across are 3 there, 6 down are 3."""
    x, y = places()
    a, b = picture(x, y), picture(x - 12, y - 6)
    small = [one[:, :1, ::2, ::4].contiguous() for one in (a, b)]
    flow = constant(3.0, 3.0, HEIGHT // 2, WIDTH // 4)
    made = interpolate(a, b, flow, -flow, *small, 0.25)
    assert (inside(made) - inside(picture(x - 3, y - 1.5))).abs().mean() < 0.5


def test_a_motion_that_is_not_the_same_everywhere_is_looked_up_where_it_passes():
    """Places move from x to (1 + k) x: at share s, what is at p came from p / (1 + s k)."""
    x, y = places()
    k, share = 0.5, 0.25
    a, b = picture(x, y), picture(x / (1 + k), y)
    still = torch.zeros(HEIGHT, WIDTH)
    forward = torch.stack([(k * x).expand(HEIGHT, WIDTH), still])[None]
    backward = torch.stack([(-k * x / (1 + k)).expand(HEIGHT, WIDTH), still])[None]
    for small in (greys(a, b), [torch.zeros(1, 1, HEIGHT, WIDTH), torch.full((1, 1, HEIGHT, WIDTH), 99.0)]):
        made = interpolate(a, b, forward, backward, *small, share)
        assert (inside(made) - inside(picture(x / (1 + share * k), y))).abs().mean() < 0.4


def test_where_nothing_tells_motion_from_rest_a_third_is_blended():
    """Lumas alike everywhere: 1 / (1 + 2). Of a ramp and black: (1 - s) (ramp - 2 / 3 s d)."""
    x, _ = places()
    ramp = (3 * x).expand(1, 3, HEIGHT, WIDTH).contiguous()
    flow, same = constant(6.0, 0.0), torch.full((1, 1, HEIGHT, WIDTH), 50.0)
    made = interpolate(ramp, torch.zeros_like(ramp), flow, -flow, same, same, 0.25)
    torch.testing.assert_close(inside(made), inside(0.75 * (ramp - 3 * 2 / 3 * 0.25 * 6)), atol=1e-3, rtol=1e-4)
    apart = interpolate(ramp, torch.zeros_like(ramp), flow, -flow, same, same + 10, 0.25)
    still, moved = math.exp(-10 / 5), math.exp(-10 / 5)  # both see the same difference of ten
    weight = still / (still + 2 * moved + 1e-6)
    wanted = 0.75 * (ramp - 3 * (1 - weight) * 0.25 * 6)
    torch.testing.assert_close(inside(apart), inside(wanted), atol=1e-3, rtol=1e-4)


def test_pictures_that_were_halved_first_have_a_level_less(monkeypatch):
    told = []

    def estimate(greys, others, **words):
        told.append((tuple(greys.shape[-2:]), words["levels"], words["finest_level"]))
        return torch.zeros(2, 2, *greys.shape[-2:])

    monkeypatch.setattr(classic, "estimate_flow", estimate)
    frames = [np.zeros((480, 640, 3), np.uint8)] * 2
    for level in (None, 0, 1):
        Between(*frames, Classic(levels=5, flow_level=level)).motion()
    assert told == [((240, 320), 4, 1), ((480, 640), 5, 0), ((240, 320), 4, 0)]  # 120 pixels are two levels down
