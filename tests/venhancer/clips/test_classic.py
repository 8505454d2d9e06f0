"""No network: motion is followed, frames are exact where they exist, sizes are Lanczos's."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.data.videos import moving, psnr
from toolkit.data.video.together import in_order
from toolkit.metrics.flow import box_mean, estimate_flow, halve, median, resize_flow, to_grey, warp
from toolkit.venhancer.clips.classic import (
    blended_frames,
    motion_frames,
    motion_tasks,
    resize,
    to_pixels,
    to_tensor,
    up_to_size,
)
from toolkit.venhancer.config import Classic


class Memory:
    """Key frames from memory."""

    def __init__(self, frames):
        self.held = frames

    def frames(self, start):
        yield from self.held[start:]


def greys(count, width, height, step):
    """Smooth random texture moving by ``step`` pixels (dx, dy) a frame, (n, 1, h, w) in [0, 255]."""
    rng = np.random.default_rng(0)
    waves = [(rng.normal(0, 0.12, 2), rng.uniform(0, 6), rng.normal(0, 15)) for _ in range(60)]
    y, x = np.mgrid[:height, :width].astype(float)
    frames = []
    for n in range(count):
        u, v = x - step[0] * n, y - step[1] * n
        frames.append(127 + sum(size * np.cos(f[0] * u + f[1] * v + phase) for f, phase, size in waves))
    return torch.tensor(np.stack(frames), dtype=torch.float32)[:, None]


@pytest.mark.parametrize("step", [(0, 0), (0.5, 0.25), (3, -2), (12, 7)])
def test_the_flow_of_a_moving_texture_is_its_motion(step):
    a, b = greys(2, 160, 128, step).split(1)
    flow = estimate_flow(a, b)[..., 28:-28, 28:-28]  # what leaves the picture has no match
    error = (flow - torch.tensor(step, dtype=torch.float32).view(1, 2, 1, 1)).square().sum(1).sqrt()
    assert error.median() < 0.25 and (error < 0.5).float().mean() > 0.95
    assert estimate_flow(a, b, finest_level=1).shape == (1, 2, 128, 160)


def test_the_flow_of_equal_frames_is_nothing():
    a = greys(1, 160, 128, (0, 0))
    assert estimate_flow(a, a).abs().max() < 0.01


def test_flow_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="expected two equal"):
        estimate_flow(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 9))


def test_warping_by_whole_pixels_moves_pixels():
    x = torch.rand(1, 3, 20, 30)
    flow = torch.zeros(1, 2, 20, 30)
    flow[:, 0], flow[:, 1] = 2, -1
    assert torch.allclose(warp(x, flow)[..., 1:, :-2], x[..., :-1, 2:], atol=1e-5)


def test_small_filters_against_their_definitions():
    x = torch.rand(1, 2, 9, 11)
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
    assert torch.allclose(box_mean(x, 2), F.avg_pool2d(padded, 5, 1), atol=1e-6)
    assert median(x)[0, 1, 4, 5] == x[0, 1, 3:6, 4:7].median(1).values.median()
    assert torch.allclose(halve(torch.full((1, 1, 9, 10), 3.0)), torch.full((1, 1, 4, 5), 3.0))
    assert resize_flow(torch.ones(1, 2, 4, 5), 8, 15)[0, :, 0, 0].tolist() == [3.0, 2.0]


def test_frames_between_follow_the_motion_and_beat_blending():
    clip = moving(9, 128, 96, step=4.0)
    keys, wanted = Memory(clip[::2]), [Fraction(n, 2) for n in range(9)]
    made = np.stack(list(motion_frames(keys, wanted, 0, Classic())))
    blended = np.stack(list(blended_frames(keys, wanted, 0)))
    assert np.array_equal(made[::2], clip[::2]) and np.array_equal(blended[::2], clip[::2])
    inner = np.s_[1::2, 8:-8, 8:-8]
    assert psnr(made[inner], clip[inner]) > psnr(blended[inner], clip[inner]) + 8


@pytest.mark.parametrize("share", [Fraction(1, 8), Fraction(1, 3), Fraction(7, 8)])
def test_any_share_of_the_way_is_met(share):
    fine = moving(17, 128, 96, step=0.25)
    keys = Memory(fine[[0, 16]])
    made = next(motion_frames(keys, [share], 0, Classic()))[8:-8, 8:-8]
    errors = [psnr(made, frame[8:-8, 8:-8]) for frame in fine]
    assert abs(int(np.argmax(errors)) - float(16 * share)) <= 1 and max(errors) > 30


def test_frames_from_any_position_on_are_the_same():
    clip = moving(5, 64, 48, step=2.0)
    wanted = [Fraction(n, 3) for n in range(13)]
    whole = list(motion_frames(Memory(clip), wanted, 0, Classic()))
    for start in (1, 5, 9, 12):
        assert np.array_equal(np.stack(list(motion_frames(Memory(clip), wanted, start, Classic()))), whole[start:])
    assert list(motion_frames(Memory(clip), wanted, 13, Classic())) == []


def test_a_picture_that_stands_still_stays_as_it_is():
    clip = np.repeat(moving(1, 64, 48), 2, 0)
    for frame in motion_frames(Memory(clip), [Fraction(n, 4) for n in range(5)], 0, Classic()):
        assert np.abs(frame.astype(int) - clip[0]).max() <= 1


def test_odd_and_tiny_frames_can_be_interpolated():
    for width, height in ((33, 17), (16, 16), (101, 63)):
        frames = list(motion_frames(Memory(moving(2, width, height)), [Fraction(1, 2)], 0, Classic()))
        assert frames[0].shape == (height, width, 3)


def test_sizes_are_made_by_lanczos_once_per_picture():
    clip = moving(2, 40, 30)
    first = clip[0]
    same = lambda: first  # noqa: E731
    made = [task() for task in up_to_size(iter([same, same, lambda: clip[1]]), 97, 71, "lanczos")]
    assert made[0] is made[1] and made[2] is not made[1]
    assert resize(first, 40, 30) is first
    for kernel, pillow in (("lanczos", Image.Resampling.LANCZOS), ("bicubic", Image.Resampling.BICUBIC)):
        for size in ((97, 71), (23, 19)):
            expected = np.asarray(Image.fromarray(first).resize(size, pillow)).astype(int)
            off = np.abs(resize(first, *size, kernel) - expected)
            assert off.max() <= 3 and off.mean() < 0.3, (kernel, size)  # both round, borders differ


def test_frames_made_at_once_are_those_made_one_by_one():
    clip = moving(5, 64, 48, step=2.0)
    wanted = [Fraction(n, 3) for n in range(13)]

    def tasks():
        return up_to_size(motion_tasks(Memory(clip), wanted, 0, Classic()), 80, 60, "lanczos")

    one_by_one = [task() for task in tasks()]
    assert np.array_equal(np.stack(list(in_order(tasks(), 3))), one_by_one)


def test_tensors_and_pixels_are_inverse():
    pixels = moving(1, 20, 10)[0]
    assert np.array_equal(to_pixels(to_tensor(pixels)), pixels)
    assert to_grey(to_tensor(np.full((4, 4, 3), 77, np.uint8))).allclose(torch.tensor(77.0))
