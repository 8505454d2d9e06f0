"""Real steps: what they do, and what a plan takes of them."""

import pytest
import torch
from torch import nn

from toolkit.errors import UserError
from toolkit.plan.devices import Device
from toolkit.plan.estimate import Tracer
from toolkit.plan.measured import real_step, slowdown
from toolkit.runs.stage_shape import Networks, StageShape

HERE = Device("here", {"fp32": 0.05, "tf32": 0.05, "bf16": 0.05}, 4.0, 10.0)


def stage(networks, inner=8, batch_size=4):
    def build():
        network = nn.Sequential(nn.Linear(8, inner), nn.Tanh(), nn.Linear(inner, 1))
        networks.append(network)
        return Networks(network, lambda batch: network(torch.ones(batch, 8)).square().mean(), averaged=[network])

    return StageShape("stage", "items", 10, batch_size, build)


def test_a_real_step_trains():
    networks = []
    step = real_step(stage(networks), 4)
    before = networks[0](torch.ones(1, 8)).abs().item()
    for _ in range(20):
        step()
    assert networks[0](torch.ones(1, 8)).abs().item() < before
    assert all(parameter.grad is None for parameter in networks[0].parameters())


def test_a_slowdown_is_of_the_stage_itself_where_it_fits_and_of_the_narrow_one_where_it_does_not():
    small, large = stage([]), stage([], inner=30_000_000)
    factor, how = slowdown(small, small, HERE, Tracer(False))
    assert factor > 0 and "4 items, median" in how
    assert "of the default preset" in slowdown(large, small, HERE, Tracer(False))[1]
    with pytest.raises(UserError, match="not one item of stage fits"):
        slowdown(large, large, HERE, Tracer(False))
