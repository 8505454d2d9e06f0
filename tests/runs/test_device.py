"""Where a run computes."""

import json

import pytest
import torch

from tests.toyroom.config import TrainToy
from toolkit.errors import UserError
from toolkit.runs.device import accelerator_of, choices, dtype_of, make_accelerator
from toolkit.runs.record import Run


def test_the_record_names_the_device(tmp_path):
    run = Run(tmp_path / "one", TrainToy(device="cpu"))
    run.open([])
    assert str(accelerator_of(run).device) == "cpu"
    run.close("done")
    assert json.loads((run.dir / "run.json").read_text())["device"] == "cpu"


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there(tmp_path, device):
    if {"cuda": torch.cuda, "mps": torch.backends.mps}[device].is_available():
        pytest.skip("this machine has one")
    with pytest.raises(UserError, match=f"device={device}: no .* is visible; use device=auto or device=cpu"):
        accelerator_of(Run(tmp_path / "one", TrainToy(device=device)))


def test_optimisers_and_layouts_are_said_as_they_are():
    plain, turned, pointwise = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 1)
    turned.to(memory_format=torch.channels_last)
    fused = torch.optim.AdamW([*turned.parameters(), *pointwise.parameters()], fused=True)
    assert choices([fused]) == ["AdamW fused", "convolutions channels-last"]
    both = [torch.optim.Adam([*plain.parameters(), *turned.parameters()])]
    assert choices(both) == ["Adam not fused", "convolutions channels-last and contiguous"]
    assert choices([fused, torch.optim.SGD(torch.nn.Linear(3, 4).parameters())])[:2] == ["AdamW fused", "SGD not fused"]
    assert choices([torch.optim.SGD(torch.nn.Linear(3, 4).parameters())]) == ["SGD not fused"]


def test_the_precision_asked_for_is_computed_in():
    with pytest.raises(UserError, match="precision=fp16: needs a GPU"):
        make_accelerator(TrainToy(device="cpu", precision="fp16"))
    # float32 last: accelerate's state is one for the whole process
    for precision, mixed, dtype in (("bf16", "bf16", torch.bfloat16), ("fp32", "no", torch.float32)):
        made = make_accelerator(TrainToy(device="cpu", precision=precision))
        assert made.mixed_precision == mixed and dtype_of(precision) == dtype
        with made.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
