"""Exact scores: identities of independent conditions, through the public guider (paper, appendices A and B)."""

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance

from tests.icg.guiders.oracle import Mixture, TimedGaussian
from toolkit.icg import IndependentConditionGuidance as ICG
from toolkit.icg import TimeStepGuidance, guided_denoiser

SIGMAS = (0.3, 1.0, 3.0, 10.0)
# w = 0 leaves the weak branch alone: the public way to look at it.


@pytest.fixture
def mixture():
    """K = 5 classes of unequal weight in d = 3, means of variance 2.9 per coordinate, as the noise levels assume."""
    generator = torch.Generator().manual_seed(0)
    centres = 1.7 * torch.randn(5, 3, generator=generator, dtype=torch.float64)
    return Mixture(centres, 0.385, torch.rand(5, generator=generator, dtype=torch.float64) + 0.2)


def bank_guider(scale, labels):
    guider = ICG(scale)
    guider.set_condition_bank({"class_labels": torch.as_tensor(labels)})
    return guider


def mean_score(mixture, z, sigma, weights):
    """E_q of the weak branch's score, class by class through a bank of one row."""
    labels = torch.zeros(len(z), dtype=torch.long)
    scores = [mixture.score(z, sigma, bank_guider(0.0, [k]), labels) for k in range(mixture.num_classes)]
    return torch.stack(scores, dim=-1) @ weights


def marginal_score(mixture, z, sigma):
    labels = torch.zeros(len(z), dtype=torch.long)
    return mixture.score(z, sigma, bank_guider(0.0, [mixture.num_classes]), labels)


def test_a1_worked_value():
    """K = 2, mu = -2 and 2, V = 2, z = 2: the marginal score is -0.0359724, the mean of uniform draws -1."""
    mixture, z = Mixture([[-2.0], [2.0]], 1.0), torch.tensor([[2.0]], dtype=torch.float64)
    uniform = mixture.score(z, 1.0, ICG(0.0, num_draws=2), torch.tensor([1]))
    assert float(uniform) == pytest.approx(-1.0, abs=1e-12)
    assert float(marginal_score(mixture, z, 1.0)) == pytest.approx(-0.0359724, abs=5e-8)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_a2_bias_is_the_gradient_of_a_divergence(mixture, sigma):
    """Theorem A.2: E_q[s(z|y)] = s(z) - grad_z KL(q, p(y|z)), for any q that ignores z."""
    q = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.25], dtype=torch.float64)
    z, _ = mixture.sample(50, sigma, torch.Generator().manual_seed(1))
    z.requires_grad_()
    divergence = (q * (q.log() - mixture.posterior(z, sigma).log())).sum()
    (gradient,) = torch.autograd.grad(divergence, z)
    bias = mean_score(mixture, z.detach(), sigma, q) - marginal_score(mixture, z.detach(), sigma)
    torch.testing.assert_close(bias, -gradient, rtol=0, atol=1e-10)
    closed = (q - mixture.posterior(z, sigma)) @ mixture.centres / (mixture.variance + sigma**2)
    torch.testing.assert_close(bias, closed.detach(), rtol=0, atol=1e-10)


def test_a3_the_oracle_is_the_score(mixture):
    z, _ = mixture.sample(50, 1.0, torch.Generator().manual_seed(1))
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(z, 1.0).sum(), z)
    torch.testing.assert_close(marginal_score(mixture, z.detach(), 1.0), gradient, rtol=0, atol=1e-12)


def test_a4_posterior_draws_are_unbiased(mixture):
    """Lemma A.1, with 400,000 draws through a sampler that peeks at z."""
    sigma, num = 1.0, 400_000
    z = torch.tensor([[0.4, -0.8, 1.1]], dtype=torch.float64)
    guider = ICG(0.0)
    posterior = mixture.posterior(z, sigma).expand(num, -1)
    guider.set_condition_sampler(lambda real, draws: {"class_labels": draws.choices(posterior, 1)[:, 0]})
    scores = mixture.score(z.expand(num, -1), sigma, guider, torch.zeros(num, dtype=torch.long))
    error = (scores.mean(0) - marginal_score(mixture, z, sigma)[0]).abs()
    assert (error < 4 * scores.std(0) / num**0.5).all()


def test_a5_no_bias_on_average_but_at_every_point(mixture):
    """q = pi, z from p_t: the mean bias is 0, the pointwise one larger than the score itself at low noise."""
    relative = []
    for sigma in SIGMAS:
        z, _ = mixture.sample(40_000, sigma, torch.Generator().manual_seed(2))
        score = marginal_score(mixture, z, sigma)
        bias = mean_score(mixture, z, sigma, mixture.weights) - score
        assert (bias.mean(0).abs() < 4 * bias.std(0) / len(z) ** 0.5).all()
        relative.append(float((bias.square().mean() / score.square().mean()).sqrt()))
    # 2.47, 1.42, 0.29, 0.029 for unit-scale mixtures like this one: large, then falling as the variance over sigma^2
    assert relative[0] > 1.5 and relative[1] > 0.9 and 0.1 < relative[2] < 0.5 and 0.01 < relative[3] < 0.05
    assert relative[2] / relative[3] == pytest.approx(10, rel=0.25)


def test_a6_the_prior_is_the_best_blind_q(mixture):
    """Mean squared error of E_q[s] to s: least for q = pi; a single draw has the variance of the class means."""
    sigma, uniform = 1.0, torch.full((5,), 0.2, dtype=torch.float64)
    z, _ = mixture.sample(40_000, sigma, torch.Generator().manual_seed(3))
    score = marginal_score(mixture, z, sigma)
    other = torch.tensor([0.45, 0.05, 0.3, 0.15, 0.05], dtype=torch.float64)
    errors = [
        (mean_score(mixture, z, sigma, q) - score).square().sum(1).mean() for q in (mixture.weights, uniform, other)
    ]
    assert errors[0] < errors[1] and errors[0] < errors[2]
    guider = ICG(0.0, class_probabilities=mixture.weights.tolist())
    single = mixture.score(z, sigma, guider, torch.zeros(len(z), dtype=torch.long))
    variance = (single - mean_score(mixture, z, sigma, mixture.weights)).square().sum(1).mean()
    spread = (mixture.weights @ (mixture.centres - mixture.weights @ mixture.centres).square()).sum()
    assert float(variance) == pytest.approx(float(spread) / (mixture.variance + sigma**2) ** 2, rel=0.02)


def test_a7_effective_scale(mixture):
    """c minus the mean over all K is (1 - 1/K) times c minus the mean over the others, exactly."""
    z, labels = mixture.sample(200, 1.0, torch.Generator().manual_seed(4))
    conditional = mixture.score(z, 1.0, ICG(1.0), labels)
    over_all = mixture.score(z, 1.0, ICG(0.0, num_draws=5), labels)
    over_others = mixture.score(z, 1.0, ICG(0.0, num_draws=4, exclude_own=True), labels)
    torch.testing.assert_close(conditional - over_all, 0.8 * (conditional - over_others), rtol=0, atol=1e-12)


def test_a8_with_the_exact_marginal_it_is_classifier_free_guidance(mixture):
    z, labels = mixture.sample(200, 1.0, torch.Generator().manual_seed(5))
    null = torch.full_like(labels, mixture.num_classes)
    icg = guided_denoiser(mixture, bank_guider(3.0, [mixture.num_classes]), labels)(z, 1.0)
    cfg = guided_denoiser(mixture, ClassifierFreeGuidance(3.0), labels, null={"class_labels": null})(z, 1.0)
    assert torch.equal(icg, cfg)


def test_single_draw_variance_falls_with_the_number_of_draws(mixture):
    """Distinct draws: the variance of the mean is that of sampling without replacement, S^2 / n (1 - n / K)."""
    z = torch.zeros(100_000, 3, dtype=torch.float64)
    labels, total = torch.zeros(len(z), dtype=torch.long), mixture.variance + 1
    spread = mixture.centres.var(0).sum() / total**2
    for num in (1, 2, 4):
        scores = mixture.score(z, 1.0, ICG(0.0, num_draws=num), labels)
        assert float(scores.var(0).sum()) == pytest.approx(float(spread / num * (1 - num / 5)), rel=0.03)


def test_two_gaussians_of_appendix_b():
    """The direction is 0 for the own class and (mu0 - mu1) / (1 + sigma^2) for the other one."""
    mixture = Mixture([[1.0, 0.0], [-1.0, 2.0]], 1.0)
    z = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels, sigma = torch.zeros(64, dtype=torch.long), 0.7
    direction = mixture.score(z, sigma, ICG(2.0), labels) - mixture.score(z, sigma, ICG(1.0), labels)
    step = (mixture.centres[0] - mixture.centres[1]) / (1 + sigma**2)
    own = direction.abs().sum(1) < 1e-9
    assert 16 < own.sum() < 48
    torch.testing.assert_close(direction[~own], step.expand(int((~own).sum()), -1), rtol=0, atol=1e-9)


def test_tsg_on_a_gaussian_follows_its_second_order_formula():
    """E[D_hat] - D = (w-1) d^2 v (mu-z) / (v+tau)^3, Var = (w-1)^2 d^2 v^2 (mu-z)^2 / (v+tau)^4 to leading order."""
    v, tau, z, mu, w, d, num = 0.25, 0.5, 2.0, 0.7, 2.5, 0.02, 3_000_000
    model = TimedGaussian(mu, v)
    x = torch.full((num, 1), z, dtype=torch.float64)
    guider = TimeStepGuidance(w, noise_scale=d, alpha=0.0, std_scaling=False)
    change = guided_denoiser(model, guider)(x, tau**0.5) - model(x[:1], tau**0.5)
    mean, variance = float(change.mean()), float(change.var())
    expected_mean = (w - 1) * d**2 * v * (mu - z) / (v + tau) ** 3
    expected_variance = ((w - 1) * d * v * (mu - z)) ** 2 / (v + tau) ** 4
    assert mean == pytest.approx(expected_mean, abs=4 * (variance / num) ** 0.5) and mean == pytest.approx(
        -4.6e-4, rel=0.1
    )
    assert variance == pytest.approx(expected_variance, rel=0.02) and variance == pytest.approx(3.0e-4, rel=0.02)
