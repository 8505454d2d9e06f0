"""From frames to what sampling starts with, and from what is denoised to frames, with plain numbers."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from tests.venhancer.networks import tiny_pipeline
from toolkit.venhancer.engine.enhancer import Enhancer, _Run
from toolkit.venhancer.engine.settings import EnhanceSettings


class Greys:
    """Frames of 8 by 8 pixels, each of one grey g, whose latents are g / 127.5 - 1."""

    height, width = 8, 8

    def __init__(self, *greys):
        self.greys, self.num_frames = greys, len(greys)

    def frames(self, start):
        yield from [np.full((8, 8, 3), grey, np.uint8) for grey in self.greys[start:]]


@pytest.fixture(scope="module")
def latents():
    return tiny_pipeline(diffuses="latents")


def enhanced(pipeline, folder, monkeypatch, greys, x0=None, **words):
    """(what the network was given at first, the frames): it answers v = 0, or the v that says ``x0``."""
    settings = EnhanceSettings(16, 16, frame_factor=2, seed=3).changed(**{"num_steps": 1, "solver": "ddim"} | words)
    given = {}

    def velocity(x, step, text, hint, **conditions):
        given.setdefault("x", x[0].clone()), given.setdefault("hint", hint[0].clone()), given.setdefault("step", step)
        if x0 is None:
            return torch.zeros_like(x)
        sigma = pipeline.scheduler.sigmas[step].item()
        return ((1 - sigma**2) ** 0.5 * x - torch.tensor(x0)[:, None, None]) / sigma

    monkeypatch.setattr(pipeline, "velocity", velocity)
    frames = [one.frames for one in Enhancer(pipeline, settings).enhance(Greys(*greys), folder)]
    return given, np.concatenate(frames)


def test_sampling_starts_from_the_filled_in_clip_and_noise(latents, tmp_path, monkeypatch):
    noise = []
    for strength, step in ((0.9, 899), (0.3, 299)):
        given, _ = enhanced(latents, tmp_path / str(step), monkeypatch, (0, 51), strength=strength)
        sigma = latents.scheduler.sigmas[step].item()
        clip = torch.tensor([-1.0, -0.8, -0.6])[:, None, None]  # the frame between is halfway
        noise.append((given["x"] - (1 - sigma**2) ** 0.5 * clip) / sigma)
        assert given["step"] == step
    assert torch.allclose(noise[0], noise[1], atol=1e-4)  # the same whatever the strength
    assert abs(noise[0].std() - 1) < 0.05 and abs(noise[0].mean()) < 0.05  # 2304 values: standard errors 0.015, 0.02
    for a, b in ((0, 1), (1, 2)):  # and another for every frame
        assert abs(torch.corrcoef(noise[0][:, [a, b]].transpose(0, 1).flatten(1))[0, 1]) < 0.15  # four standard errors


def test_key_frames_are_noised_to_the_level_asked_for(latents, tmp_path, monkeypatch):
    clean = torch.tensor([-1.0, 1.0])[:, None, None].expand(12, 2, 8, 8)
    given, _ = enhanced(latents, tmp_path / "0", monkeypatch, (0, 255), noise_level=0)
    assert torch.equal(given["hint"], clean)
    noise = []
    for level in (1, 200):
        given, _ = enhanced(latents, tmp_path / str(level), monkeypatch, (0, 255), noise_level=level)
        sigma = latents.scheduler.sigmas[level - 1].item()  # level n of 1, 2, ... is the schedule's step n - 1
        noise.append((given["hint"] - (1 - sigma**2) ** 0.5 * clean) / sigma)
        for key in (0, 1):  # and the frame itself starts with other noise
            pair = torch.stack([noise[-1][:, key].flatten(), given["x"][:, 2 * key].flatten()])
            assert abs(torch.corrcoef(pair)[0, 1]) < 0.15
    assert torch.allclose(noise[0], noise[1], atol=2e-3)
    assert abs(noise[0].std() - 1) < 0.06 and abs(torch.corrcoef(noise[0].transpose(0, 1).flatten(1))[0, 1]) < 0.15


def test_what_the_network_says_is_what_is_seen(latents, tmp_path, monkeypatch):
    _, frames = enhanced(latents, tmp_path, monkeypatch, (0, 51), x0=[-1.0, 0.2, 0.75], num_steps=3)
    assert [(frame.min(), frame.max()) for frame in frames] == [(0, 0), (153, 153), (223, 223)]  # 127.5 (x + 1)


def test_residuals_start_without_the_clip_and_are_added_to_it(tmp_path, monkeypatch):
    pipeline = tiny_pipeline()
    first, frames = enhanced(pipeline, tmp_path / "a", monkeypatch, (0, 50), x0=[0.0, 0.0, 0.0])
    other, _ = enhanced(pipeline, tmp_path / "b", monkeypatch, (255, 255), x0=[0.0, 0.0, 0.0])
    assert first["step"] == 999 and torch.equal(first["x"], other["x"]) and abs(first["x"].std() - 1) < 0.05
    assert [(frame.min(), frame.max()) for frame in frames] == [(0, 0), (25, 25), (50, 50)]  # nothing is changed


def test_frames_wait_for_the_neighbours_that_help_to_decode_them():
    """A temporal decoder sees a frame more at either end: of five final frames four are ready, at the end all."""
    decoded = []

    def decode(frames, whole, latents):
        decoded.extend(frames)
        return np.zeros((len(frames), 8, 8, 3), np.uint8)

    run = SimpleNamespace(
        layout=SimpleNamespace(num_frames=9, evaluations=[0]),
        flight=SimpleNamespace(delivered=0, latents=[None, None], save=lambda: None),
        pipeline=SimpleNamespace(codec=SimpleNamespace(context=1)),
        settings=EnhanceSettings(8, 8),
        transcoder=SimpleNamespace(decode=decode),
    )
    for final, ready in [(0, 0), (1, 0), (5, 4), (9, 9)]:
        list(_Run._deliver(run, final))
        assert decoded == list(range(ready))


def test_reading_goes_on_at_the_first_frame_that_was_not_read():
    run = SimpleNamespace(_reader=None, source=Greys(0, 10, 20, 30, 40))
    assert [_Run._next_frame(run, key).max() for key in (3, 4)] == [30, 40]


def test_what_was_finished_before_an_interruption_is_handed_out_first():
    """Two windows of two steps: all four pairs were run and nothing was handed out."""
    windows = MagicMock(__len__=lambda self: 2, settled=lambda window: (0, (4, 7)[window]))
    for done, first in ((0, []), (3, [4]), (4, [7])):
        delivered = []
        run = SimpleNamespace(
            layout=SimpleNamespace(evaluations=[0, 1], windows=windows),
            flight=SimpleNamespace(done=done, save=lambda: None),
            steps=SimpleNamespace(run=lambda step, window: None),
            _begin=lambda window: None,
            _deliver=lambda final, delivered=delivered: delivered.append(final) or [],
        )
        list(_Run.chunks(run, None))
        assert delivered[: len(first)] == first and delivered[-1] == 7
