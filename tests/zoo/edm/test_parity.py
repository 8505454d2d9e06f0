"""Our UNets give the official EDM networks' outputs on the same weights.

edm_adm and edm_ddpmpp: ADM with labels, DDPM++ without. edm_ncsnpp: NCSN++ with labels, fourier embedding, residual
encoder, output skips, a [1, 3, 3, 1] filter and channel multipliers 2, 1, 3. The expected tensors were computed with
the official code in float32. Largest errors measured on a CPU, 1 thread (denoised; 6-step Heun):
edm_adm 7.0e-7; 3.6e-6. edm_ddpmpp 8.0e-7; 5.7e-6. edm_ncsnpp 8.4e-7; 4.8e-6.
"""

from __future__ import annotations

import pytest
import torch

import toolkit.zoo
from tests.device.placement import arithmetic, exact_arithmetic, placed, tolerance
from tests.zoo.golden import golden_expected, write_source
from toolkit.zoo.edm.import_edm import import_edm
from toolkit.zoo.edm.samplers import edm_sigmas, heun

pytestmark = pytest.mark.processor
CASES = ["edm_adm", "edm_ddpmpp", "edm_ncsnpp"]
TOLERANCE = 1e-4  # what we promise; ten times the largest error seen would do


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    import_edm(write_source(request.param, tmp_path / "official"), tmp_path / "ours")
    return placed(toolkit.zoo.load(tmp_path / "ours")), placed(golden_expected(request.param))


def largest_error(ours: torch.Tensor, official: torch.Tensor) -> float:
    return (ours - official).abs().max().item()


@torch.no_grad()
def test_denoised_images(case):
    denoiser, expected = case
    with arithmetic():
        denoised = denoiser(expected["x"], expected["sigma"], expected.get("class_labels"))
    assert largest_error(denoised, expected["denoised"]) < tolerance(TOLERANCE)


def test_heun_ode(case):
    denoiser, expected = case
    labels = expected.get("class_labels")
    with arithmetic():
        samples = heun(lambda x, sigma: denoiser(x, sigma, labels), expected["latents"] * 80.0, edm_sigmas(6))
    assert samples.dtype == torch.float64
    assert largest_error(samples, expected["heun6"]) < tolerance(TOLERANCE)


@exact_arithmetic
@torch.no_grad()
def test_labels_as_numbers_are_the_one_hot_ones(case):
    denoiser, expected = case
    if not denoiser.num_classes:
        pytest.skip("unconditional")
    one_hot = expected["class_labels"]
    numbers = denoiser(expected["x"], expected["sigma"], one_hot.argmax(dim=1))
    assert torch.equal(numbers, denoiser(expected["x"], expected["sigma"], one_hot))
