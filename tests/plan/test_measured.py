"""Real steps: what they do, and what a plan takes of them."""

import pytest
import torch
from torch import nn

from toolkit.errors import UserError
from toolkit.plan.devices import Cluster, Device
from toolkit.plan.estimate import Pace, Tracer, modelled_step_s, pass_parts_s, plan_stage, update_s
from toolkit.plan.measured import RealStep, Took, pace_here, pace_of, sizes_for
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
    step = RealStep(stage(networks))
    before = networks[0](torch.ones(1, 8)).abs().item()
    for _ in range(20):
        took = step(4)
    assert networks[0](torch.ones(1, 8)).abs().item() < before
    assert all(parameter.grad is None for parameter in networks[0].parameters())
    assert took.passes > 0 and took.update > 0


def test_a_pace_is_of_the_stage_itself_where_it_fits_and_of_the_narrow_one_where_it_does_not():
    small, large = stage([]), stage([], inner=30_000_000)
    pace, how = pace_here(small, small, HERE, Tracer(False))
    assert min(pace.launches, pace.work, pace.update) >= 0 < pace.update and "steps of 1 and of 4 items" in how
    assert "of the default preset" in pace_here(large, small, HERE, Tracer(False))[1]
    with pytest.raises(UserError, match="not one item of stage fits"):
        pace_here(large, large, HERE, Tracer(False))


def steps(shape, tracer, sizes, launches, work, update):
    """What steps take on a machine of which the shares are known."""
    took = {}
    for size in sizes:
        seen = tracer(shape, size, False, False)
        parts = pass_parts_s(seen.work, HERE)
        took[size] = Took(launches * parts[0] + work * parts[1], update * update_s(seen, shape, Cluster(HERE, 1)))
    return took


def test_two_sizes_tell_launches_from_work_and_predict_a_third():
    shape, tracer, cluster = stage([], inner=4096), Tracer(False), Cluster(HERE, 1)
    took = steps(shape, tracer, (8, 32, 96), launches=3.0, work=0.5, update=2.0)
    pace = pace_of(shape, {size: took[size] for size in (8, 32)}, cluster, tracer)
    assert (pace.launches, pace.work, pace.update) == pytest.approx((3.0, 0.5, 2.0))
    expected = took[96].passes + took[96].update
    assert modelled_step_s(shape, 96, cluster, tracer, pace) == pytest.approx(expected)


@pytest.mark.parametrize("passes", [(2.0, 1.0), (0.1, 1.0)], ids=["the larger is faster", "less than nothing at rest"])
def test_sizes_that_tell_nothing_apart_give_one_share(passes):
    shape, tracer = stage([], inner=64), Tracer(False)
    took = {size: Took(one, 1.0) for size, one in zip((8, 10), passes, strict=True)}
    pace = pace_of(shape, took, Cluster(HERE, 1), tracer)
    assert pace.launches == pace.work > 0


def test_one_item_is_the_only_size():
    assert sizes_for(1) == [1] and sizes_for(3) == [1, 3] and sizes_for(32) == [8, 32]


def test_each_pass_of_a_step_is_launched_and_the_update_is_not():
    """Twice the passes of half the size: the same work, twice the launches, one update."""
    shape, tracer, cluster = stage([], inner=64, batch_size=8), Tracer(False), Cluster(HERE, 1)
    cut = StageShape(**{**vars(shape), "micro_batch_size": 4})
    times = [plan_stage(one, cluster, tracer, 2, Pace(1000.0, 0.0, 1.0)).step_s for one in (shape, cut)]
    update = update_s(tracer(shape, 8, False, False), shape, cluster)
    launches = [
        pass_parts_s(tracer(shape, size, False, adding).work, HERE)[0] for size, adding in ((8, False), (4, True))
    ]
    assert times == pytest.approx([1000 * launches[0] + update, 2 * 1000 * launches[1] + update])
