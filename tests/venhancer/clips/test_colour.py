"""Colour fixes: what they take from the input, what they leave to the model, and cuts."""

import numpy as np
import pytest
import torch

from tests.data.videos import moving, write
from toolkit.data.video.scan import index_video
from toolkit.venhancer.clips import colour
from toolkit.venhancer.clips.colour import LEVELS, fix_colour, low_pass, wavelet
from toolkit.venhancer.clips.scenes import CutFinder


def test_wavelet_takes_the_low_band_of_the_guide_and_the_high_bands_of_the_model():
    torch.manual_seed(0)
    x, guide = torch.rand(1, 3, 96, 128) * 255, torch.rand(1, 3, 96, 128) * 255
    fixed = wavelet(x, guide)
    assert torch.allclose(fixed - low_pass(guide, LEVELS), x - low_pass(x, LEVELS), atol=1e-3)
    assert torch.allclose(wavelet(x + 40, x), x, atol=1e-3)  # a shift of colour is undone
    assert torch.allclose(low_pass(torch.full((1, 3, 40, 50), 9.0), LEVELS), torch.tensor(9.0))


def test_adain_takes_mean_and_contrast_of_every_channel():
    rng = np.random.default_rng(0)
    x, guide = rng.integers(60, 120, (64, 48, 3), np.uint8), rng.integers(20, 220, (64, 48, 3), np.uint8)
    fixed = fix_colour(x, guide, "adain")
    assert np.allclose(fixed.mean((0, 1)), guide.mean((0, 1)), atol=0.5)
    assert np.allclose(fixed.std((0, 1)), guide.std((0, 1)), rtol=0.01)


@pytest.mark.parametrize("kind", ["wavelet", "adain"])
def test_bands_of_rows_make_no_difference(kind, monkeypatch):
    rng = np.random.default_rng(0)
    x, guide = (rng.integers(0, 255, (150, 40, 3), np.uint8) for _ in range(2))
    whole = fix_colour(x, guide, kind)
    monkeypatch.setattr(colour, "BAND", 32)
    assert np.array_equal(fix_colour(x, guide, kind), whole)


def test_pixels_are_fixed_by_name():
    clip = moving(1, 64, 48)[0]
    tinted = np.clip(clip + np.array([30, -20, 10]), 0, 255).astype(np.uint8)
    for kind in ("wavelet", "adain"):
        before, after = (
            np.abs(tinted.astype(int) - clip).mean(),
            np.abs(fix_colour(tinted, clip, kind).astype(int) - clip),
        )
        assert after.mean() < 0.2 * before
    assert fix_colour(tinted, clip, "none") is tinted
    with pytest.raises(ValueError, match="differ"):
        fix_colour(tinted, clip[:10], "wavelet")


def test_cuts_are_found_and_motion_is_none(tmp_path):
    rng = np.random.default_rng(0)

    def scene(count, step):
        base = np.kron(rng.integers(0, 255, (8, 30, 3)), np.ones((12, 12, 1))).astype(np.uint8)
        return [np.roll(base, step * n, axis=1)[:, :192] for n in range(count)]

    clip = np.stack([*scene(10, 3), *scene(7, -2), *scene(12, 0), *scene(6, 5)])
    clip[4] = np.minimum(clip[4].astype(int) + 12, 255)  # a little flicker
    finder = CutFinder(0.2)
    index_video(write(tmp_path / "c.mp4", clip, options={"crf": "12"}), each=finder)
    assert finder.cuts() == [10, 17, 29]
    assert len(finder.scores) == len(clip)


def test_a_flash_is_not_two_cuts(tmp_path):
    clip = moving(12, 96, 64)
    clip[6] = 255
    finder = CutFinder(0.2)
    index_video(write(tmp_path / "c.mp4", clip), each=finder)
    assert len(finder.cuts()) <= 1
