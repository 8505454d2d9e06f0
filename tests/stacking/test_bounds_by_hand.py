"""Which tensors of each family write, what fresh gains are, what is predicted from what, and G_learn's own numbers."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from toolkit.stacking.operators.architecture import Spec
from toolkit.stacking.operators.families import FAMILIES
from toolkit.stacking.operators.learn import train_map
from toolkit.stacking.operators.masks import GrowthMasks
from toolkit.stacking.operators.tensors import Info, draw
from toolkit.stacking.pretrain.tokens import Sequences, held_out

WRITERS = {  # outputs of attention and MLP, which a silent copy has zero
    "llama": "self_attn.o_proj mlp.down_proj",
    "gemma2": "self_attn.o_proj mlp.down_proj",
    "phi": "self_attn.dense mlp.fc2",
    "opt": "self_attn.out_proj fc2",
    "gpt2": "attn.c_proj mlp.c_proj",
    "gpt_neox": "attention.dense mlp.dense_4h_to_h",
    "qwen3_moe": "self_attn.o_proj mlp.down_proj mlp.experts.*.down_proj",
    "mixtral": "self_attn.o_proj mlp.down_proj block_sparse_moe.experts.*.w2",
}


@pytest.mark.parametrize("name", WRITERS)
def test_attention_and_mlp_write_by_their_last_matrix_and_its_bias(name):
    tensors = FAMILIES[name].layer_tensors
    stems = WRITERS[name].split()
    wanted = {one for one in tensors if one.rpartition(".")[0] in stems}
    assert {one for one, spec in tensors.items() if spec.writes} == wanted
    assert {one.rpartition(".")[0] for one in wanted if one.endswith("weight")} == set(stems)


def test_a_fresh_gain_changes_nothing_and_a_fresh_bias_is_nought():
    """Gemma's norms multiply by one more than their gain."""
    for neutral in (0.0, 1.0):
        gain = draw(Spec("gain", ("residual",), neutral=neutral), "norm", Info((5,), torch.float32), 3, 0)
        assert torch.equal(gain, torch.full((5,), neutral))
    assert not draw(Spec("bias", ("residual",)), "bias", Info((5,), torch.float32), 3, 0).any()
    gains = [spec.neutral for spec in FAMILIES["gemma"].layer_tensors.values() if spec.kind == "gain"]
    assert gains and set(gains) == {0.0}


def test_gpt2s_inner_width_is_stated_or_four_times_the_outer_and_experts_are_counted():
    sizes = {"n_embd": 12, "n_head": 3}
    for inner, wanted in ((20, 20), (None, 48)):
        assert FAMILIES["gpt2"].spaces(SimpleNamespace(n_inner=inner, **sizes)).mlp == wanted
    config = SimpleNamespace(num_local_experts=8, num_experts_per_tok=2)
    assert FAMILIES["mixtral"].active_share(config, "block_sparse_moe.experts.3.w2.weight") == 0.25
    assert FAMILIES["mixtral"].active_share(config, "block_sparse_moe.gate.weight") == 1.0


def test_every_token_is_predicted_from_those_before_it_and_held_out_windows_are_spread():
    tokens = np.arange(3 * 11 + 1, dtype=np.uint16)
    inputs, targets = Sequences(tokens, 3, 0).batch(2, 4)
    assert inputs.shape == (4, 3) and torch.equal(targets, inputs + 1) and len(inputs[:, 0].unique()) == 4
    inputs, targets = held_out(tokens, 3, 4 * 3)
    assert inputs[:, 0].tolist() == [3 * start for start in (0, 2, 5, 8)]  # of windows 0 .. 10: 0, 2.75, 5.5, 8.25
    assert torch.equal(targets, inputs + 1)


def test_steps_and_rates_of_g_learn_and_steps_of_masks_are_the_authors():
    named = {name: one.default for name, one in inspect.signature(train_map).parameters.items()}
    found = [named[name] for name in ("num_steps", "warmup_steps", "max_learning_rate", "min_learning_rate")]
    assert found == [100, 50, 7e-5, 7e-6] and (named["weight_decay"], named["clip_norm"]) == (0.1, 1.0)
    assert inspect.signature(GrowthMasks).parameters["grow_steps"].default == 5000
