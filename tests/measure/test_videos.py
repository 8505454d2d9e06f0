import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from tests.data import videos
from toolkit.errors import UserError
from toolkit.measure.videos import VideoPlan, VideoSet, measure_videos


class Toy(torch.nn.Module):
    """Called as StyleGAN-V's network is: (1, 3, frames, H, W) of values up to 255."""

    def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
        assert rescale and resize and return_features
        assert x.shape[:2] == (1, 3)
        return torch.stack([x.mean(), x[:, 0].std(), x[:, :, -1].mean() - x[:, :, 0].mean()])[None]


def clips(num, seed, frames=11):
    draw = np.random.RandomState(seed)
    return (draw.uniform(0, 1, (num, 1, 1, 1, 1)) * draw.randint(0, 256, (num, frames, 12, 12, 3))).astype(np.uint8)


@pytest.fixture
def sets(tmp_path):
    torch.jit.script(Toy()).save(str(tmp_path / "i3d.pt"))
    for name, made in (("generated", clips(12, 0)), ("real", clips(6, 1))):
        np.savez(tmp_path / f"{name}.npz", made)
    return tmp_path


def fvd(x, y):
    """iVideoGPT's evaluation: covariance over n."""

    def features(of):
        of = of.astype(np.float64)
        last = of[:, -1].mean((1, 2, 3)) - of[:, 0].mean((1, 2, 3))
        red = of[..., 0].reshape(len(of), -1)
        return np.stack([of.mean((1, 2, 3, 4)), red.std(1, ddof=1), last], 1)

    f, g = features(x), features(y)
    sigma_f, sigma_g = np.cov(f, rowvar=False, bias=True), np.cov(g, rowvar=False, bias=True)
    root = scipy.linalg.sqrtm(sigma_f @ sigma_g)
    return float(np.real(np.square(f.mean(0) - g.mean(0)).sum() + np.trace(sigma_f + sigma_g - 2 * root)))


def test_fvd_is_the_official_formula(sets):
    measure_videos(VideoPlan(sets / "generated.npz", sets / "real.npz", sets / "i3d.pt"), sets / "out.json")
    found = json.loads((sets / "out.json").read_text())
    assert found["metrics"]["fvd"] == pytest.approx(fvd(clips(12, 0), clips(6, 1)), rel=1e-4)
    assert (found["num_generated"], found["num_reference"]) == (12, 6) and len(found["i3d_sha256"]) == 64


def test_of_several_samples_the_best_counts(sets):
    real = clips(6, 1).astype(np.int16)
    near = np.clip(real + 2 * np.arange(11)[:, None, None, None] + 1, 0, 255)  # each frame is further off than the last
    np.savez(sets / "two.npz", np.concatenate([clips(6, 5), near]).astype(np.uint8))
    measure_videos(VideoPlan(sets / "two.npz", sets / "real.npz", paired=True), sets / "out.json")
    error = (((near - real) / 255.0) ** 2).mean((2, 3, 4))
    psnr = (-10 * np.log10(error + 1e-8)).mean(1).mean()
    found = json.loads((sets / "out.json").read_text())["metrics"]
    assert found["psnr"] == pytest.approx(psnr, rel=1e-9) and 0.8 < found["ssim"] < 1 and "fvd" not in found


class HalfDifference(torch.nn.Module):
    """In the place of LPIPS: half of the mean absolute difference of images (n, 3, H, W) in [0, 1]."""

    shift = torch.zeros(1)

    def forward(self, x, y):
        assert x.dtype == torch.float32 and x.max() <= 1
        return (x - y).abs().mean((1, 2, 3)) / 2


def test_of_lpips_the_smallest_counts(sets, monkeypatch):
    monkeypatch.setattr("toolkit.measure.videos.load_lpips", lambda path, key: HalfDifference())
    real, far = clips(6, 1), clips(6, 5)
    np.savez(sets / "two.npz", np.concatenate([far, real]))
    measure_videos(VideoPlan(sets / "two.npz", sets / "real.npz", paired=True, lpips=sets), sets / "out.json")
    assert json.loads((sets / "out.json").read_text())["metrics"]["lpips"] == 0
    np.savez(sets / "far.npz", far)
    measure_videos(VideoPlan(sets / "far.npz", sets / "real.npz", paired=True, lpips=sets), sets / "out.json")
    expected = np.abs(far.astype(float) - real).mean() / 255 / 2
    assert json.loads((sets / "out.json").read_text())["metrics"]["lpips"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match="--lpips compares clip with clip: give --paired too"):
        measure_videos(VideoPlan(sets / "far.npz", sets / "real.npz", sets / "i3d.pt", lpips=sets))


def test_video_files_are_read_as_they_are(tmp_path):
    for folder in ("generated", "real"):
        (tmp_path / folder).mkdir()
        videos.write(tmp_path / folder / "a.mp4", videos.moving(4, 32, 24))
    (clip,) = VideoSet(tmp_path / "real", num_frames=3)
    assert clip.shape == (3, 3, 24, 32) and clip.dtype == torch.uint8
    whole = clips(2, 3)
    np.savez(tmp_path / "some.npz", whole)
    first = torch.stack(list(VideoSet(tmp_path / "some.npz", num_frames=4)))
    assert torch.equal(first, torch.from_numpy(whole[:, :4]).permute(0, 1, 4, 2, 3))
    measure_videos(VideoPlan(tmp_path / "generated", tmp_path / "real", paired=True), tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())["metrics"]
    assert found == pytest.approx({"psnr": 80, "ssim": 1})  # equal clips: the error is the epsilon alone


def test_bad_input_is_named(sets):
    for plan, match in (
        (VideoPlan(sets / "generated.npz", sets / "real.npz"), "nothing to measure: give --i3d"),
        (VideoPlan(sets / "generated.npz", sets / "real.npz", sets / "no.pt"), "no.pt: no such file"),
        (VideoPlan(sets / "generated.npz", sets / "real.npz", sets / "real.npz"), "real.npz: not a TorchScript file"),
        (VideoPlan(sets / "real.npz", sets / "generated.npz", paired=True), "6 clips for 12; expected a multiple"),
        (VideoPlan(sets / "real.npz", sets / "real.npz", sets / "i3d.pt", num_frames=9), "I3D takes 10 or more"),
        (VideoPlan(sets / "real.npz", Path("nowhere"), paired=True), "videos=nowhere: no such folder"),
    ):
        with pytest.raises(UserError, match=match):
            measure_videos(plan)
