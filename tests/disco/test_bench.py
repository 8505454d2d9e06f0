"""The benchmark does the work it times, and refuses options it does not know. No test looks at a duration."""

import pytest
import torch
from accelerate.state import AcceleratorState

from toolkit.bench import parse_options
from toolkit.disco import bench
from toolkit.errors import UserError

SMALL = ["size_px=8", "channels=1", "width=32", "batch_size=2", "num_steps=1", "sampling_steps=2"]


@pytest.fixture(autouse=True)
def own_precision():
    """Accelerate keeps one precision a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def makers():
    return bench.contenders(parse_options(bench.Options, SMALL))


@pytest.mark.parametrize("name", ["ours", "bare", "disco", "diffusers"])
def test_every_contender_trains_and_samples(name):
    torch.manual_seed(0)
    contender = makers()[name]()
    assert contender.tasks["train"]() == 2
    assert contender.tasks["sample"]() == 2
    assert contender.parameters > 1000


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_convolutions_are_those_of_a_training_step(precision):
    contender = bench.contenders(parse_options(bench.Options, [*SMALL, f"precision={precision}"]))["convolutions"]()
    with torch.profiler.profile() as profile:
        assert contender.tasks["train"]() == 2
    found = {event.key: event.count for event in profile.key_averages()}
    assert found["aten::convolution"] == found["aten::convolution_backward"] > 20
    assert not {"aten::native_group_norm", "aten::silu", "aten::_fused_adamw_"} & found.keys()


def test_peers_have_nearly_our_size():
    sizes = {name: make().parameters for name, make in makers().items()}
    assert sizes["bare"] == sizes["ours"]
    assert 0.85 < sizes["diffusers"] / sizes["ours"] < 1.15


def test_the_official_network_stands_beside_bf16_in_both_precisions(tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "networks.py").touch()
    words = [*SMALL, f"edm={tmp_path}"]
    for precision, expected in (("fp32", {"edm"}), ("bf16", {"edm", "edm_fp32"})):
        options = parse_options(bench.Options, [*words, f"precision={precision}"])
        assert {name for name in bench.contenders(options) if name.startswith("edm")} == expected


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("widht=8", "did you mean 'width'"),
        ("width=x", "width=x: must be a whole number"),
        ("width=8", "width=8: must be at least 16"),
        ("edm=nowhere", "edm=nowhere: no checkout"),
        ("device=tpu", "device=tpu: .*choose one of cpu, cuda"),
    ],
)
def test_bad_options_are_named(word, message):
    with pytest.raises(UserError, match=message):
        parse_options(bench.Options, [word])
