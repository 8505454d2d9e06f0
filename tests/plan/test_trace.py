"""What a trace counts, against sums written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.plan.command import shapes_of
from toolkit.plan.devices import Cluster, Device
from toolkit.plan.estimate import Tracer, plan_stage
from toolkit.plan.trace import trace
from toolkit.runs.stage_shape import Networks, StageShape
from toolkit.zoo.checkpointing import CheckpointedBlock, checkpointing_of

LARGE = Device("large", {"fp32": 10.0, "tf32": 10.0, "bf16": 100.0}, 80.0, 1000.0)


def shape(make, loss, batch_size=8, **keys):
    """A stage that trains ``make()`` by ``loss(network, batch)``."""

    def build():
        network = make()
        again = checkpointing_of(network)
        return Networks(network, lambda batch: loss(network, batch), averaged=[network], recompute=again)

    return StageShape("stage", "items", 10, batch_size, build, **keys)


class Block(CheckpointedBlock):
    """x -> W2 relu(W1 x), without biases."""

    def __init__(self, width, inner):
        super().__init__()
        self.first, self.second = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


def mlp(width=16, inner=64, depth=3, **keys):
    return shape(
        lambda: nn.Sequential(*(Block(width, inner) for _ in range(depth))),
        lambda network, batch: network(torch.randn(batch, width)).sum(),
        **keys,
    )


def attention(batch_heads, queries, keys, head):
    def make():
        return nn.Linear(head, head, bias=False)

    def loss(network, batch):
        q = network(torch.randn(batch, batch_heads, queries, head))
        k, v = torch.randn(batch, batch_heads, keys, head), torch.randn(batch, batch_heads, keys, head)
        return F.scaled_dot_product_attention(q, k, v).sum()

    return shape(make, loss)


def test_flops_of_linear_layers_are_those_written_out():
    """Forward 2 B I O a layer; backward once for the weights, and once for the input of all but the first."""
    width, inner, depth, batch = 16, 64, 3, 5
    product = 2 * batch * width * inner
    layers = 2 * depth
    assert trace(mlp(width, inner, depth), batch).flops == product * (layers + layers + layers - 1)


def test_flops_of_a_convolution_are_those_written_out():
    batch, into, out, kernel, side = 3, 4, 6, 3, 10
    conv = shape(
        lambda: nn.Conv2d(into, out, kernel, bias=False), lambda net, n: net(torch.randn(n, into, side, side)).sum()
    )
    one = 2 * batch * into * out * kernel**2 * (side - kernel + 1) ** 2
    assert trace(conv, batch).flops == 2 * one  # forward and the weights' gradient: the input needs none


def test_flops_of_attention_are_those_written_out():
    """Forward two products of B H Q K D; backward five: the scores again, and gradients of v, scores, q, k."""
    batch, heads, queries, keys, head = 2, 3, 8, 12, 16
    one = 2 * batch * heads * queries * keys * head
    projection = 2 * batch * heads * queries * head * head
    assert trace(attention(heads, queries, keys, head), batch).flops == 7 * one + 2 * projection


def test_activations_of_a_small_mlp_are_those_by_hand():
    """Of each block its input and relu's output (the same storage as its own result for the backward pass)."""
    width, inner, depth, batch = 16, 64, 3, 5
    seen = trace(mlp(width, inner, depth), batch)
    kept = depth * batch * (width + inner)
    loss = 1
    assert seen.activations == 4 * (kept + loss)


def test_what_is_live_after_the_forward_pass_is_what_autograd_saves():
    """Counted by hooks on the real thing: every storage once, parameters left out."""
    torch.manual_seed(0)
    width, batch = 16, 5
    network = nn.Sequential(Block(width, 64), nn.LayerNorm(width), nn.GELU(), Block(width, 32))
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(torch.randn(batch, width)).square().sum()
    seen = trace(
        shape(
            lambda: nn.Sequential(Block(width, 64), nn.LayerNorm(width), nn.GELU(), Block(width, 32)),
            lambda network, batch: network(torch.randn(batch, width)).square().sum(),
        ),
        batch,
    )
    assert seen.activations == sum(saved.values()) + loss.element_size()


def test_recomputing_keeps_the_inputs_of_blocks_alone_and_computes_again_what_the_backward_pass_needs():
    """That is the first product of each block: the second one's result is needed by nobody."""
    width, inner, depth, batch = 16, 64, 3, 5
    kept, again = (trace(mlp(width, inner, depth), batch, checkpointing=way) for way in (False, True))
    assert again.activations < kept.activations / 3
    assert again.flops - kept.flops == depth * 2 * batch * width * inner


def test_dropout_does_not_make_a_gpu_hold_attention_weights():
    def stage():
        def loss(network, batch):
            x = network(torch.randn(batch, 2, 64, 8))
            return F.scaled_dot_product_attention(x, x, x, dropout_p=0.1).sum()

        return shape(lambda: nn.Linear(8, 8), loss)

    weights = 4 * 2 * 64 * 64
    assert trace(stage(), 1, fused=False).activations > weights > trace(stage(), 1).activations
    assert F.scaled_dot_product_attention.__name__ == "scaled_dot_product_attention"


def test_a_plan_for_a_processor_takes_the_layers_that_are_for_processors_alone():
    """As training would: stacking/pretrain/cpu_blocks.py keeps less than transformers' own layers, which a GPU runs."""
    torch.manual_seed(0)
    command = COMMANDS["grow-llm"]
    stage = shapes_of(command, compose(command, ["experiment=grow_smoke", "stage=pretrain"]))[0]
    networks, saved = stage.build(), {}
    own = {parameter.untyped_storage().data_ptr() for parameter in networks.trained.parameters()}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = networks.loss(2)
    kept = sum(saved.values())
    here, on_a_gpu = (trace(stage, 2, fused=fused) for fused in (False, True))
    assert loss.requires_grad and kept < here.activations < 1.06 * kept < on_a_gpu.activations


def test_memory_of_adam_and_the_average_follows_the_formula():
    width, inner, depth = 16, 64, 3
    numbers = 2 * depth * width * inner
    plan = plan_stage(mlp(width, inner, depth), Cluster(LARGE, 1), Tracer(True), keep_checkpoints=2)
    memory = plan.memory
    assert plan.parameters == plan.trained == numbers
    assert (memory.weights, memory.gradients, memory.moments, memory.averages) == (
        4 * numbers, 4 * numbers, 8 * numbers, 4 * numbers,
    )  # fmt: skip
    assert memory.peak >= 20 * numbers and memory.exchange == 0
    assert plan.checkpoint_bytes == 16 * numbers and plan.disk_bytes == 3 * 16 * numbers + 4 * numbers


def test_bf16_halves_what_products_keep_and_holds_the_weights_twice():
    wide = {"width": 256, "inner": 1024, "depth": 2}
    full, half = (trace(mlp(**wide, precision=one), 64) for one in ("fp32", "bf16"))
    assert full.weights == half.weights and full.gradients == half.gradients and full.flops == half.flops
    assert half.activations < full.activations / 2 + 2 * full.weights / 4 + 64 * 256 * 4 * 2


@pytest.mark.parametrize("count", [2, 4])
def test_gradients_are_exchanged_as_a_ring_does(count):
    plan = plan_stage(mlp(), Cluster(LARGE, count), Tracer(True), 2)
    assert plan.exchanged == 2 * 4 * plan.trained * (count - 1) // count and plan.memory.exchange == 4 * plan.trained
    assert plan.device_hours == pytest.approx(plan.total_s * count / 3600)


def test_sharded_weights_gradients_and_moments_are_divided_by_the_devices():
    plain, sharded = (
        plan_stage(mlp(batch_size=4, sharded=way), Cluster(LARGE, 4), Tracer(True), 2).memory for way in (False, True)
    )
    assert (sharded.weights, sharded.moments) == (plain.weights // 4, plain.moments // 4)
    assert plain.averages and sharded.averages == plain.averages // 4


def tight(gib):
    return Cluster(Device("tight", {"fp32": 10.0, "tf32": 10.0, "bf16": 100.0}, gib, 1000.0), 1)


def test_the_largest_micro_batch_fits_and_the_next_does_not():
    stage = mlp(width=64, inner=4096, depth=2, batch_size=4096)
    gib = 0.05
    plan = plan_stage(stage, tight(gib), Tracer(True), 2)
    most = plan.largest_micro_batch["kept"]
    room, resident = 0.92 * gib * 2**30, plan.memory.weights + plan.memory.moments + plan.memory.averages
    peaks = [resident + trace(stage, micro, accumulate=True).passing for micro in (most, most + 1 + most // 20)]
    assert 1 < most < 4096 and peaks[0] <= room < peaks[1]
    assert plan.fits and plan.micro_batch_size <= most and plan.passes == -(-4096 // plan.micro_batch_size)
    assert plan.largest_micro_batch["recomputed"] > most


def test_what_does_not_fit_is_said():
    plan = plan_stage(mlp(width=64, inner=4096, depth=2), tight(0.001), Tracer(True), 2)
    assert not plan.fits and plan.largest_micro_batch == {"kept": None, "recomputed": None}
