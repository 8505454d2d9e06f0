"""Weights of 16 bits are split, mixed, scaled and noised in float32 and rounded once; by hand, tensor by tensor."""

import math
from types import SimpleNamespace

import pytest
import torch

from tests.stacking.models import build, grow_model, logits, make_model, read_all, token_ids
from toolkit.runs.seeds import generator
from toolkit.stacking.config import Growth
from toolkit.stacking.operators.architecture import Spaces
from toolkit.stacking.operators.depth import Deeper
from toolkit.stacking.operators.llama import Llama
from toolkit.stacking.operators.masks import GrowthMasks
from toolkit.stacking.operators.patterns import Layer, connection_rate, gradual, layer_plan
from toolkit.stacking.operators.tensors import InMemory, precise
from toolkit.stacking.operators.width import column_weights, wider_spaces
from toolkit.stacking.slices import Sliced

HALF = torch.bfloat16


def rounded(exact):
    return exact.to(HALF)


def test_only_doubles_stay_doubles():
    assert precise(torch.zeros(1, dtype=HALF)).dtype == precise(torch.zeros(1)).dtype == torch.float32
    assert precise(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("split", [0.5, 0.7])
def test_copied_columns_are_weighed_in_full_and_rounded_once(split):
    """Three copies: a third each, or 0.7, 0.21 and 0.09. Of a tied head the final norm is divided instead."""
    shares = [1 / 3] * 3 if split == 0.5 else [0.7, 0.3 * 0.7, 0.3 * 0.3]
    model = make_model("llama_tied", dtype=HALF)
    state = read_all(grow_model(model, Growth(operator="direct", direction="width", factor=3, split=split)))
    old, up = model.state_dict(), "model.layers.1.mlp.up_proj.weight"
    wide = torch.cat([rounded(old[up].float() * torch.tensor(share)) for share in shares], 1)
    assert state[up].dtype == HALF and torch.equal(state[up], torch.cat([wide] * 3))
    norm = "model.norm.weight"
    assert torch.equal(state[norm], torch.cat([rounded(old[norm].float() / 3)] * 3))
    assert torch.equal(state["model.embed_tokens.weight"], old["model.embed_tokens.weight"].repeat(1, 3))


def test_the_share_of_each_copy():
    """Columns 0, 1, 0, 1, 0: three copies of the first, two of the second."""
    index = torch.tensor([0, 1, 0, 1, 0])
    assert column_weights(index, 0.25).tolist() == pytest.approx([0.25, 0.25, 0.75 * 0.25, 0.75, 0.75 * 0.75])
    assert column_weights(index, 0.5).tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 3, 1 / 2, 1 / 3])


def test_noise_is_mixed_in_full_precision_by_the_seed_and_the_name():
    """(1 - 0.3) W + 0.3 eps; the outputs of attention and MLP with 1 / (fan-in l^2), six layers."""
    model = make_model(dtype=HALF)
    growth = Growth(operator="stack", factor=2, noise=0.3)
    state = read_all(grow_model(model, growth, seed=4))
    deviations = {
        "self_attn.o_proj.weight": 32**-0.5 / 6,
        "mlp.down_proj.weight": 40**-0.5 / 6,
        "mlp.up_proj.weight": math.sqrt(2 / (5 * 32)),
    }
    for rest, std in deviations.items():
        name = f"model.layers.4.{rest}"
        plain = model.state_dict()[f"model.layers.1.{rest}"].float()
        noise = torch.randn(plain.shape, generator=generator(4, "noise", name))
        assert torch.equal(state[name], rounded(plain.mul(0.7).add(noise, alpha=0.3 * std))), rest


def test_fresh_layers_are_drawn_by_seed_name_and_depth_and_take_settings_in_turn():
    model = make_model(dtype=HALF)
    grown = grow_model(model, Growth(operator="random", num_layers=8), seed=3)
    assert [layer.source for layer in grown.plan] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert [layer.fresh for layer in grown.plan] == [False] * 3 + [True] * 5
    name = "model.layers.5.mlp.down_proj.weight"
    noise = torch.randn(32, 40, generator=generator(3, "growth", name))
    assert torch.equal(grown.tensors.read(name), rounded(noise * (40**-0.5 / 8)))
    deeper = Deeper(InMemory(model.state_dict()), Llama(), grown.plan, Llama().shapes(grown.config), seed=3)
    assert torch.equal(deeper.read(name), grown.tensors.read(name))


def test_what_is_appended_in_width_is_drawn_by_the_networks_depth_and_the_mlps_own_size():
    model, name = make_model(), "model.layers.1.mlp.down_proj.weight"
    growth = Growth(operator="random", direction="width", factor=2, intermediate_size=90)
    grown = grow_model(model, growth, seed=3)
    wanted = torch.randn(64, 90, generator=generator(3, "growth", name)) * (90**-0.5 / 3)  # of three layers
    wanted[:32, :40] = model.state_dict()[name]
    torch.testing.assert_close(grown.tensors.read(name), wanted)
    assert grown.config.intermediate_size == 90


def test_a_map_mixes_layers_in_full_precision():
    """0.3 W_0 + 0.6 W_2, rounded once."""
    model, key = make_model(dtype=HALF), "model.layers.4.mlp.up_proj.weight"
    growth_map = grow_model(model, Growth(operator="learn", factor=2)).growth_map
    with torch.no_grad():
        growth_map.depth["mlp/up_proj/weight"][4] = torch.tensor([0.3, 0.0, 0.6])
    grown = grow_model(model, Growth(operator="learn", factor=2), growth_map=growth_map)
    one, three = (model.state_dict()[key.replace("4", str(layer))].float() for layer in (0, 2))
    wanted = torch.tensor(0.3) * one + torch.tensor(0.6) * three
    assert torch.equal(grown.tensors.read(key), rounded(wanted)) and grown.growth_map is growth_map


def test_a_scaled_slice_is_scaled_in_full_precision_and_keeps_its_type():
    state = make_model(dtype=HALF).state_dict()
    checkpoint = SimpleNamespace(architecture=Llama(), tensors=InMemory(state))
    origin = SimpleNamespace(checkpoint=checkpoint, number=2, scales=[("", 0.3)])
    name, source = "model.layers.0.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"
    made = Sliced([origin], {name: (40, 32)}).read(name)
    assert made.dtype == HALF and torch.equal(made, rounded(state[source].float() * 0.3))


# -- sizes, plans and masks --------------------------------------------------------------------------------------------


def test_an_uneven_growth_in_width_has_its_own_size_of_the_mlp():
    old = Spaces(residual=32, heads=4, kv_heads=2, head_size=8, mlp=40)
    assert wider_spaces(old, 1.5) == Spaces(48, 6, 3, 8, 60)
    assert wider_spaces(old, 1.5, 41) == Spaces(48, 6, 3, 8, 41)


def test_plans_by_hand():
    assert gradual(3, 10) == [0, 1, 2, 0, 1, 2, 2, 0, 1, 2]  # doubled, then the last four again
    assert gradual(2, 7) == [0, 1, 0, 1, 1, 0, 1]
    zero = layer_plan(Growth(operator="zero", factor=2), 2)
    assert [(one.source, one.zeroed) for one in zero] == [(0, False), (0, True), (1, False), (1, True)]
    solar = layer_plan(Growth(operator="solar", num_layers=10), 8)
    assert [one.source for one in solar] == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7]
    fresh = [Layer(0), Layer(1), Layer(2, new=True, fresh=True), Layer(3)]
    assert connection_rate(fresh) == pytest.approx(1 / 3)  # what is drawn anew was nobody's neighbour


def test_half_open_masks_weigh_features_and_norms():
    """Of 32 features 16 are old; the new ones at c count c: x / sqrt(mean square) times sqrt((16 + 16 c) / 32)."""
    source = make_model(rms_norm_eps=0.5)
    grown = grow_model(source, Growth(operator="random", direction="width", factor=2))
    network = build(grown)
    masks = GrowthMasks(network, grown.plan, grown.old, grown.new, grow_steps=10)
    assert torch.allclose(logits(network, token_ids()), logits(source, token_ids()), atol=2e-4)
    for step, opened in ((5, (0.5, 0, 0)), (15, (1, 0.5, 0)), (24, (1, 1, 0.4)), (40, (1, 1, 1))):
        masks.set_step(step)
        assert tuple(masks.open[name] for name in ("mlp", "residual", "heads")) == pytest.approx(opened)
        filled = (32 + opened[1] * 32) / 64
        x, norm = torch.randn(3, 64), network.model.layers[1].post_attention_layernorm
        wanted = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.5 * filled) * norm.weight * filled**0.5
        torch.testing.assert_close(norm(x), wanted)
        mlp, features = network.model.layers[0].mlp, torch.randn(3, 80)
        seen = features * torch.cat([torch.ones(40), torch.full((40,), float(opened[0]))])
        written = torch.cat([torch.ones(32), torch.full((32,), float(opened[1]))])
        torch.testing.assert_close(mlp.down_proj(features), (seen @ mlp.down_proj.weight.T) * written)
        heads = torch.cat([torch.ones(32), torch.full((32,), float(opened[2]))])
        out, attended = network.model.layers[2].self_attn.o_proj, torch.randn(3, 64)
        torch.testing.assert_close(out(attended), ((attended * heads) @ out.weight.T) * written)
    masks.set_step(3)
    masks.remove()
    norms = [one for name, one in network.named_modules() if name.endswith(("layernorm", "model.norm"))]
    assert len(norms) == 7 and {one.variance_epsilon for one in norms} == {0.5}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_half_open_layer_gives_a_mean_of_its_output_and_its_input():
    source = make_model()
    grown = grow_model(source, Growth(operator="random", num_layers=4))
    network = build(grown)
    masks = GrowthMasks(network, grown.plan, grown.old, grown.new, grow_steps=8)
    seen = {}
    network.model.layers[3].register_forward_hook(lambda _, inputs, output: seen.update(x=inputs[0], y=output))
    masks.set_step(2)
    logits(network, token_ids())
    mixed, before = seen["y"], seen["x"]
    masks.set_step(8)
    logits(network, token_ids())
    torch.testing.assert_close(mixed, 0.25 * seen["y"] + 0.75 * before)


def test_epsilon_is_scaled_where_asked_and_only_by_zero():
    for operator, scaled, wanted in (("zero", True, 0.5), ("zero", False, 1.0), ("random", True, 1.0)):
        growth = Growth(operator=operator, direction="width", factor=2, scale_eps=scaled)
        config = grow_model(make_model(rms_norm_eps=1e-3), growth).config
        assert config.rms_norm_eps == pytest.approx(1e-3 * wanted), operator
