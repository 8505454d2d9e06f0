"""Growth in depth: which tensor is which, and what it computes."""

import math

import pytest
import torch

from tests.stacking.models import CONFIGS, build, grow_model, logits, make_model, read_all, token_ids
from toolkit.stacking.config import Growth
from toolkit.stacking.operators.llama import Llama
from toolkit.stacking.operators.tensors import Info, draw

FOUR_STACK = Growth(operator="stack", factor=4)


@pytest.mark.parametrize("name", CONFIGS)
def test_stacked_layers_are_their_sources_bit_for_bit(name):
    model = make_model(name)
    grown = grow_model(model, FOUR_STACK)
    state, expected = read_all(grown), model.state_dict()
    assert grown.config.num_hidden_layers == 12
    for key, tensor in state.items():
        parts = key.split(".")
        if parts[1] == "layers":
            parts[2] = str(int(parts[2]) % 3)
        assert torch.equal(tensor, expected[".".join(parts)]), key
    model_params = sum(p.numel() for p in model.model.layers.parameters())
    assert sum(p.numel() for p in build(grown).model.layers.parameters()) == 4 * model_params


def test_settings_of_each_layer_grow_along():
    assert grow_model(make_model("qwen2"), Growth(operator="interleave", factor=2)).config.layer_types == [
        *["full_attention"] * 2,
        *["sliding_attention"] * 4,
    ]
    assert grow_model(make_model("smollm3"), FOUR_STACK).config.no_rope_layers == [1, 0, 1] * 4


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "growth", [Growth(operator="zero", factor=3), Growth(operator="llama_pro", insert=3)], ids=["zero", "llama_pro"]
)
def test_silent_copies_change_no_logit(name, growth):
    model, ids = make_model(name), token_ids()
    assert torch.equal(logits(build(grow_model(model, growth)), ids), logits(model, ids))


def test_stacking_is_not_function_preserving():
    model, ids = make_model(), token_ids()
    assert (logits(build(grow_model(model, FOUR_STACK)), ids) - logits(model, ids)).abs().max() > 0.1


def test_growing_twice_composes():
    model = make_model()
    once = grow_model(model, Growth(operator="stack", factor=2))
    twice = grow_model(build(once), Growth(operator="stack", factor=2))
    expected = read_all(grow_model(model, FOUR_STACK))
    assert all(torch.equal(tensor, expected[key]) for key, tensor in read_all(twice).items())


def test_gradual_by_doubling_is_stack():
    model = make_model()
    gradual, stacked = (read_all(grow_model(model, Growth(operator=o, factor=4))) for o in ("gradual", "stack"))
    assert all(torch.equal(gradual[key], stacked[key]) for key in stacked)


def test_fresh_layers_follow_the_seed():
    model = make_model("llama_biases")
    first, again, other = (read_all(grow_model(model, Growth(operator="random", factor=2), s)) for s in (0, 0, 1))
    key = "model.layers.4.mlp.down_proj.weight"
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key])
    assert first[key].std().item() == pytest.approx(40**-0.5 / 6, rel=0.1)  # 1 / (sqrt(fan_in) layers)
    assert first["model.layers.4.self_attn.q_proj.weight"].std().item() == pytest.approx((2 / 160) ** 0.5, rel=0.1)
    assert torch.equal(first["model.layers.4.input_layernorm.weight"], torch.ones(32))
    assert first["model.layers.4.self_attn.q_proj.bias"].abs().max() == 0
    assert not torch.equal(first[key], first["model.layers.3.mlp.down_proj.weight"])


def test_noise_is_the_papers_mix():
    model = make_model("llama_biases", hidden_size=128, head_dim=32, intermediate_size=352)
    plain = read_all(grow_model(model, Growth(operator="stack", factor=2)))
    noisy = read_all(grow_model(model, Growth(operator="stack", factor=2, noise=0.2)))
    expected_std = {
        "model.embed_tokens.weight": (2 / (5 * 128)) ** 0.5,
        "model.layers.4.self_attn.q_proj.weight": (2 / (5 * 128)) ** 0.5,
        "model.layers.4.self_attn.o_proj.weight": 128**-0.5 / 6,
        "model.layers.4.mlp.down_proj.weight": 352**-0.5 / 6,
    }
    for key, std in expected_std.items():
        noise = (noisy[key] - 0.8 * plain[key]) / 0.2
        assert noise.std().item() == pytest.approx(std, rel=0.05)
    for key in ("model.norm.weight", "model.layers.0.input_layernorm.weight", "model.layers.1.mlp.up_proj.bias"):
        assert torch.equal(noisy[key], plain[key])
    first, second = "model.layers.0.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"
    assert not torch.equal(noisy[first], noisy[second])  # noise parts the copies


def test_every_weight_trains_on_its_own():
    model = build(grow_model(make_model("llama_biases"), FOUR_STACK)).train()
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    assert len(set(pointers)) == len(pointers)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer, ids = torch.optim.AdamW(model.parameters(), lr=1e-3), token_ids()
    for _ in range(2):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    still = [name for name, parameter in model.named_parameters() if torch.equal(before[name], parameter)]
    assert not still
    key = "model.layers.{}.mlp.up_proj.weight"
    assert not torch.equal(model.state_dict()[key.format(0)], model.state_dict()[key.format(3)])


@pytest.mark.parametrize(
    ("name", "shape", "deviation"),
    [
        ("model.embed_tokens.weight", (500, 256), math.sqrt(2 / (5 * 256))),
        ("model.layers.1.self_attn.q_proj.weight", (256, 128), math.sqrt(2 / (5 * 128))),
        ("model.layers.1.self_attn.o_proj.weight", (256, 128), math.sqrt(2 / (5 * 128))),
        ("model.layers.1.mlp.up_proj.weight", (384, 256), math.sqrt(2 / (5 * 256))),
        ("model.layers.1.mlp.down_proj.weight", (256, 384), 1 / math.sqrt(384) / 8),
    ],
)
def test_the_output_of_an_mlp_alone_starts_smaller_the_deeper_the_network(name, shape, deviation):
    drawn = draw(Llama().spec(name), name, Info(shape, torch.float32), 8, seed=0)
    assert drawn.mean().item() == pytest.approx(0, abs=deviation / 50)
    assert drawn.std().item() == pytest.approx(deviation, rel=0.02)
