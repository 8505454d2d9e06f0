"""The training step against a plain loop, and its parts against what they should compute."""

import math

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.stacking.models import make_model, token_ids
from toolkit.errors import UserError
from toolkit.stacking.config import GrowLLM, Growth, Network, Optim
from toolkit.stacking.measure.curves import Arm, Spent, TrainingCurve
from toolkit.stacking.pretrain import cpu_blocks, language_loss
from toolkit.stacking.pretrain.language_loss import LanguageModelLoss, head_loss
from toolkit.stacking.pretrain.networks import ARCHITECTURE, Fresh, build, llama_config, planned, training_cost
from toolkit.stacking.pretrain.states import NetworkState, OptimizerState, tiled_moments
from toolkit.stacking.pretrain.train import check_batches, learning_rate_at, make_optimizer, train_step


@pytest.mark.parametrize("pieces", [1, 3, 100])
def test_head_loss_is_cross_entropy_and_so_are_its_gradients(monkeypatch, pieces):
    monkeypatch.setattr(language_loss, "MOST_LOGITS", 20 * 97 // pieces)
    torch.manual_seed(0)
    hidden, weight = torch.randn(20, 8, requires_grad=True), torch.randn(97, 8, requires_grad=True)
    targets = torch.randint(97, (20,))
    plain = F.cross_entropy(hidden @ weight.t(), targets)
    ours = head_loss(hidden, weight, targets)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(3 * ours, (hidden, weight)), torch.autograd.grad(3 * plain, (hidden, weight)), strict=True
    ):
        assert torch.allclose(mine, theirs, atol=1e-6)
    with torch.no_grad():
        assert head_loss(hidden, weight, targets).item() == pytest.approx(plain.item(), rel=1e-6)


def test_measuring_a_long_batch_makes_no_gradients(monkeypatch):
    monkeypatch.setattr(language_loss, "MOST_LOGITS", 5 * 97)
    hidden, weight = torch.randn(20, 8), torch.randn(97, 8, requires_grad=True)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        head_loss(hidden, weight, torch.randint(97, (20,)))
    assert counter.get_total_flops() == 2 * 20 * 8 * 97


def test_head_loss_under_autocast_is_near_and_in_float32():
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 16, requires_grad=True), torch.randn(97, 16, requires_grad=True)
    targets = torch.randint(97, (64,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = head_loss(hidden, weight, targets)
    loss.backward()
    assert loss.dtype == torch.float32 and weight.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(F.cross_entropy(hidden @ weight.t(), targets).item(), rel=0.02)


def batches(count, batch=4, length=12):
    ids = [token_ids(batch, length + 1, seed) for seed in range(count)]
    return [(one[:, :-1], one[:, 1:]) for one in ids]


def run_steps(model, config, steps, lr=1e-2):
    accelerator, module = Accelerator(cpu=True), LanguageModelLoss(model)
    optimizer = make_optimizer(model, config.optim)
    return [train_step(module, model, optimizer, batch, lr, config, accelerator) for batch in steps], optimizer


@pytest.mark.parametrize("name", ["llama", "llama_tied"])
def test_steps_equal_a_plain_loop_with_transformers_loss_and_torchs_adamw(name, monkeypatch):
    monkeypatch.setattr(cpu_blocks, "usable", lambda *_: False)  # compared with transformers in a test of its own
    ours, plain = make_model(name).train(), make_model(name).train()
    config, steps = GrowLLM(), batches(5)
    logs, _ = run_steps(ours, config, steps)
    matrices = [p for p in plain.parameters() if p.dim() > 1]
    gains = [p for p in plain.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}], lr=1e-2, betas=(0.9, 0.95)
    )
    for (ids, targets), (loss, norm) in zip(steps, logs, strict=True):
        optimizer.zero_grad()
        theirs = F.cross_entropy(plain(ids).logits.flatten(0, 1), targets.flatten())
        theirs.backward()
        their_norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        assert loss.item() == pytest.approx(theirs.item(), rel=1e-4)
        assert norm.item() == pytest.approx(their_norm.item(), rel=1e-3)
    for mine, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=2e-4)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_accumulated_gradients_equal_the_whole_batch(micro_batch_size):
    whole, parts = make_model().train(), make_model().train()
    config, pieces = GrowLLM(), GrowLLM(optim=Optim(batch_size=4, micro_batch_size=micro_batch_size))
    (first, _), (second, _) = run_steps(whole, config, batches(1)), run_steps(parts, pieces, batches(1))
    assert second[0][0].item() == pytest.approx(first[0][0].item(), rel=1e-6)
    assert second[0][1].item() == pytest.approx(first[0][1].item(), rel=1e-5)


def test_gains_decay_only_when_asked():
    for decay_norms, expected in ((False, {0.1, 0.0}), (True, {0.1})):
        optimizer = make_optimizer(make_model(), Optim(decay_norms=decay_norms))
        decays = {p.dim(): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert decays[2] == 0.1 and set(decays.values()) == expected


def test_learning_rate_schedule():
    constant = Optim(warmup_steps=10)
    assert [learning_rate_at(s, constant, 100, 1) for s in (0, 4, 9, 50, 99)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    cosine = Optim(warmup_steps=0, schedule="cosine", min_lr_ratio=0.1)
    assert learning_rate_at(0, cosine, 100, 1) == 1.0
    assert learning_rate_at(50, cosine, 100, 1) == pytest.approx(0.55)
    assert learning_rate_at(100, cosine, 100, 1) == pytest.approx(0.1)
    long = Optim(warmup_steps=0, schedule="cosine", schedule_tokens=2000)  # horizon of 200 steps of 10 tokens
    assert learning_rate_at(100, long, 100, 10) == pytest.approx(0.55)


def test_the_papers_initialisation():
    config = llama_config(Network(num_hidden_layers=6, hidden_size=256, intermediate_size=704), 500)
    network = build(config, Fresh(config, 0))
    layer = network.model.layers[3]
    assert layer.self_attn.q_proj.weight.std().item() == pytest.approx(math.sqrt(2 / (5 * 256)), rel=0.02)
    assert layer.mlp.down_proj.weight.std().item() == pytest.approx(704**-0.5 / 6, rel=0.02)
    assert network.model.embed_tokens.weight.std().item() == pytest.approx(math.sqrt(2 / (5 * 256)), rel=0.02)
    assert torch.equal(layer.input_layernorm.weight, torch.ones(256))
    assert not torch.equal(layer.self_attn.q_proj.weight, network.model.layers[2].self_attn.q_proj.weight)


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_of_a_grown_network_learns(tied):
    base = make_model("llama_tied" if tied else "llama")
    grown = planned(base.config, Growth(operator="stack", factor=4))
    state = base.state_dict()
    weights = {name: state[grown.tensors.origin(name)] for name in grown.tensors.infos}
    from toolkit.stacking.operators.tensors import InMemory

    network = build(grown.config, InMemory(weights))
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    run_steps(network, GrowLLM(), batches(2))
    assert len(before) == len(ARCHITECTURE.shapes(grown.config))
    for name, parameter in network.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    twins = network.model.layers[0].mlp.up_proj.weight, network.model.layers[3].mlp.up_proj.weight
    assert not torch.equal(*twins)  # copies share no storage and part


def test_state_goes_through_a_checkpoint_by_name():
    config, steps = GrowLLM(), batches(4)
    whole, half, rest = make_model().train(), make_model().train(), make_model(seed=1).train()
    run_steps(whole, config, steps)
    _, optimizer = run_steps(half, config, steps[:2])
    second = make_optimizer(rest, config.optim)
    NetworkState(rest).load_state_dict(NetworkState(half).state_dict())
    OptimizerState(second, rest).load_state_dict(OptimizerState(optimizer, half).state_dict())
    for batch in steps[2:]:
        train_step(LanguageModelLoss(rest), rest, second, batch, 1e-2, config, Accelerator(cpu=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), rest.parameters(), strict=True))


def test_tiled_moments_follow_the_copied_tensors():
    base = make_model().train()
    _, optimizer = run_steps(base, GrowLLM(), batches(1))
    moments = OptimizerState(optimizer, base).state_dict()
    grown = planned(base.config, Growth(operator="random", num_layers=5))
    tiled = tiled_moments(moments, grown.plan, ARCHITECTURE, ARCHITECTURE.shapes(grown.config))
    assert torch.equal(
        tiled["model.layers.1.mlp.up_proj.weight/exp_avg"], moments["model.layers.1.mlp.up_proj.weight/exp_avg"]
    )
    assert not any(name.startswith("model.layers.4.") for name in tiled)  # fresh layers have none
    stacked = planned(base.config, Growth(operator="stack", factor=2))
    tiled = tiled_moments(moments, stacked.plan, ARCHITECTURE, ARCHITECTURE.shapes(stacked.config))
    assert torch.equal(
        tiled["model.layers.4.mlp.up_proj.weight/exp_avg_sq"], moments["model.layers.1.mlp.up_proj.weight/exp_avg_sq"]
    )


def test_a_curve_counts_what_was_spent_before():
    config = llama_config(Network(), 1024)
    cost = training_cost(config, 64)
    base = Spent().after(cost, 100, 64)
    later = base.after(cost, 50, 64)
    assert later.tokens == 150 * 64 and later.sequences == 150
    assert later.flops["total"] == 6 * cost.parameters * 150 * 64
    curve = TrainingCurve()
    curve.add(0, base, 5.0)
    curve.note(torch.tensor(4.0), 0.5)
    curve.note(torch.tensor(3.0), 0.5)
    curve.add(2, later, 3.2)
    copy = TrainingCurve()
    copy.load_state_dict(curve.state_dict())
    assert copy.points == curve.points and curve.points[1]["train_loss"] == 3.5
    arm = Arm("grown", {"seed": 0}, curve.points)
    assert arm.curve("total").flops == [base.flops["total"], later.flops["total"]]


def test_batches_that_do_not_divide(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="must be divisible by 3 processes"):
        check_batches(Optim(batch_size=8), "fp32", 16)


def test_the_network_is_configured_as_asked():
    network = Network(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, rope_theta=500.0, rms_norm_eps=1e-3)
    config = llama_config(network, 100)
    built = build(config, Fresh(config, 0))
    assert built.model.rotary_emb.inv_freq.tolist() == pytest.approx([500.0 ** (-i / 4) for i in range(4)])
    assert built.model.layers[0].self_attn.k_proj.weight.shape == (16, 32)
    assert built.model.norm.variance_epsilon == 1e-3 and not config.tie_word_embeddings
