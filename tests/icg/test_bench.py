"""The benchmark's contenders do the work they are named for. No test looks at a duration."""

import pytest

from toolkit.bench import parse_options
from toolkit.errors import UserError
from toolkit.icg import bench
from toolkit.icg.sources.base import counted_rows

SMALL = ["size_px=8", "depth=1", "batch_size=2", "num_steps=4"]
CALLS = {"none": 1, "half": 1.5, "icg_tsg": 3}
FORWARDS = {"none": 4, "half": 6, "icg_tsg": 12, "native": 4, "batched": 4, "batched_tsg": 4}


@pytest.fixture(scope="module")
def pipelines():
    options = parse_options(bench.Options, SMALL)
    return options, {
        "unet": bench.unet_pipeline(options),
        "dit": bench.dit_pipeline(options),
        "mmdit": bench.mmdit_pipeline(options),
    }


@pytest.mark.parametrize("name", bench.CONTENDERS)
@pytest.mark.parametrize("network", ["unet", "dit", "mmdit"])
def test_calls_per_step_are_exact(pipelines, network, name):
    """Two calls and nothing else; half the steps guided cost 0.75 of that; a batched call does the work of two."""
    options, made = pipelines
    pipe, arguments, null = made[network]
    denoiser = getattr(pipe, "transformer", None) or pipe.unet
    forwards = []
    handle = denoiser.register_forward_hook(lambda *_: forwards.append(1))
    with counted_rows(denoiser) as counter:
        own = bench.own_guidance(null, name)
        assert bench.sample(pipe, arguments | own, bench.guidance(pipe, null, name), options) == 2
    handle.remove()
    assert len(forwards) == FORWARDS.get(name, 8)
    assert counter.rows == 2 * 4 * CALLS.get(name, 2)


def test_contenders_are_built_from_options():
    options = parse_options(bench.Options, [*SMALL, "network=dit"])
    contender = bench.contenders(options)["ours"]()
    assert list(contender.tasks) == ["dit"] and contender.tasks["dit"]() == 2 and contender.parameters > 1000
    with pytest.raises(UserError, match="network=vit: did you mean 'dit'"):
        parse_options(bench.Options, ["network=vit"])
