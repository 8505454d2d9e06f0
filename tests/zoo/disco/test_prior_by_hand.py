"""The prior over continuous latents against Karras et al. 2022, eq. 8 and table 1, written out."""

import pytest
import torch

from toolkit.zoo.disco import prior as room
from toolkit.zoo.disco.prior import AutoregressivePrior, LatentDiffusionPrior


class Half(torch.nn.Module):
    """A denoiser that answers half of its input, and notes the noise levels."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))  # a network lies where its weights lie

    def forward(self, x, sigma, class_labels=None):
        self.seen = sigma
        return x / 2


@pytest.fixture
def prior():
    made = LatentDiffusionPrior(num_latents=2, codebook_size=3, width=8, depth=1)
    made.denoiser = Half()
    return made


def test_the_loss_and_its_noise_levels(prior):
    torch.manual_seed(0)
    y, noise = torch.randn(4, 2, 3), torch.randn(4, 7)
    loss = prior.loss(y, noise=noise)
    sigma_data = prior.config.sigma_data
    sigma = torch.exp(1.2 * noise[:, 0] - 0.4) * sigma_data / 0.5
    assert torch.allclose(prior.denoiser.seen, sigma)
    total = 0.0
    for row in range(4):
        clean, s = y[row].flatten(), sigma[row]
        weight = (s**2 + sigma_data**2) / (s * sigma_data) ** 2
        total += float(weight * ((clean + s * noise[row, 1:]) / 2 - clean).square().mean())
    assert float(loss) == pytest.approx(total / 4, rel=1e-5)


def test_temperature_scales_the_first_noise(prior, monkeypatch):
    monkeypatch.setattr(room, "heun", lambda denoiser, x, sigmas: x)
    one, half = (prior.sample(5, temperature=scale, generator=torch.Generator().manual_seed(1)) for scale in (1.0, 0.5))
    assert torch.allclose(half, one / 2) and one.shape == (5, 2, 3)
    assert float(one.std()) == pytest.approx(80, rel=0.5)  # of table 1's largest noise level


def test_codes_drop_out_before_the_body():
    torch.manual_seed(0)
    prior = AutoregressivePrior(num_latents=3, codebook_size=4, width=8, depth=1, num_heads=2).eval()
    torch.nn.init.normal_(prior.head.weight)
    one, other = torch.tensor([[0, 1, 2]]), torch.tensor([[3, 2, 1]])
    assert not torch.allclose(prior(one), prior(other))
    prior.input_dropout.train().p = 1.0
    torch.testing.assert_close(prior(one), prior(other))
