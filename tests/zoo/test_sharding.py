"""Networks whose layers are gathered one at a time have the gradients of those that are whole, recomputed or not."""

import pytest
import torch
import torch.distributed as dist

from tests.venhancer.networks import tiny_pipeline
from tests.zoo.test_checkpointing import CASES
from toolkit.runs.states.sharding import full, is_spread, shard
from toolkit.zoo.checkpointing import checkpoint_activations, checkpointed_blocks
from toolkit.zoo.video.unet import layers_of


@pytest.fixture(scope="module", autouse=True)
def group_of_one(tmp_path_factory):
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def video():
    network = tiny_pipeline().denoiser.train()
    with torch.no_grad():  # paths out of the control network start at zero
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    network.unet.requires_grad_(False)
    channels, text = network.unet.config["in_channels"], network.unet.config["cross_attention_dim"]
    x, y = torch.randn(2, channels, 3, 8, 8), torch.randn(2, 1, text)
    return network, lambda: network(x, 500.0, y, hint=x, t_hint=10.0, up_scale=2.0).square().mean()


UNITS = {
    "adm": checkpointed_blocks,
    "song": checkpointed_blocks,
    "uvit": checkpointed_blocks,
    "world": lambda network: network.llm.model.layers,
    "video": layers_of,
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["adm", *(pytest.param(name, marks=pytest.mark.slow) for name in list(UNITS)[1:])])
def test_gradients(name, precision):
    found = []
    for sharded in (False, True):
        torch.manual_seed(0)
        network, loss = (CASES | {"video": video})[name]()
        if sharded:
            checkpoint_activations(network)
            units = list(UNITS[name](network))
            shard(network, units)
            assert units and all(is_spread(one) for one in network.parameters())
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            value = loss()
        value.backward()
        gradients = [full(one.grad).flatten() for one in network.parameters() if one.grad is not None]
        found.append((value.item(), torch.cat(gradients)))
    (one, whole), (other, parts) = found
    assert one == other and parts.dtype == torch.float32 and whole.norm() > 0
    assert (whole - parts).norm() <= (1e-6 if precision == "fp32" else 1e-2) * whole.norm()
