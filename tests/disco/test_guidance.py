"""LatentGuidance on a real tiny denoiser: the convention, the interval, switching, and counted evaluations."""

import pytest
import torch
from torch.nn import functional as F

from toolkit.disco.guidance import LatentGuidance
from toolkit.zoo.edm.mlp import MLPDenoiser
from toolkit.zoo.edm.samplers import edm_sigmas, heun


@pytest.fixture(scope="module")
def denoiser():
    torch.manual_seed(0)
    network = MLPDenoiser(
        sample_shape=(2,), width=16, depth=1, num_classes=3, num_latents=2, codebook_size=4, latent_width=4
    )
    torch.nn.init.normal_(network.embed_latents.weight)  # it starts at zero, where latents change nothing
    return network.eval()


X, LABELS = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1])
Z, OTHER = torch.zeros(5, 2, dtype=torch.int64), torch.full((5, 2), 3)


def branches(denoiser, latents=Z, sigma=1.0):
    with torch.no_grad():
        return denoiser(X, sigma, LABELS, latents), denoiser(X, sigma, LABELS)


@torch.no_grad()
def call(denoiser, sigma=1.0, latents=Z, **options):
    guided = LatentGuidance(denoiser, latents, LABELS, **options)
    return guided(X, sigma), guided.num_evaluations


@pytest.mark.parametrize(("cfg_scale", "evaluations"), [(0.0, 1), (-1.0, 2), (1.0, 2), (0.5, 2)])
def test_scale_zero_is_conditional_and_minus_one_is_null(denoiser, cfg_scale, evaluations):
    conditional, null = branches(denoiser)
    assert not torch.allclose(conditional, null)
    denoised, counted = call(denoiser, cfg_scale=cfg_scale)
    torch.testing.assert_close(denoised, conditional + cfg_scale * (conditional - null))
    assert counted == evaluations


def test_one_hot_and_relaxed_latents_are_guided_too(denoiser):
    one_hot = F.one_hot(Z, 4).float()
    torch.testing.assert_close(call(denoiser, latents=one_hot, cfg_scale=1.0), call(denoiser, cfg_scale=1.0))


def test_no_latents_is_the_null_branch(denoiser):
    denoised, counted = call(denoiser, latents=None)
    torch.testing.assert_close(denoised, branches(denoiser)[1])
    assert counted == 1


@pytest.mark.parametrize(("sigma", "guided"), [(0.4, False), (0.5, True), (2.0, True), (2.1, False)])
def test_guidance_acts_within_its_interval_only(denoiser, sigma, guided):
    denoised, counted = call(denoiser, sigma, cfg_scale=1.0, cfg_interval=(0.5, 2.0))
    conditional, null = branches(denoiser, sigma=sigma)
    torch.testing.assert_close(denoised, 2 * conditional - null if guided else conditional)
    assert counted == (2 if guided else 1)


def test_latents_can_be_off_at_low_noise(denoiser):
    options = {"cfg_scale": 1.0, "latents_off_below": 0.7}
    below, counted = call(denoiser, 0.69, **options)
    torch.testing.assert_close(below, branches(denoiser, sigma=0.69)[1])
    assert counted == 1 and call(denoiser, 0.7, **options)[1] == 2


def test_latents_can_be_switched(denoiser):
    options = {"switch": (OTHER, 0.7)}
    torch.testing.assert_close(call(denoiser, 0.7, **options)[0], branches(denoiser, sigma=0.7)[0])
    torch.testing.assert_close(call(denoiser, 0.6, **options)[0], branches(denoiser, OTHER, 0.6)[0])


def test_a_separate_base_model_takes_the_null_branch(denoiser):
    torch.manual_seed(1)
    base = MLPDenoiser(sample_shape=(2,), width=8, depth=1, num_classes=3).eval()
    with torch.no_grad():
        conditional, null = denoiser(X, 1.0, LABELS, Z), base(X, 1.0, LABELS)
    denoised, counted = call(denoiser, cfg_scale=1.0, null_denoiser=base)
    torch.testing.assert_close(denoised, 2 * conditional - null)
    assert counted == 2
    off, counted = call(denoiser, 0.5, latents_off_below=1.0, null_denoiser=base)
    torch.testing.assert_close(off, base(X, 0.5, LABELS))
    assert counted == 1


def test_sampling_counts_both_branches_and_a_swap_to_itself_changes_nothing(denoiser):
    sigmas = edm_sigmas(5, sigma_max=10.0)
    plain, guided, swapped = (
        LatentGuidance(denoiser, Z, LABELS, **options) for options in ({}, {"cfg_scale": 1.0}, {"switch": (Z, 1.0)})
    )
    samples = [heun(one, X * 10.0, sigmas) for one in (plain, guided, swapped)]
    assert (plain.num_evaluations, guided.num_evaluations) == (9, 18)
    assert torch.equal(samples[0], samples[2]) and not torch.allclose(samples[0], samples[1])


def test_guidance_without_latents_is_refused(denoiser):
    with pytest.raises(ValueError, match="latents"):
        LatentGuidance(denoiser, cfg_scale=1.0)
