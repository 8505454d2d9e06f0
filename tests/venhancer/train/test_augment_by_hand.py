"""What training degrades, with plain numbers."""

import torch

from toolkit.venhancer.model.conditioning import Fill
from toolkit.venhancer.train.augment import degrade


def test_pixels_are_brought_to_the_range_of_the_codec_and_frames_are_blended():
    values = (0, 255, 51)
    clip = torch.tensor(values, dtype=torch.uint8).view(1, 3, 1, 1, 1).expand(1, 3, 3, 8, 8)
    made = degrade(clip, 2, torch.tensor([2.0]), torch.tensor([0]), Fill("bicubic", blend=True))
    for frame, value in enumerate((-1.0, 1.0, -0.6)):  # v / 127.5 - 1
        assert torch.allclose(made.clean[0, frame], torch.full((3, 8, 8), value), atol=1e-6)
    assert torch.allclose(made.keys[0, 1], torch.full((3, 8, 8), -0.6), atol=1e-6)
    assert torch.allclose(made.fill[0, 1], torch.full((3, 8, 8), -0.8), atol=1e-6)  # between -1 and -0.6
