"""Cutting batches, averaging gradients once a step, and the scaled loss of half precision."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from tests.toyroom.config import TrainToy
from toolkit.errors import JobError, UserError
from toolkit.runs.device import make_accelerator
from toolkit.runs.passes import accumulate, add_terms, own_part, passes, rows, update


@dataclass
class Batch:
    x: Tensor
    name: str
    none: None = None


def test_terms_of_passes_add_up_by_the_share_of_their_items():
    means = {}
    for loss, share in ((3.0, 0.25), (7.0, 0.75)):
        add_terms(means, {"loss": torch.tensor(loss, requires_grad=True)}, share)
    assert means["loss"].item() == 6.0 and not means["loss"].requires_grad


def test_rows_of_what_batches_are_made_of():
    whole = (torch.arange(5), {"a": torch.arange(10).view(5, 2)}, Batch(torch.arange(5.0), "all"), None)
    numbers, named, batch, none = rows(whole, slice(1, 3))
    assert numbers.tolist() == [1, 2] and named["a"].tolist() == [[2, 3], [4, 5]] and none is None
    assert batch.x.tolist() == [1, 2] and batch.name == "all"
    found = [(part[0].tolist(), share) for part, share in passes(None, whole, 2)]
    assert found == [([0, 1], 0.4), ([2, 3], 0.4), ([4], 0.2)]
    assert [share for _, share in passes(None, whole, 99)] == [share for _, share in passes(None, whole, None)] == [1]


def test_processes_take_their_items_one_after_the_other(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    found = []
    for rank in "012":
        monkeypatch.setenv("RANK", rank)
        found += range(6)[own_part(6)]
    assert found == list(range(6))
    with pytest.raises(UserError, match=r"optim\.lr=7: must be divisible by 3 processes"):
        own_part(7, "optim.lr")


def test_gradients_go_over_the_wire_once_a_step(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        trained, sent = nn.parallel.DistributedDataParallel(nn.Linear(3, 1)), []
        trained.register_comm_hook(None, lambda state, bucket: sent.append(1) or allreduce_hook(state, bucket))
        loss = lambda x: trained(x).square().mean()  # noqa: E731
        loss.no_sync = trained.no_sync
        accumulate(loss, (torch.randn(7, 3),), 2, Accelerator(cpu=True))
        assert len(sent) == 1 and trained.module.weight.grad.abs().sum() > 0
    finally:
        dist.destroy_process_group()


def scaled(scale):
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return accelerator


def step(network, accelerator, x, grad_clip=1.0):
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    accumulate(lambda part: network(part).square().mean(), (x,), 2, accelerator)
    return update(optimizer, network.parameters(), grad_clip, accelerator)


def test_a_scaled_loss_makes_the_same_step():
    torch.manual_seed(0)
    plain, x = nn.Linear(3, 1), torch.randn(5, 3)
    other = copy.deepcopy(plain)
    norms = [step(plain, Accelerator(cpu=True), x, 0.3), step(other, scaled(2.0**10), x, 0.3)]
    assert norms[1].item() == pytest.approx(norms[0].item(), rel=1e-6)
    torch.testing.assert_close(other.weight, plain.weight)


def test_without_a_bound_the_norm_is_told_and_the_gradients_stay():
    torch.manual_seed(0)
    bounded, x = nn.Linear(3, 1), torch.randn(5, 3)
    free = copy.deepcopy(bounded)
    norms = [step(network, Accelerator(cpu=True), x, bound) for network, bound in ((bounded, 1e9), (free, math.inf))]
    assert norms[0] == norms[1] > 0
    assert torch.equal(bounded.weight, free.weight)


def test_a_step_that_overflows_is_left_out_and_an_endless_one_stops():
    network, x = nn.Linear(3, 1), torch.tensor([[math.inf, 0, 0]])
    before = network.weight.detach().clone()
    accelerator = scaled(4.0)
    assert step(network, accelerator, x) is None and accelerator.scaler.get_scale() == 2
    assert torch.equal(network.weight, before) and network.weight.grad is None
    step(network, accelerator, x)
    with pytest.raises(JobError, match="precision=fp16: the gradients overflow at any scale"):
        step(network, accelerator, x)


def test_half_precision_needs_a_gpu():
    with pytest.raises(UserError, match="precision=fp16: needs a GPU; on a CPU use precision=bf16 or fp32"):
        make_accelerator(TrainToy(device="cpu", precision="fp16"))


def test_several_optimizers_share_one_norm_and_one_step():
    """Plain descents with a part of the parameters each: gradients are clipped together, and dropped."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    before = [one.detach().clone() for one in network.parameters()]
    optimizers = [torch.optim.SGD([one], lr=rate) for one, rate in zip(network.parameters(), (0.1, 1.0), strict=True)]
    network(torch.ones(1, 3)).square().sum().backward()
    gradients = [one.grad.clone() for one in network.parameters()]
    whole = math.sqrt(sum(float(one.square().sum()) for one in gradients))
    norm = update(optimizers, network.parameters(), whole / 2, Accelerator(cpu=True))
    assert float(norm) == pytest.approx(whole)
    for rate, was, gradient, now in zip((0.1, 1.0), before, gradients, network.parameters(), strict=True):
        assert torch.allclose(now, was - rate * gradient / 2, atol=1e-6) and now.grad is None


def test_no_optimizer_steps_where_the_gradients_of_another_overflow():
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizers = [torch.optim.AdamW([one], lr=0.1) for one in (first, second)]
    accelerator = scaled(4.0)
    accelerator.backward(first.sum() + (second * math.inf).sum())
    assert update(optimizers, [first, second], 1.0, accelerator) is None and accelerator.scaler.get_scale() == 2
    assert torch.equal(first, torch.ones(2)) and torch.equal(second, torch.ones(2))
    accelerator.backward(first.sum() + second.sum())
    assert update(optimizers, [first, second], 1.0, accelerator) is not None
    assert not torch.equal(first, torch.ones(2)) and not torch.equal(second, torch.ones(2))
