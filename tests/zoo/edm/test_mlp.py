"""The MLP denoisers: shapes, conditioning, step-0 equality, saved copies, and the plateau a baseline must leave."""

import math

import pytest
import torch

from toolkit.zoo.edm.denoiser import Denoiser
from toolkit.zoo.edm.mlp import MLPDenoiser, NoiseFeatures, ToyScoreDenoiser

RING_STD = 2.13  # per coordinate: sqrt(3^2 / 2 + 0.2^2)


def ring(num, generator):
    """The paper's toy: eight Gaussians of deviation 0.2 on a circle of radius 3."""
    angle = torch.randint(8, (num,), generator=generator) * (math.pi / 4)
    return 3 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.2 * torch.randn(num, 2, generator=generator)


def weighted_loss(network, num, generator, **conditions):
    """EDM loss: 1 for the linear denoiser at large and small sigma (Karras et al. 2022, eq. 8)."""
    y, sigma = ring(num, generator), (1.5 * torch.randn(num, generator=generator)).exp()
    denoised = network(y + sigma[:, None] * torch.randn(num, 2, generator=generator), sigma, **conditions)
    weight = 1 / sigma.square() + 1 / RING_STD**2
    return (weight[:, None] * (denoised - y).square()).mean()


def train(network, steps, batch_size=128):
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, fused=True)
    for _ in range(steps):
        loss = weighted_loss(network, batch_size, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return weighted_loss(network, 20_000, torch.Generator().manual_seed(1)).item()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_baseline_leaves_the_linear_plateau(seed):
    torch.manual_seed(seed)
    assert train(MLPDenoiser(sample_shape=(2,), width=64, depth=2, sigma_data=RING_STD), 1500) < 0.82


def test_the_toy_network_learns_the_ring_too():
    torch.manual_seed(0)
    assert train(ToyScoreDenoiser(sample_shape=(2,), width=64), 1500) < 0.9


def latent_network(kind=MLPDenoiser, **options):
    torch.manual_seed(0)
    sizes = {"width": 16} if kind is ToyScoreDenoiser else {"width": 16, "depth": 2, "latent_width": 4}
    return kind(sample_shape=(2,), num_latents=2, codebook_size=3, **sizes, **options)


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)])
def test_any_sample_shape_and_every_form_of_sigma(shape):
    network, x = MLPDenoiser(sample_shape=shape, width=16, depth=2), torch.randn(5, *shape)
    assert isinstance(network, Denoiser) and network.shape == shape
    from_number = network(x, 0.7)
    assert from_number.shape == x.shape and from_number.dtype == torch.float32
    torch.testing.assert_close(network(x, torch.tensor(0.7)), from_number)
    torch.testing.assert_close(network(x.double(), torch.full((5,), 0.7)), from_number)


@pytest.mark.parametrize("kind", [MLPDenoiser, ToyScoreDenoiser])
def test_latents_reach_the_output_and_all_parameters_the_loss(kind):
    network, x = latent_network(kind), torch.randn(4, 2)
    if kind is MLPDenoiser:
        torch.nn.init.normal_(network.embed_latents.weight)
    codes, drop = torch.tensor([[0, 1], [1, 2], [2, 0], [1, 1]]), torch.tensor([True, False, False, False])
    denoised = network(x, 1.0, latents=codes, drop=drop)
    assert torch.equal(denoised[0], network(x, 1.0)[0])
    assert not torch.isclose(denoised[1:], network(x, 1.0)[1:]).all(dim=1).any()
    denoised.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_the_gain_of_the_input_takes_noise_away_in_more_directions_than_the_width():
    """Samples of 64 numbers on a line: without the gain, noise outside of 8 directions cannot be told from samples."""
    line, errors = torch.randn(64, generator=torch.Generator().manual_seed(0)), {}
    for has_gain in (False, True):
        torch.manual_seed(0)
        network = MLPDenoiser(sample_shape=(64,), width=8, depth=1, input_gain=has_gain, sigma_data=1.0)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, fused=True)
        for _ in range(300):
            y = torch.randn(64, 1) * line
            loss = (network(y + 0.3 * torch.randn_like(y), 0.3) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        errors[has_gain] = loss.item()
    # what c_skip leaves of noise of variance 0.09 in the other 56 directions, at least
    assert errors[False] > 56 / 64 * 0.09 / 1.09**2 * 0.9 and errors[True] < errors[False] / 5


def test_the_gain_is_zero_at_first_and_scales_the_input():
    torch.manual_seed(0)
    network, x = MLPDenoiser(sample_shape=(2,), width=8, depth=1, input_gain=True), torch.randn(3, 2)
    torch.manual_seed(0)
    assert torch.equal(network(x, 1.0), MLPDenoiser(sample_shape=(2,), width=8, depth=1)(x, 1.0))
    before = network(x, 1.0)
    torch.nn.init.constant_(network.gain.bias, -0.5)
    c_out_times_c_in = 0.5 / (1 + 0.5**2)  # sigma 1, sigma_data 0.5
    torch.testing.assert_close(network(x, 1.0), before - 0.5 * c_out_times_c_in * x)


def test_latents_added_to_a_base_change_nothing_at_first():
    torch.manual_seed(0)
    base, x, sigma = MLPDenoiser(sample_shape=(2,), width=16, num_classes=3), torch.randn(4, 2), torch.rand(4) + 0.1
    network = Denoiser.from_base(base, num_latents=2, codebook_size=5)
    labels, codes = torch.tensor([0, 1, 2, 0]), torch.randint(5, (4, 2))
    assert torch.equal(network(x, sigma, labels, codes), base(x, sigma, labels))
    network(x, sigma, labels, codes).square().sum().backward()
    assert network.embed_latents.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="latent_film"):
        Denoiser.from_base(base, num_latents=2, codebook_size=5, latent_film=True)


def test_without_latents_there_is_no_extra_parameter():
    names = {name for name, _ in MLPDenoiser(sample_shape=(2,)).named_parameters()}
    assert not any("latent" in name for name in names)
    with pytest.raises(ValueError, match="latents"):
        MLPDenoiser(sample_shape=(2,))(torch.randn(1, 2), 1.0, latents=torch.zeros(1, 1, dtype=torch.int64))


def test_the_toy_form_is_exact_when_its_parts_are():
    """With F(z) the centre of the component and H zero, D is the posterior mean of that component."""
    network, x, t = ToyScoreDenoiser(num_latents=1, codebook_size=2), torch.randn(3, 2), 1.7
    torch.nn.init.zeros_(network.body[-1].weight)
    codes = torch.tensor([[0], [1], [1]])
    centre = network.latent_embedding[0].maps.weight[0][codes[:, 0]]
    score = (centre - x) / (t**2 + 0.2**2)
    torch.testing.assert_close(network(x, t, latents=codes), x + t**2 * score)


def test_the_toy_form_is_the_identity_without_noise_and_takes_no_classes():
    network, x = ToyScoreDenoiser(num_latents=1, codebook_size=2), torch.randn(3, 2)
    torch.testing.assert_close(network(x, 1e-4), x, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="num_classes"):
        ToyScoreDenoiser(num_classes=2)
    with pytest.raises(ValueError, match="class_labels"):
        network(x, 1.0, class_labels=torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("kind", [MLPDenoiser, ToyScoreDenoiser])
def test_saved_networks_come_back_the_same(kind, tmp_path):
    network, x, codes = latent_network(kind).eval(), torch.randn(3, 2), torch.randint(3, (3, 2))
    network.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert torch.equal(loaded(x, 0.5, latents=codes), network(x, 0.5, latents=codes))


def test_the_signal_keeps_its_scale_at_initialisation():
    torch.manual_seed(0)
    for depth in (1, 4, 16):
        network = MLPDenoiser(sample_shape=(1, 8, 8), width=128, depth=depth)
        output = network._network(torch.randn(256, 1, 8, 8), torch.randn(256) * 0.3, None, None)
        assert 0.6 < output.std().item() < 2.5, depth


def test_noise_features_tell_levels_apart():
    features = NoiseFeatures()(torch.linspace(math.log(0.002) / 4, math.log(80) / 4, 200))
    gaps = torch.cdist(features, features) + torch.eye(200) * 100
    assert gaps.min().item() > 0.05
    assert features.square().mean().item() == pytest.approx(1, abs=0.01)
