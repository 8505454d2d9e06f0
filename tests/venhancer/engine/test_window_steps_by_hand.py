"""One step of one window: what the network is given, and x_0 of what it answers, with plain numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.venhancer.networks import tiny_pipeline
from toolkit.venhancer.engine.in_flight import Flight
from toolkit.venhancer.engine.layout import plan_layout
from toolkit.venhancer.engine.settings import EnhanceSettings
from toolkit.venhancer.engine.window_steps import WindowSteps


class Source:
    """Two frames of 8 by 8 pixels."""

    num_frames, height, width = 2, 8, 8

    def frames(self, start):
        yield from np.zeros((2, 8, 8, 3), np.uint8)[start:]


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


def first_step(pipeline, folder, monkeypatch, guided=False, **changes):
    """(what the network was given, x_0 of the window) where latents are 0.5 and the network answers 3, and 1 to the
    negative prompt."""
    settings = EnhanceSettings(16, 16, frame_factor=2, noise_level=50).changed(num_steps=2, **changes)
    layout = dataclasses.replace(plan_layout(pipeline, settings, Source()), guided=guided)
    flight = Flight(folder, layout.geometry, "by hand")
    flight.latents[0].write(range(3), torch.full((3, 12, 8, 8), 0.5))
    for key in range(2):
        flight.hints.write([key], torch.full((1, 12, 8, 8), float(key)))
    given = {}

    def velocity(x, step, text, **conditions):
        given.update(conditions, x=x, step=step)
        return torch.stack([torch.full(x.shape[1:], value) for value in (3.0, 1.0)[: 1 + guided]])

    monkeypatch.setattr(pipeline, "velocity", velocity)
    WindowSteps(pipeline, settings, layout, flight).run(0, 0)
    return given, flight.window.read(range(3))


def test_the_network_is_told_level_scale_and_key_frames(pipeline, tmp_path, monkeypatch):
    given, _ = first_step(pipeline, tmp_path, monkeypatch, conditioning_scale=0.7)
    assert given["t_hint"] == 49  # level n of 1, 2, ... is the schedule's step n - 1; 0 is no noise
    assert given["conditioning_scale"] == 0.7
    assert given["up_scale"] == 2.0  # 8 pixels become 16
    assert given["key_frame_index"].tolist() == [[0, -1, 1]]
    assert given["hint"].shape == (1, 12, 2, 8, 8)
    assert given["hint"][0, 0, :, 0, 0].tolist() == [0, 1]
    assert given["x"].shape == (1, 12, 3, 8, 8)


def test_clean_key_frames_are_told_as_the_first_step(pipeline, tmp_path, monkeypatch):
    assert first_step(pipeline, tmp_path, monkeypatch, noise_level=0)[0]["t_hint"] == 0


@pytest.mark.parametrize(("strength", "step"), [(0.25, 249), (0.9, 899), (1.0, 999)])
def test_it_begins_at_the_share_of_the_noise_asked_for(pipeline, tmp_path, monkeypatch, strength, step):
    assert first_step(pipeline, tmp_path, monkeypatch, strength=strength)[0]["step"] == step


def test_a_scale_that_is_asked_for_is_told_in_the_place_of_the_true_one(pipeline, tmp_path, monkeypatch):
    assert first_step(pipeline, tmp_path, monkeypatch, scale_condition=3.5)[0]["up_scale"] == 3.5


@pytest.mark.parametrize(("scale", "guided"), [(0.5, True), (1.0, False), (7.5, True)])
def test_every_scale_but_1_takes_two_texts(pipeline, monkeypatch, scale, guided):
    settings = EnhanceSettings(16, 16, frame_factor=2).changed(guidance_scale=scale)
    assert not plan_layout(pipeline, settings, Source()).guided, "it knows no text"
    monkeypatch.setattr(type(pipeline), "has_text", True)
    assert plan_layout(pipeline, settings, Source()).guided == guided


@pytest.mark.parametrize(("guided", "v"), [(False, 3.0), (True, 1 + 2.5 * (3 - 1))])  # with w = 2.5 between 1 and 3
def test_x0_is_that_of_the_guided_velocity(pipeline, tmp_path, monkeypatch, guided, v):
    words = {"guidance_scale": 2.5, "guidance_rescale": 0.0, "strength": 0.5}
    given, x0 = first_step(pipeline, tmp_path, monkeypatch, guided=guided, **words)
    sigma = pipeline.scheduler.sigmas[given["step"]].item()
    expected = (1 - sigma**2) ** 0.5 * 0.5 - sigma * v  # alpha z - sigma v
    assert given["step"] == 499
    assert torch.allclose(x0, torch.full_like(x0, expected), atol=1e-5)


def test_every_step_and_every_frame_has_fresh_noise_of_its_own(pipeline, tmp_path, monkeypatch):
    settings = EnhanceSettings(16, 16, frame_factor=2).changed(num_steps=3, strength=0.9)  # the stochastic solver
    layout = plan_layout(pipeline, settings, Source())
    flight = Flight(tmp_path, layout.geometry, "by hand")
    monkeypatch.setattr(pipeline, "velocity", lambda x, *_, **__: torch.zeros_like(x))
    steps, noise, memory = WindowSteps(pipeline, settings, layout, flight), [], 0.0
    flight.latents[0].write(range(3), torch.full((3, 12, 8, 8), 0.5))
    for step, one in enumerate(layout.evaluations[:2]):
        z = flight.latents[step % 2].read(range(3)).clone()
        steps.run(step, 0)
        after = flight.latents[(step + 1) % 2].read(range(3))
        x0 = one.alpha * z  # of v = 0
        noise.append((after - one.keep * z - one.pull * x0 - one.recall * memory) / one.noise)
        memory = x0
    drawn = torch.cat(noise).flatten(1)  # three frames of each step
    assert abs(drawn.mean()) < 0.06 and abs(drawn.std() - 1) < 0.04  # four standard errors of 4608 values
    apart = torch.corrcoef(drawn) - torch.eye(6)
    assert apart.abs().max() < 0.15  # four standard errors of 768
