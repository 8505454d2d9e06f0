"""What guidance does to a whole trajectory on exact scores: closed forms, and the measured table.

Two classes at -1 and 1 of variance 0.25, target 1, Euler on EDM's grid of 200 steps. ICG shifts the mean to
w mu_y + (1 - w) mean(mu) and does not shrink the variance; classifier-free guidance does neither.
"""

from itertools import pairwise

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance

from tests.icg.guiders.oracle import Mixture, TimedGaussian, euler
from toolkit.icg import IndependentConditionGuidance as ICG
from toolkit.icg import TimeStepGuidance, guided_denoiser
from toolkit.zoo.edm.samplers import edm_sigmas

NUM = 20_000


def trajectory(guider, num_steps=200, num=NUM, mixture=None, label=1, **options):
    """(mean, variance) of the target class's samples."""
    mixture = mixture or Mixture([[-1.0], [1.0]], 0.25)
    sigmas = edm_sigmas(num_steps - 1)[:-1]
    x = 80 * torch.randn(num, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.full((num,), label)
    if isinstance(guider, ClassifierFreeGuidance):
        options["null"] = {"class_labels": torch.full_like(labels, mixture.num_classes)}
    samples = euler(guided_denoiser(mixture, guider, labels, **options), x, sigmas)
    return float(samples.mean()), float(samples.var())


def near(measured, mean, variance):
    assert measured[0] == pytest.approx(mean, abs=0.04)
    assert measured[1] == pytest.approx(variance, rel=0.05)


def test_unguided():
    near(trajectory(ICG(1.0)), 0.990, 0.246)


@pytest.mark.parametrize(("scale", "mean", "variance"), [(1.5, 1.182, 0.157), (3.0, 1.514, 0.094)])
def test_classifier_free_guidance_sharpens(scale, mean, variance):
    near(trajectory(ClassifierFreeGuidance(scale)), mean, variance)


@pytest.mark.parametrize(
    ("scale", "mean", "per_step", "fixed"), [(1.5, 1.487, 0.249, 0.496), (3.0, 2.978, 0.300, 4.211)]
)
def test_icg_shifts_the_mean_alone(scale, mean, per_step, fixed):
    near(trajectory(ICG(scale, num_draws=2)), mean, 0.246)
    near(trajectory(ICG(scale)), mean, per_step)
    measured = trajectory(ICG(scale, resample="run"), num_steps=100, num=100_000)
    near(measured, scale * 0.99, 0.25 + (scale - 1) ** 2)
    assert measured[1] == pytest.approx(fixed, rel=0.05)


@pytest.mark.parametrize(("scale", "mean"), [(1.5, 1.984), (3.0, 4.966)])
def test_own_class_excluded_doubles_the_step(scale, mean):
    near(trajectory(ICG(scale, exclude_own=True)), mean, 0.246)


@pytest.mark.parametrize(("scale", "mean", "variance"), [(1.5, 1.182, 0.158), (3.0, 1.516, 0.100)])
def test_posterior_draws_are_classifier_free_guidance(scale, mean, variance):
    """Lemma A.1 along the whole trajectory: the sampler sees z through the denoiser's last call."""
    mixture, seen = Mixture([[-1.0], [1.0]], 0.25), {}
    guider = ICG(scale)

    def posterior(real, draws):
        return {"class_labels": draws.choices(mixture.posterior(seen["x"], seen["sigma"]), 1)[:, 0]}

    guider.set_condition_sampler(posterior)
    denoise = guided_denoiser(mixture, guider, torch.ones(NUM, dtype=torch.long))

    def watched(x, sigma):
        seen.update(x=x, sigma=sigma)
        return denoise(x, sigma)

    x = 80 * torch.randn(NUM, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    samples = euler(watched, x, edm_sigmas(199)[:-1])
    near((float(samples.mean()), float(samples.var())), mean, variance)


def test_noise_of_single_draws_fades_with_the_steps():
    """Excess variance at w = 3 for 25 to 200 steps: 0.44, 0.22, 0.106, 0.054, halving with each doubling."""
    excess = []
    for num_steps, expected in ((25, 0.44), (50, 0.22), (100, 0.106), (200, 0.054)):
        single = trajectory(ICG(3.0), num_steps, num=40_000)[1]
        excess.append(single - trajectory(ICG(3.0, num_draws=2), num_steps, num=40_000)[1])
        assert excess[-1] == pytest.approx(expected, rel=0.15)
    for more, less in pairwise(excess):
        assert more / less == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize(("low", "icg", "cfg"), [(0.5, 2.39, 1.51), (1, 1.87, 1.49), (2, 1.46, 1.37), (4, 1.22, 1.21)])
def test_an_interval_removes_the_overshoot(low, icg, cfg):
    """Guiding only sigma >= low at w = 3: the two methods meet as the low noise levels are left out."""
    assert trajectory(ICG(3.0, sigma_min=low, num_draws=2))[0] == pytest.approx(icg, abs=0.04)
    scheduled = Mixture([[-1.0], [1.0]], 0.25)
    sigmas = edm_sigmas(199)[:-1]
    x = 80 * torch.randn(NUM, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.ones(NUM, dtype=torch.long)
    null = {"class_labels": torch.full_like(labels, 2)}
    guided = guided_denoiser(scheduled, ClassifierFreeGuidance(3.0), labels, null=null)
    samples = euler(lambda z, sigma: guided(z, sigma) if sigma >= low else scheduled(z, sigma, labels), x, sigmas)
    assert float(samples.mean()) == pytest.approx(cfg, abs=0.04)


def test_minority_class():
    """0.1 N(-5, 0.1) + 0.9 N(5, 0.1), target the minority: drawing from the prior overshoots more than uniformly."""
    mixture = Mixture([[-5.0], [5.0]], 0.1, [0.1, 0.9])
    uniform = trajectory(ICG(2.0), mixture=mixture, label=0)
    prior = trajectory(ICG(2.0, class_probabilities=[0.1, 0.9]), mixture=mixture, label=0)
    assert uniform[0] == pytest.approx(2 * -5 - 0, abs=0.15)
    assert prior[0] == pytest.approx(2 * -5 - (0.1 * -5 + 0.9 * 5), abs=0.15)


def test_tsg_is_nearly_inert_on_exact_scores():
    """Its gain on real networks is an effect of the networks: here mean and variance stay where they were."""
    model, sigmas = TimedGaussian(0.7, 0.25), edm_sigmas(199)[:-1]
    x = 80 * torch.randn(NUM, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = euler(model, x, sigmas)
    noisy = euler(guided_denoiser(model, TimeStepGuidance(2.5, 0.02, 0.0, std_scaling=False, sigma_min=1.0)), x, sigmas)
    assert float(noisy.mean()) == pytest.approx(float(plain.mean()), abs=0.02)
    assert float(noisy.var()) == pytest.approx(float(plain.var()), rel=0.05)
