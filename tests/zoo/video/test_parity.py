"""Our controlled video UNet gives the official VEnhancer network's outputs on the same weights.

The case is narrow (width 32, three levels); its tensors were computed with the official code in float32. Errors are
relative to the largest value. Largest ones of one evaluation, our network in float32, on processors from SSE4.1 to
AVX-512: output and base 1.6e-6, control outputs 1.2e-6, guided x0 3.5e-6. 4-step Heun, six evaluations: 1.2e-5, and
7.6e-6 with our network in float64: the official code's own.
"""

from __future__ import annotations

import copy

import pytest
import torch

import toolkit.zoo
from tests.device.placement import DEVICE, arithmetic, exact_arithmetic, placed, tolerance
from tests.zoo.golden import golden_expected, write_source
from toolkit.venhancer.model.samplers import guide, plan_evaluations, sample, sampling_times
from toolkit.venhancer.model.schedule import VideoNoiseSchedule
from toolkit.zoo.video.controlled_unet import index_of_keys
from toolkit.zoo.video.import_venhancer import import_venhancer

TOLERANCE = 1e-5  # 84 eps of float32
CONDITIONS = ("hint", "t_hint", "up_scale", "mask_cond")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("venhancer")
    notice = import_venhancer(write_source("venhancer", folder / "official"), folder / "ours")
    assert "no licence" in notice
    return placed(toolkit.zoo.load(folder / "ours")), placed(golden_expected("venhancer"))


def largest_error(ours, official):
    return ((ours - official).abs().max() / official.abs().max()).item()


def conditions(expected):
    return {name: expected[name] for name in CONDITIONS}


@pytest.mark.processor
@torch.no_grad()
def test_output_with_and_without_control(case):
    network, expected = case
    x, t, y = expected["x"], expected["t"], expected["y"]
    with arithmetic():
        output, base = network(x, t, y, **conditions(expected)), network(x, t, y)
    assert largest_error(output, expected["output"]) < tolerance(TOLERANCE)
    assert largest_error(base, expected["base_output"]) < tolerance(TOLERANCE)


@pytest.mark.processor
@torch.no_grad()
def test_later_releases_index_says_the_same_as_the_mask(case):
    network, expected = case
    given = conditions(expected)
    index = index_of_keys(given.pop("mask_cond"))
    assert index.tolist() == [[0, -1, 1, -1, 2, -1], [0, -1, 1, -1, 2, -1]]
    with arithmetic():
        output = network(expected["x"], expected["t"], expected["y"], **given, key_frame_index=index)
    assert largest_error(output, expected["output"]) < tolerance(TOLERANCE)


@pytest.mark.processor
@torch.no_grad()
def test_control_outputs(case):
    network, expected = case
    with arithmetic():
        skips, middle = network.controlnet(
            expected["x"],
            expected["t"],
            expected["y"],
            expected["hint"],
            index_of_keys(expected["mask_cond"]),
            expected["t_hint"],
            expected["up_scale"],
        )
    official_layout = [feature.flatten(0, 1).permute(0, 3, 1, 2) for feature in (skips[0], middle)]
    assert largest_error(official_layout[0], expected["control_first"]) < tolerance(TOLERANCE)
    assert largest_error(official_layout[1], expected["control_middle"]) < tolerance(TOLERANCE)


def guided(case):
    """v with guidance 7.5 and rescale 0.2, both texts in one pass."""
    network, expected = case
    texts = torch.stack([expected["y"], expected["y_negative"]], dim=1).flatten(0, 1)

    def velocity(x, t):
        v, v_negative = network(x, t, texts, **conditions(expected)).unflatten(0, (-1, 2)).unbind(1)
        return guide(v, v_negative, 7.5, 0.2)

    return velocity


@pytest.mark.processor
@torch.no_grad()
def test_guided_x0(case):
    _, expected = case
    with arithmetic():
        velocity = guided(case)(expected["x"], expected["t"])
    x0 = VideoNoiseSchedule().clean(expected["x"], velocity, expected["t"])
    assert largest_error(x0, expected["denoise_x0"]) < tolerance(TOLERANCE)


@pytest.mark.slow
@exact_arithmetic
@torch.no_grad()
def test_four_heun_steps_from_zero_snr(case):
    # in float64 rounding does not build up over the evaluations, so that the error is the same on every processor
    wide = {name: one.double() if one.is_floating_point() else one for name, one in case[1].items()}
    schedule, velocity = VideoNoiseSchedule(), guided((copy.deepcopy(case[0]).double(), wide))
    evaluations = plan_evaluations(schedule, "heun", sampling_times(4, "heun", start_step=1000))
    batch = len(wide["x"])
    x0 = sample(
        lambda z, one: one.clean(z, velocity(z, torch.full((batch,), one.step, device=DEVICE))), wide["x"], evaluations
    )
    assert largest_error(x0, wide["heun4_sample"]) < tolerance(TOLERANCE)


def test_schedule(case):
    schedule = VideoNoiseSchedule()
    assert largest_error(schedule.sigmas, case[1]["sigmas"].cpu()) < 1e-6
    assert schedule.sigmas[-1] == 1 and schedule.alphas[-1] == 0
