"""SSIM against its definition and against scikit-image's, which uses the same window."""

import numpy as np
import pytest
import torch

from toolkit.metrics.ssim import ssim


def test_equal_images_have_one_and_a_shift_of_a_constant_has_the_luminance_term():
    x = torch.rand(2, 3, 16, 16)
    assert torch.allclose(ssim(x, x), torch.ones(2))
    a, b, c1 = 0.2, 0.6, 0.01**2
    flat = [torch.full((1, 3, 12, 12), value, dtype=torch.float64) for value in (a, b)]
    assert ssim(*flat).item() == pytest.approx((2 * a * b + c1) / (a**2 + b**2 + c1), abs=1e-6)


def test_it_equals_scikit_images():
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    rng = np.random.default_rng(0)
    x = rng.random((20, 24, 3))
    y = np.clip(x + 0.1 * rng.normal(size=x.shape), 0, 1)
    wanted = metrics.structural_similarity(
        x, y, data_range=1, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    found = ssim(*(torch.from_numpy(one).permute(2, 0, 1)[None] for one in (x, y)))
    assert found.item() == pytest.approx(wanted, abs=1e-6)


def test_small_images_use_the_largest_window_that_fits():
    assert ssim(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)).isfinite().all()


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ"):
        ssim(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 9, 9))
