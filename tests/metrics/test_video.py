"""Measures of videos against their definitions and in the directions they promise."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.data.videos import moving
from toolkit.metrics import video as module
from toolkit.metrics.video import VideoScores, decibel, luma_ssim, noise_deviation, sharpness, squared_error

CLIP = [torch.from_numpy(frame).permute(2, 0, 1)[None].float() for frame in moving(8, 96, 64, step=2.0)]


def scores(frames, references=None, **flags):
    """Of a list of frames."""
    found = VideoScores()
    for number, frame in enumerate(frames):
        reference = None if references is None else references[number]
        found.add(frame, reference, **{key: value[number] for key, value in flags.items()})
    return found.result()


def test_psnr_is_its_definition():
    x = torch.zeros(1, 3, 4, 4)
    assert decibel(squared_error(x, x + 5)) == pytest.approx(20 * math.log10(255 / 5))
    assert decibel(0.0) == math.inf
    with pytest.raises(ValueError, match="differ"):
        squared_error(x, x[..., :2])


def test_ssim_is_one_for_equal_frames_and_equals_its_definition():
    x = CLIP[0]
    assert luma_ssim(x, x) == pytest.approx(1)
    y = x + 20 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    kernel = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    window = np.outer(kernel, kernel) / kernel.sum() ** 2
    a, b = ((z * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1)[0].double().numpy() for z in (x, y))
    found = []
    for row in range(a.shape[0] - 10):
        for column in range(a.shape[1] - 10):
            p, q = a[row : row + 11, column : column + 11], b[row : row + 11, column : column + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2
            cov = (window * p * q).sum() - mp * mq
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            found.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert luma_ssim(x, y) == pytest.approx(np.mean(found), abs=1e-6)


def test_noise_is_estimated_without_a_reference():
    smooth = torch.full((1, 3, 200, 200), 128.0)
    noise = 6 * torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(1))
    assert noise_deviation(smooth + noise) == pytest.approx(6, rel=0.05) and noise_deviation(smooth) < 1e-3


def test_blur_lowers_sharpness():
    blurred = F.avg_pool2d(CLIP[0], 5, 1)
    assert sharpness(blurred) < 0.95 * sharpness(CLIP[0][..., 2:-2, 2:-2])


def test_a_perfect_clip_has_perfect_scores():
    found = scores(CLIP, CLIP)
    assert found["psnr"] == math.inf and found["ssim"] == pytest.approx(1)
    assert found["change_ratio"] == pytest.approx(1) and found["flow_error_px"] == 0


def test_flicker_raises_the_temporal_scores_and_still_frames_lower_the_change():
    flicker = [frame + (12 if number % 2 else -12) for number, frame in enumerate(CLIP)]
    base, bad = scores(CLIP, CLIP), scores(flicker, CLIP)
    assert bad["warp_error"] > 5 * base["warp_error"] and bad["own_warp_error"] > base["own_warp_error"]
    assert bad["change_ratio"] > 1.05 and scores([CLIP[0]] * 8, CLIP)["change_ratio"] == 0
    assert scores([CLIP[0]] * 8, CLIP)["flow_error_px"] > 1


def test_key_frames_those_between_and_those_held_are_told_apart():
    kinds = ["key", "between", "key", "held", "key", "between", "key", "held"]
    off = {"key": 0, "between": 10, "held": 20}
    frames = [frame + off[kind] for frame, kind in zip(CLIP, kinds, strict=True)]
    found = scores(frames, CLIP, kind=kinds)
    assert found["psnr_key"] == math.inf and found["psnr_between"] == pytest.approx(20 * math.log10(255 / 10))
    assert found["psnr_held"] == pytest.approx(20 * math.log10(255 / 20))
    assert "psnr_key" not in scores(CLIP, CLIP)


def test_across_a_cut_nothing_is_compared():
    other = [255 - frame for frame in CLIP]
    joined = CLIP[:4] + other[:4]
    cut = [number == 4 for number in range(8)]
    assert scores(joined, joined, is_cut=cut)["own_warp_error"] < 0.1 * scores(joined, joined)["own_warp_error"]


def test_without_a_reference_only_what_needs_none():
    assert set(scores(CLIP)) == {"own_warp_error", "sharpness", "noise"}


def test_decibels_are_of_the_mean_error_and_flows_differ_by_their_length(monkeypatch):
    """Errors of 1 and 9 are a mean of 5; flows apart by (3, 4) pixels everywhere are apart by 5."""
    black = torch.zeros(1, 3, 8, 8)
    found = scores([black + 1, black + 3], [black, black])
    assert found["psnr"] == pytest.approx(10 * math.log10(255**2 / 5))
    flows = iter([torch.zeros(1, 2, 8, 8), torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)])
    monkeypatch.setattr(module, "_flow", lambda x, y: next(flows))
    assert scores([black + 1, black + 3], [black, black])["flow_error_px"] == pytest.approx(5)
