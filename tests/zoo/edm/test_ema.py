"""EMA: EDM's schedule against the formula written out, and exact state."""

import pytest
import torch
from torch import nn

from toolkit.zoo.edm.ema import EMA


def drift(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def model_with_buffers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("ramp_up_ratio", [0.05, None])
def test_the_average_follows_the_half_life(ramp_up_ratio):
    model = nn.Linear(3, 2)
    ema, expected, seen = EMA(model, 1000, ramp_up_ratio), model.weight.detach().double().clone(), 0
    for _ in range(200):
        drift(model)
        half_life = 1000 if ramp_up_ratio is None else min(1000, seen * ramp_up_ratio)
        decay = 0.5 ** (128 / max(half_life, 1e-8))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
        ema.update(128)
        seen += 128
    torch.testing.assert_close(ema.model.weight.double(), expected, atol=1e-5, rtol=1e-5)
    assert ema.num_images == seen


def test_ramp_up_forgets_the_first_weights_at_once():
    model = nn.Linear(3, 2)
    ema = EMA(model, 1e6)
    drift(model)
    ema.update(64)
    assert torch.equal(ema.model.weight, model.weight)


def test_the_copy_is_in_eval_mode_without_gradients_and_copies_buffers():
    model = model_with_buffers()
    ema = EMA(model, 100)
    model(torch.randn(16, 3))
    ema.update(16)
    assert not ema.model.training and model.training
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert torch.equal(ema.model[1].running_mean, model[1].running_mean)
    assert ema.model[1].num_batches_tracked == 1


def test_state_round_trips_exactly():
    model = model_with_buffers()
    ema = EMA(model, 500)
    for _ in range(5):
        drift(model)
        ema.update(32)
    other = EMA(model, 500)
    other.load_state_dict(ema.state_dict())
    for _ in range(3):
        drift(model)
        ema.update(32)
        other.update(32)
    assert other.num_images == ema.num_images
    for name, value in ema.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


def test_a_half_life_of_nothing_is_refused():
    model = model_with_buffers()
    with pytest.raises(ValueError, match="half_life_images"):
        EMA(model, 0)
