"""The models in the package: on photographs that they never saw they beat what needs no network."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from toolkit.venhancer.keys import load_upscaler
from toolkit.venhancer.keys.tiled import enlarge_to
from toolkit.venhancer.pipeline import VideoEnhancePipeline


def psnr(frame, truth):
    return 10 * np.log10(255**2 / np.square(frame.astype(float) - truth).mean())


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_the_shipped_model_is_closer_to_the_truth_than_interpolation(name):
    truth = load_sample_image(name)[100:292, 200:392]
    gains = {}
    for scale in (2, 4):
        low = np.asarray(Image.fromarray(truth).resize((192 // scale, 192 // scale), Image.Resampling.BICUBIC))
        pipeline = VideoEnhancePipeline.from_pretrained("small")
        ours = pipeline(np.stack([low, low]), scale=float(scale), num_steps=1).frames
        for kernel in (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
            plain = np.asarray(Image.fromarray(low).resize((192, 192), kernel))
            gains[scale, kernel.name] = psnr(ours[0], truth) - psnr(plain, truth)
    assert gains[4, "LANCZOS"] > 0.05
    assert gains[4, "BICUBIC"] > 0.15
    assert gains[2, "BICUBIC"] > 0.05


@pytest.mark.parametrize(("name", "least"), [("china.jpg", 0.2), ("flower.jpg", 0.8)])
def test_the_shipped_upscaler_is_closer_still(name, least):
    truth = load_sample_image(name)[100:292, 200:392]
    gains = {}
    for scale in (2, 4, 6):
        low = np.asarray(Image.fromarray(truth).resize((192 // scale, 192 // scale), Image.Resampling.BICUBIC))
        plain = np.asarray(Image.fromarray(low).resize((192, 192), Image.Resampling.LANCZOS))
        ours = enlarge_to(load_upscaler("upscaler", "cpu"), low, 192, 192, (256, 256))
        gains[scale] = psnr(ours, truth) - psnr(plain, truth)
    assert gains[4] > least
    assert gains[2] > 0 and gains[6] > 0
