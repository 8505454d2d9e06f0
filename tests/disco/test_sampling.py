"""Sampling: deterministic, honest about evaluations, and every source of latents."""

import dataclasses

import pytest
import torch

from tests.disco import tiny
from toolkit.disco.artefact import Parts
from toolkit.disco.build import build_denoiser, build_encoder, build_prior
from toolkit.disco.config import Sampling
from toolkit.disco.sampling import draw_latents, draw_samples
from toolkit.errors import UserError
from toolkit.zoo.edm import samplers


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    config, data = tiny.config(tiny.mlp()), tiny.images()
    built = Parts(build_denoiser(config, data), build_encoder(config, data), build_prior(config, data))
    with torch.no_grad():  # let z matter
        built.denoiser.embed_latents.weight.normal_()
        built.prior.head.weight.normal_()
    for part in (built.denoiser, built.encoder, built.prior):
        part.eval()
    return built


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def sample(parts, latents, **changes):
    more = {key: changes.pop(key) for key in ("num_evaluations", "switch") if key in changes}
    sampling = dataclasses.replace(Sampling(num_steps=4, batch_size=3), **changes)
    return draw_samples(parts.denoiser, latents, 5, sampling, rng(), **more)


def test_same_seed_same_samples_clamped_and_batches_do_not_matter(parts):
    z = draw_latents(parts, 5, Sampling(), rng())
    x, evaluations = sample(parts, z)
    assert x.shape == (5, 1, 8, 8) and x.abs().max() <= 1 and evaluations == 7
    assert torch.equal(sample(parts, z)[0], x)
    assert torch.allclose(sample(parts, z, batch_size=5)[0], x, atol=2e-2)


def test_z_changes_the_sample_and_a_switch_to_itself_does_not(parts):
    z = torch.zeros(5, 2, dtype=torch.int64)
    x, _ = sample(parts, z)
    assert not torch.allclose(sample(parts, z + 1)[0], x, atol=1e-3)
    assert torch.equal(sample(parts, z, switch=(z, 1.0))[0], x)
    assert torch.equal(sample(parts, z, switch=(z + 1, 1e9))[0], sample(parts, z + 1)[0])


def test_guided_budgets_halve_the_steps(parts):
    z = torch.zeros(5, 2, dtype=torch.int64)
    assert sample(parts, z, num_evaluations=35)[1] == 35
    assert sample(parts, z, num_evaluations=35, cfg_scale=1.0)[1] <= 35
    assert sample(parts, None, num_evaluations=35)[1] == 35
    assert torch.allclose(sample(parts, z, cfg_scale=-1.0)[0], sample(parts, None)[0], atol=2e-2)
    inside = sample(parts, z, cfg_scale=1.0, cfg_interval=[0.1, 5.0])[1]
    assert 7 < inside < 14


def test_the_solver_is_told_what_the_config_says(parts, monkeypatch):
    told = []
    monkeypatch.setattr(samplers, "heun_churn", lambda network, x, sigmas, churn, generator: told.append(churn) or x)
    sample(parts, None, solver="churn", churn=7.0)
    assert set(told) == {7.0}


def test_late_switch_off_is_the_null_branch_when_it_covers_everything(parts):
    z = torch.zeros(5, 2, dtype=torch.int64)
    assert torch.equal(sample(parts, z, latents_off_below=1e9)[0], sample(parts, None)[0])


def test_sources_of_latents(parts):
    fixed = draw_latents(parts, 3, Sampling(latents="fixed", fixed=[2, 1]), rng())
    assert fixed.tolist() == [[2, 1]] * 3
    kept = draw_latents(parts, 50, Sampling(prefix=[1]), rng())
    assert (kept[:, 0] == 1).all() and len(kept[:, 1].unique()) > 1
    y, _ = tiny.images().train.all()
    oracle = draw_latents(parts, len(y), Sampling(), rng(), "oracle", data=(y, None))
    assert oracle.shape == (len(y), 2) and oracle.max() < 3
    uniform = draw_latents(parts, 3000, Sampling(), rng(), "uniform")
    assert torch.bincount(uniform[:, 0]).min() > 900
    cold = draw_latents(parts, 50, Sampling(temperature=1e-3), rng())
    assert len(cold.unique(dim=0)) == 1


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(latents="fixed", fixed=[1]), r"sampling\.fixed=\[1\]: 1 codes; needs 2"),
        (Sampling(latents="fixed", fixed=[1, 3]), r"sampling\.fixed=\[1, 3\]: codes must be from 0 to 2"),
        (Sampling(prefix=[0, 1]), r"sampling\.prefix=\[0, 1\]: 2 codes; needs 1 to 1"),
    ],
)
def test_codes_that_do_not_fit_are_named(parts, sampling, message):
    with pytest.raises(UserError, match=message):
        draw_latents(parts, 2, sampling, rng())


def test_without_a_prior_the_other_sources_are_named(parts):
    with pytest.raises(UserError, match="no prior was trained"):
        draw_latents(Parts(parts.denoiser, parts.encoder), 2, Sampling(), rng())
