"""Units of residuals: what they follow and what they do not."""

from __future__ import annotations

import pytest
import torch

from toolkit.venhancer.model.residuals import DETAIL, FLOOR, expected, standardised, with_margin


def latents(seed, contrast=1.0, mean=0.0):
    torch.manual_seed(seed)
    return with_margin(mean + contrast * torch.randn(2, 12, 9, 11))


def test_a_key_frame_has_units_of_its_contrast_and_scale():
    flat, busy = latents(0, contrast=0.0, mean=0.3), latents(1)
    assert expected([(flat, 1.0)], 4.0).sub(4 * DETAIL * FLOOR).abs().max() < 1e-4
    at_two = expected([(busy, 1.0)], 2.0)
    assert at_two.shape == (2, 1, 9, 11)
    assert at_two.mean().item() == pytest.approx(2 * 0.16, rel=0.1)  # of deviation one
    assert torch.allclose(expected([(3 * busy + 5, 1.0)], 2.0) - 2 * DETAIL * FLOOR, 3 * (at_two - 2 * DETAIL * FLOOR))
    each = expected([(busy, 1.0)], torch.tensor([2.0, 4.0]))
    assert torch.allclose(each[0], at_two[0]) and torch.allclose(each[1], 2 * at_two[1])


def test_a_blend_has_units_of_what_its_frames_disagree_about():
    one, other = (latents(0, contrast=0.0, mean=mean) for mean in (0.2, -0.4))
    for weight in (0.5, 0.25):
        unit = expected([(one, weight), (other, 1 - weight)], 1.0)
        assert torch.allclose(unit, torch.tensor((weight * (1 - weight)) ** 0.5 * 0.6 + DETAIL * FLOOR), atol=1e-4)
    busy = latents(1)
    alike = expected([(busy, 0.5), (busy, 0.5)], 3.0)
    assert torch.allclose(alike, expected([(busy, 1.0)], 3.0), atol=1e-4)


def test_key_frames_are_given_without_their_brightness_and_contrast():
    busy = latents(2)
    given = standardised(busy)
    assert given.shape == (2, 12, 9, 11)
    assert torch.allclose(standardised(7 * busy - 2), given, atol=0.1)  # but for the floor
    assert given.square().mean().item() == pytest.approx(1.0, rel=0.1)
    assert standardised(latents(0, contrast=0.0, mean=0.9)).abs().max() < 1e-3
