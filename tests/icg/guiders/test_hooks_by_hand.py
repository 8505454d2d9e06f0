"""Whose rows a hook changes, how often, and the time of a loop that begins in the middle of its schedule."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from toolkit.icg.guiders.hooks import Attached, OutputChange
from toolkit.icg.guiders.pipeline_loop import Loop

TABLE_10 = {
    "dit-xl-2": (1.4, "class"), "dit-cads": (1.4, "class"), "stable-diffusion": (3.0, "bank"),
    "pose-to-image": (3.0, "gaussian"), "mdm": (2.5, "gaussian"), "edm-cifar10": (1.05, "class"),
    "edm2-xs": (1.25, "class"),
}  # fmt: skip
TABLE_11 = {  # w_TSG, s, alpha, T_min, T_max
    "dit-uncond": (5.0, 1.0, 0.0, 200, 800), "dit-cond": (2.5, 2.0, 1.0, 0, 1000),
    "sd-uncond": (3.0, 1.25, 0.0, 100, 900), "sd-cond": (4.0, 3.0, 0.25, 400, 1000),
}  # fmt: skip


class Net(nn.Module):
    """Embeds each sample ``each`` times, twice one after the other."""

    def __init__(self, each, calls=1):
        super().__init__()
        self.embed, self.each, self.calls = nn.Identity(), each, calls

    def forward(self, x):
        rows = x.repeat_interleave(self.each, 0)
        for _ in range(self.calls):
            rows = self.embed(rows)
        return rows


def change(once=(), skips=None):
    def find(network):
        return [("embed", network.embed)]

    return OutputChange(find=find, change=lambda values, num: values + 10, once=lambda _: set(once), skips=skips)


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize("skips", [None, lambda module, args, kwargs, output: output + 10])
def test_all_rows_of_the_chosen_samples_are_changed(each, skips):
    net, x = Net(each), torch.arange(4.0)[:, None]
    Attached(net, [(change(skips=skips), slice(1, 3))])
    assert net(x).flatten().tolist() == [v for v in (0.0, 11.0, 12.0, 3.0) for _ in range(each)]
    assert net(x).flatten().tolist() == [v for v in (0.0, 1.0, 2.0, 3.0) for _ in range(each)]  # of one call alone
    Attached(net, [(change(skips=skips), None)])
    assert net(x).flatten().tolist() == [v for v in (10.0, 11.0, 12.0, 13.0) for _ in range(each)]


@pytest.mark.parametrize(("once", "added"), [((), 30), (("embed",), 10)])
def test_a_module_that_is_called_thrice_is_changed_as_often_or_once(once, added):
    net = Net(1, calls=3)
    Attached(net, [(change(once), None)])
    assert net(torch.zeros(2, 1)).flatten().tolist() == [added] * 2


def test_a_loop_that_begins_late_is_at_the_schedules_later_times():
    pipe = SimpleNamespace(scheduler=SimpleNamespace(begin_index=2))
    loop = Loop(pipe, 1.0)
    loop.times = np.array([999.0, 800, 600, 400, 200])
    seen = []
    for step in range(3):
        seen.append(loop.enter(loop.times[2 + step], 1))
        loop.step, loop.called = step + 1, False
    assert seen == [(0, 3, 600.0), (1, 3, 400.0), (2, 3, 200.0)]


def test_presets_are_the_rows_of_the_papers_tables_10_and_11():
    from toolkit.icg.guiders import presets

    assert {name: (row["guidance_scale"], row["condition"]) for name, row in presets.ICG.items()} == TABLE_10
    keys = ("tsg_scale", "noise_scale", "alpha", "t_min", "t_max")
    assert {name: tuple(row[key] for key in keys) for name, row in presets.TSG.items()} == TABLE_11
