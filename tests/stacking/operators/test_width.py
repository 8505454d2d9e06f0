"""Growth in width: exact in float64 where the paper's rules allow it (appendix A.3-A.5)."""

import math

import pytest
import torch

from tests.stacking.models import build, grow_model, logits, make_model, read_all, relative_change, token_ids
from tests.stacking.reference import reference_logits
from toolkit.errors import UserError
from toolkit.stacking.config import Growth
from toolkit.stacking.operators.width import column_weights

EXACT_FAMILIES = ["llama", "llama_mha", "llama_tied", "llama_biases", "qwen3"]


def change(model, growth):
    """Largest change of a logit in float64, by the reference network."""
    grown, ids = grow_model(model.double(), growth), token_ids()
    source = {k: v for k, v in model.state_dict().items() if k in read_all(grown)}
    after = reference_logits(grown.config, read_all(grown), ids)
    return (after - reference_logits(model.config, source, ids)).abs().max().item()


@pytest.mark.parametrize("name", EXACT_FAMILIES)
def test_the_reference_is_transformers_function(name):
    model, ids = make_model(name), token_ids()
    state = {k: v for k, v in model.state_dict().items() if not (name == "llama_tied" and "lm_head" in k)}
    assert (reference_logits(model.config, state, ids) - logits(model, ids)).abs().max() < 1e-4


@pytest.mark.parametrize("name", EXACT_FAMILIES)
@pytest.mark.parametrize(("factor", "split"), [(2, 0.5), (2, 0.7), (3, 0.5), (3, 0.7)])
def test_direct_is_exact_for_whole_factors(name, factor, split):
    assert change(make_model(name), Growth(operator="direct", direction="width", factor=factor, split=split)) < 1e-12


@pytest.mark.parametrize("name", EXACT_FAMILIES)
@pytest.mark.parametrize("factor", [2, 1.5])
def test_zero_is_exact(name, factor):
    assert change(make_model(name), Growth(operator="zero", direction="width", factor=factor)) < 1e-12


def test_zero_without_scaled_epsilon_is_off_by_the_epsilon():
    growth = Growth(operator="zero", direction="width", factor=2, scale_eps=False)
    assert 1e-8 < change(make_model(rms_norm_eps=1e-5), growth) < 1e-2


@pytest.mark.processor
def test_exact_in_transformers_float32_too():
    model, ids = make_model(), token_ids()
    for operator in ("direct", "zero"):
        after = logits(build(grow_model(model, Growth(operator=operator, direction="width", factor=2))), ids)
        assert relative_change(after, logits(model, ids)) < 1e-5


def test_sizes_keep_the_head():
    config = grow_model(make_model(), Growth(operator="direct", direction="width", factor=2)).config
    assert (config.hidden_size, config.num_attention_heads, config.num_key_value_heads) == (64, 8, 4)
    assert (config.head_dim, config.intermediate_size) == (8, 80)
    growth = Growth(operator="direct", direction="width", factor=2, intermediate_size=100)
    assert grow_model(make_model(), growth).config.intermediate_size == 100
    assert change(make_model(), growth) < 1e-12


def test_direct_tensors_are_the_papers():
    model = make_model("llama_biases")
    state = read_all(grow_model(model, Growth(operator="direct", direction="width", factor=2, split=0.75)))
    old, block = model.state_dict(), "model.layers.1."
    q = old[block + "self_attn.q_proj.weight"]
    wide = torch.cat([0.75 * q, 0.25 * q], 1)
    assert torch.equal(state[block + "self_attn.q_proj.weight"], torch.cat([wide, wide]))  # rows copied, columns split
    assert torch.equal(state[block + "self_attn.k_proj.bias"], old[block + "self_attn.k_proj.bias"].repeat(2))
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        assert state[key].shape == (97, 64)
    assert torch.equal(state["model.embed_tokens.weight"], old["model.embed_tokens.weight"].repeat(1, 2))
    assert torch.equal(state["model.norm.weight"], old["model.norm.weight"].repeat(2))


def test_zero_tensors_are_the_papers():
    model = make_model()
    state = read_all(grow_model(model, Growth(operator="zero", direction="width", factor=2)))
    old, up = model.state_dict(), "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(state[up][:40, :32], old[up])
    assert state[up][40:, :32].abs().max() == 0
    assert state[up][:, 32:].abs().min() > 0  # A and C are drawn: zero times zero would get no gradient
    assert torch.equal(state["model.norm.weight"][:32], old["model.norm.weight"] * math.sqrt(0.5))
    assert torch.equal(state["model.norm.weight"][32:], torch.ones(32))
    assert state["model.embed_tokens.weight"][:, 32:].abs().max() == 0
    assert state["lm_head.weight"][:, 32:].abs().min() > 0


def test_zero_gives_new_embedding_columns_a_gradient():
    model = build(grow_model(make_model(), Growth(operator="zero", direction="width", factor=2)))
    ids = token_ids()
    model(ids, labels=ids).loss.backward()
    assert model.model.embed_tokens.weight.grad[:, 32:].abs().max() > 1e-4


def test_random_keeps_the_old_block_and_draws_the_rest():
    model = make_model()
    state = read_all(grow_model(model, Growth(operator="random", direction="width", factor=2)))
    for key, tensor in model.state_dict().items():
        assert torch.equal(state[key][tuple(slice(size) for size in tensor.shape)], tensor)
    assert state["model.layers.0.mlp.down_proj.weight"][32:].abs().min() > 0


def test_uneven_split_lets_the_copies_part():
    ids = token_ids()
    differences = []
    for split in (0.5, 0.7):
        growth = Growth(operator="direct", direction="width", factor=2, split=split)
        model = build(grow_model(make_model(), growth))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        rows = model.model.layers[0].mlp.up_proj.weight
        differences.append((rows[:40] - rows[40:]).abs().max().item())
    assert differences[0] < 1e-6 < 1e-4 < differences[1]


def test_columns_sum_to_one():
    index = torch.arange(80) % 32  # two or three copies
    for split in (0.5, 0.7):
        sums = torch.zeros(32, dtype=torch.float64).index_add_(0, index, column_weights(index, split))
        assert torch.allclose(sums, torch.ones(32, dtype=torch.float64), atol=1e-15)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1.25, "2 key/value heads times it is 2.5"),
        (1.1, "4 attention heads"),
        (1, "must be greater than 1"),
    ],
)
def test_widths_that_cut_a_head_are_refused(factor, words):
    with pytest.raises(UserError, match=words):
        grow_model(make_model(), Growth(operator="direct", direction="width", factor=factor))
