"""The curvature of a path that turns more where there is more noise."""

import math

import pytest
import torch

from toolkit.metrics.turning import curvature


def test_curvature_is_that_of_the_piece_that_lies_towards_less_noise():
    turned = lambda level: torch.stack([torch.cos(level**2), torch.sin(level**2)])  # noqa: E731
    denoise = lambda x, level: x - level * turned(level)  # noqa: E731 - a slope of length 1 that turns, the same everywhere
    found = curvature(denoise, torch.zeros(1, 2), 1.0, 0.1, torch.float64)
    assert found.item() == pytest.approx(2 * math.sin((1 - 0.9**2) / 2) / 0.1)
