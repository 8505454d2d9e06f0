"""G_learn: starts as G_stack in depth, trains its matrices, leaves plain weights (appendix A.6)."""

import itertools

import pytest
import torch

from tests.stacking.models import build, grow_model, logits, make_model, read_all, token_ids
from tests.stacking.reference import reference_logits
from toolkit.errors import JobError
from toolkit.stacking.config import Growth
from toolkit.stacking.operators.learn import train_map
from toolkit.stacking.operators.tensors import InMemory

DEPTH = Growth(operator="learn", factor=2)
WIDTH = Growth(operator="learn", direction="width", factor=2)


@pytest.mark.parametrize("name", ["llama", "llama_tied", "llama_biases", "qwen3"])
def test_untrained_depth_map_is_stack_bit_for_bit(name):
    model = make_model(name)
    learned, stacked = read_all(grow_model(model, DEPTH)), read_all(grow_model(model, Growth(factor=2)))
    assert learned.keys() == stacked.keys()
    assert all(torch.equal(learned[key], stacked[key]) for key in stacked)


def test_each_type_of_tensor_has_its_own_mixing_matrix():
    growth_map = grow_model(make_model(), DEPTH).growth_map
    assert len(growth_map.depth) == 9
    assert all(matrix.shape == (6, 3) for matrix in growth_map.depth.values())
    key = "model.layers.5.mlp.up_proj.weight"
    with torch.no_grad():
        growth_map.depth["mlp/up_proj/weight"][5] = torch.tensor([0.5, 0.25, 0.0])
    old = make_model().state_dict()
    expected = 0.5 * old[key.replace("5", "0")] + 0.25 * old[key.replace("5", "1")]
    grown = grow_model(make_model(), DEPTH, growth_map=growth_map)
    assert torch.equal(grown.tensors.read(key), expected)


def test_width_map_acts_on_both_sides():
    model = make_model("llama_biases")
    grown = grow_model(model, WIDTH)
    matrices, old, state = grown.growth_map.width, model.state_dict(), read_all(grown)
    block, residual = "model.layers.2.", matrices["residual"]
    assert torch.equal(residual[:32], torch.eye(32))
    expected = matrices["query"] @ old[block + "self_attn.q_proj.weight"] @ residual.T
    assert torch.allclose(state[block + "self_attn.q_proj.weight"], expected, atol=1e-6)
    assert torch.allclose(state["lm_head.weight"], old["lm_head.weight"] @ residual.T, atol=1e-6)
    assert torch.allclose(state["model.norm.weight"], residual @ old["model.norm.weight"], atol=1e-6)


def test_the_map_of_the_attention_output_is_the_values_once_for_each_place_in_a_group():
    growth_map = grow_model(make_model(), WIDTH).growth_map
    old, new = growth_map.old, growth_map.new
    size, group = old.head_size, old.heads // old.kv_heads
    value = torch.randn(new.kv_heads * size, old.kv_heads * size)
    growth_map.width["value"].data = value
    wanted = torch.zeros(new.heads, size, old.heads, size)  # query head h is at place h % group of group h // group
    for head, source in itertools.product(range(new.heads), range(old.heads)):
        if head % group == source % group:
            rows, columns = head // group * size, source // group * size
            wanted[head, :, source] = value[rows : rows + size, columns : columns + size]
    assert group > 1 and torch.equal(growth_map.matrix("attended"), wanted.reshape(new.heads * size, -1))


def test_attention_output_reads_what_the_values_became():
    """With values doubled and their halves read back, grouped query heads see the same function."""
    model = make_model().double()
    growth_map = grow_model(model, WIDTH).growth_map
    for matrix in growth_map.width.values():
        eye = torch.eye(matrix.shape[1])
        matrix.data = torch.cat([eye, torch.zeros(len(matrix) - len(eye), len(eye))])
    grown = grow_model(model, WIDTH, growth_map=growth_map)
    state = read_all(grown)
    for key in state:
        if "norm" in key:
            state[key] = state[key] * 0.5**0.5
    grown.config.rms_norm_eps /= 2
    ids = token_ids()
    before = reference_logits(model.config, model.state_dict(), ids)
    assert (reference_logits(grown.config, state, ids) - before).abs().max() < 1e-12


@pytest.mark.parametrize(("growth", "name"), [(DEPTH, "llama"), (WIDTH, "llama_tied")], ids=["depth", "width"])
def test_training_the_map_lowers_the_loss_and_exports_plain_weights(growth, name):
    model = make_model(name)
    grown, ids = grow_model(model, growth), token_ids()
    frozen = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    source = InMemory({key: frozen[key] for key in frozen if not (name == "llama_tied" and "lm_head" in key)})
    arguments = {"num_steps": 30, "warmup_steps": 5, "max_learning_rate": 1e-2, "min_learning_rate": 1e-3}
    train_map(grown.growth_map, grown.config, source, itertools.repeat(ids), **arguments)
    losses = grown.growth_map.losses
    assert losses[-1] < 0.8 * losses[0]
    exported = build(grow_model(model, growth, growth_map=grown.growth_map))
    with torch.no_grad():
        assert exported(ids, labels=ids).loss.item() < losses[0]
    assert all(torch.equal(model.state_dict()[key], frozen[key]) for key in frozen)
    assert logits(exported, ids).isfinite().all()


def test_a_loss_that_is_not_finite_stops_with_its_step():
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    grown = grow_model(model, DEPTH)
    with pytest.raises(JobError, match="at step 0"):
        train_map(grown.growth_map, grown.config, InMemory(model.state_dict()), itertools.repeat(token_ids()))
