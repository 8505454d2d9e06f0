"""Key frames at any scale, filled-in clips, and which key frame belongs to which frame of a window."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from toolkit.venhancer.model.conditioning import Fill, key_frame_index, resize_region, true_scale

FRAME = np.random.default_rng(0).integers(0, 256, (31, 47, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("scale", [1, 1.37, 2, 2.5, 3.3, 4, 8])
def test_any_scale_equals_torch_and_any_part_equals_the_whole(mode, scale):
    size = (round(31 * scale), round(47 * scale))
    image = torch.from_numpy(FRAME).permute(2, 0, 1)[None].double() / 127.5 - 1
    expected = F.interpolate(image, size=size, mode=mode, align_corners=False)[0].float()
    whole = resize_region(FRAME, size, (0, size[0]), (0, size[1]), mode)
    torch.testing.assert_close(whole, expected, atol=2e-6, rtol=0)
    part = resize_region(FRAME, size, (7, 29), (5, 40), mode)
    torch.testing.assert_close(part, whole[:, 7:29, 5:40], atol=2e-6, rtol=0)


def test_padding_repeats_the_border():
    padded = resize_region(FRAME, (62, 94), (0, 70), (0, 96), "bicubic")
    assert torch.equal(padded[:, 62:, :94], padded[:, 61:62, :94].expand(-1, 8, -1))
    assert torch.equal(padded[:, :, 94:], padded[:, :, 93:94].expand(-1, -1, 2))


def test_fill():
    assert Fill().parts(7, 4) == [(1, 1.0)]  # the key frame before, as the release does
    assert Fill(blend=True).parts(7, 4) == [(1, 0.25), (2, 0.75)]
    assert Fill(blend=True).parts(8, 4) == [(2, 1.0)]


@pytest.mark.parametrize("start", [0, 3, 9])
def test_a_windows_hints_are_those_of_the_whole_clip(start):
    whole, part = key_frame_index(0, 19, 3)[0], key_frame_index(start, start + 7, 3)[0]
    hints = torch.arange(7)  # of the clip's key frames
    window_hints = hints[start // 3 : (start + 6) // 3 + 1]
    for frame, index in enumerate(part.tolist(), start):
        assert (index < 0) == (whole[frame] < 0)
        assert index < 0 or window_hints[index] == hints[whole[frame]]


def test_true_scale():
    assert true_scale((100, 200), (250, 500)) == pytest.approx(2.5)
    assert true_scale((100, 200), (100, 200)) == 1
    assert true_scale((100, 200), (50, 100)) == 1
