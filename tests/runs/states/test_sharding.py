"""Two processes that share weights, gradients, moments and averages train what one does, and their states are its."""

import copy
import os
import socket
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.toyroom.harness import _processes, finish
from toolkit.errors import UserError
from toolkit.launch import launch
from toolkit.runs.states import sharding
from toolkit.runs.states.sharding import check_sharding
from toolkit.zoo.checkpointing import called

STEPS, BATCH, CLIP = 3, 8, 0.01


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(5, 5), nn.LayerNorm(5)

    def forward(self, x):
        return x + torch.tanh(self.linear(self.norm(x)))


class Network(nn.Module):
    """One unit is called, the other goes through a function; a buffer; a part without gradients."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head, self.still = Block(), Block(), nn.Linear(5, 1), nn.Linear(1, 1)
        self.still.requires_grad_(False)
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, x):
        x = called(lambda block, x: x + torch.tanh(block.linear(block.norm(x))), self.two, self.one(x))
        return self.still(self.head(x) * self.scale).square().mean()


def trained(rank, sharded, folder):
    """Some steps of clipped AdamW and an average, from a state half-way; what is left goes to a file."""
    from accelerate import Accelerator

    from toolkit.runs.passes import accumulate, own_part, update
    from toolkit.runs.states.sharding import fill, gather, plain_copy, shard, spread, spread_like, whole
    from toolkit.zoo.edm.ema import EMA

    torch.manual_seed(0)
    network, x = Network(), torch.randn(STEPS, BATCH, 5)
    ema, plain = EMA(network, 30.0), plain_copy(network, "fsdp" if sharded else "none")
    if sharded:
        shard(network, [network.one, network.two])
        spread_like(ema.model, network)
    items = {"network": network, "ema": ema}
    items["optimizer"] = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 0.1, fused=True)
    if (folder / "begun.pt").exists():
        for name, state in torch.load(folder / "begun.pt", weights_only=True).items():
            items[name].load_state_dict(spread(items[name], state))
    norms, accelerator = [], Accelerator(cpu=True)
    for batch in x:
        accumulate(network, (batch[own_part(BATCH)],), 3, accelerator)
        norms.append(float(update(items["optimizer"], network.parameters(), CLIP, accelerator)))
        ema.update(BATCH)
    states = copy.deepcopy({name: whole(item.state_dict()) for name, item in items.items()})
    gather(ema.model)
    found = {"norms": norms, "states": states, "plain": fill(plain, network).state_dict()}
    torch.save(found | {"average": ema.model.state_dict()}, folder / f"{'shared' if sharded else 'alone'}.{rank}.pt")


def one_rank(rank, port, folder):
    from toolkit.runs import distributed

    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.start()
    trained(rank, True, folder)
    distributed.stop()


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def compare(folder, share):
    """``share()`` leaves shared.*.pt as one process leaves alone.0.pt; twice, the second time from where that ended."""
    for _ in range(2):
        trained(0, False, folder)
        share()
        alone, *shared = (torch.load(path, weights_only=True) for path in sorted(folder.glob("*.[01].pt")))
        close(shared[0], alone)
        for other in shared[1:]:
            close([other["plain"], other["average"]], [alone["plain"], alone["average"]])
            assert other["states"]["network"]["one.linear.weight"] is None  # only the first one writes
        assert min(alone["norms"]) > CLIP
        torch.save(alone["states"], folder / "begun.pt")


@pytest.mark.slow
def test_two_processes_that_share_everything_train_what_one_does(tmp_path):
    def share():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        ranks = [_processes.Process(target=one_rank, args=(rank, port, tmp_path)) for rank in range(2)]
        for process in ranks:
            process.start()
        assert finish(*ranks, timeout_s=60) == [0, 0]

    compare(tmp_path, share)
    assert (tmp_path / "shared.1.pt").exists()


def test_a_group_of_one_goes_the_same_way(tmp_path):
    def share():
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/{time.monotonic()}", rank=0, world_size=1)
        try:
            trained(0, True, tmp_path)
        finally:
            dist.destroy_process_group()

    compare(tmp_path, share)


@pytest.mark.parametrize(("precision", "said"), [("fp32", "x=fsdp: needs several"), ("fp16", "x=fsdp; use")])
def test_refusals(precision, said):
    check_sharding("none", precision, "x")
    with pytest.raises(UserError, match=said):
        check_sharding("fsdp", precision, "x")


SEVERAL, SLOW = "sharding=fsdp: needs several processes", pytest.mark.slow


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("train-disco", ["experiment=disco_smoke", "optim.sharding=fsdp"], f"optim.{SEVERAL}"),
        (
            "train-disco",
            ["experiment=disco_smoke", "optim.sharding=fsdp", "latents.restart_dead_codes=true"],
            "not with latents.restart_dead_codes=true",
        ),
        (
            "train-disco",
            ["experiment=disco_smoke", "optim.sharding=fsdp", "compile=true"],
            "compile=true: not with optim.sharding=fsdp",
        ),
        pytest.param(
            "train-ivideogpt",
            ["experiment=ivideogpt_smoke", "optim.transformer.sharding=fsdp"],
            f"optim.transformer.{SEVERAL}",
            marks=SLOW,
        ),
        pytest.param(
            "enhance-video", ["experiment=enhance_train_small", "optim.sharding=fsdp"], f"optim.{SEVERAL}", marks=SLOW
        ),
        pytest.param(
            "enhance-video", ["experiment=enhance_train_keys", "optim.sharding=fsdp"], "is of stage=train", marks=SLOW
        ),
        (
            "train-ivideogpt",
            ["experiment=ivideogpt_smoke", "optim.transformer.sharding=fsdp", "compile=true"],
            "compile=true: not with optim.transformer.sharding=fsdp",
        ),
        pytest.param(
            "enhance-video",
            ["experiment=enhance_train_small", "optim.sharding=fsdp", "compile=true"],
            "compile=true: not with optim.sharding=fsdp",
            marks=SLOW,
        ),
    ],
)
def test_commands_refuse_it_before_they_begin(tmp_path, monkeypatch, capfd, command, words, said):
    monkeypatch.chdir(tmp_path)
    assert launch(command, [*words, "hydra.run.dir=one"]) == 2
    assert said in capfd.readouterr().err and not (tmp_path / "one").exists()


@pytest.mark.parametrize(("half", "gathered"), [(False, None), (True, torch.bfloat16)])
def test_gradients_are_summed_in_single_precision_whatever_weights_are_gathered_in(monkeypatch, half, gathered):
    import torch.distributed.fsdp as fsdp

    calls, methods = [], []
    monkeypatch.setattr("torch.distributed.device_mesh.init_device_mesh", lambda kind, size: (kind, size))
    monkeypatch.setattr(fsdp, "fully_shard", lambda part, mesh, mp_policy: calls.append((part, mesh, mp_policy)))
    monkeypatch.setattr(fsdp, "register_fsdp_forward_method", lambda part, name: methods.append((part, name)))
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    assert sharding.shard(network, list(network), half=half) is network
    assert [part for part, _, _ in calls] == [network[0], network[1], network]  # each unit by itself, then the rest
    assert {mesh for _, mesh, _ in calls} == {("cpu", (1,))}
    for _, _, policy in calls:
        assert (policy.param_dtype, policy.reduce_dtype) == (gathered, torch.float32)
        assert not policy.cast_forward_inputs
    assert methods == [(part, "forward_through") for part, _, _ in calls]


def test_a_state_with_more_in_it_than_the_template_is_left_as_it_is():
    state = {"step": 3, "new": {"inner": 1}}
    assert sharding._spread_like({"step": 0}, state) is state
