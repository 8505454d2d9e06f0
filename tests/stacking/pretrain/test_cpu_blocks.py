"""The CPU's own forward and backward of Llama layers against transformers and autograd."""

import pytest
import torch

from tests.stacking.models import make_model, token_ids
from toolkit.stacking.pretrain import cpu_blocks
from toolkit.stacking.pretrain.language_loss import LanguageModelLoss

pytestmark = pytest.mark.processor


@pytest.mark.parametrize("name", ["llama", "llama_mha", "llama_tied"])
@pytest.mark.parametrize("tokens", [1, 17])
def test_values_and_gradients_are_transformers(name, tokens):
    model, ids = make_model(name).train(), token_ids(3, tokens)
    parameters = dict(model.model.named_parameters())
    theirs = model.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
    ours = cpu_blocks.hidden_states(model, ids)
    assert torch.allclose(ours, theirs, atol=2e-5)
    towards = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad(theirs, list(parameters.values()), towards)
    found = torch.autograd.grad(ours, list(parameters.values()), towards)
    for key, one, other in zip(parameters, found, expected, strict=True):
        assert (one - other).abs().max() <= 2e-5 * max(1.0, other.abs().max().item()), key


def test_a_mask_hides_the_future():
    model, ids = make_model().train(), token_ids(1, 12)
    changed = ids.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % 97
    one, other = cpu_blocks.hidden_states(model, ids), cpu_blocks.hidden_states(model, changed)
    assert torch.equal(one[:8], other[:8]) and not torch.equal(one[8:], other[8:])


@pytest.mark.parametrize("name", ["llama_biases", "mistral", "qwen3"])
def test_other_networks_keep_transformers_own_code(name):
    model, ids = make_model(name).train(), token_ids(2, 9)
    assert not cpu_blocks.usable(model, ids)
    loss = LanguageModelLoss(model)(ids[:, :-1], ids[:, 1:])
    assert loss.item() == pytest.approx(model(input_ids=ids, labels=ids, use_cache=False).loss.item(), rel=1e-4)


def test_what_looks_inside_a_layer_gets_to_look():
    model, ids = make_model().train(), token_ids(1, 9)
    assert cpu_blocks.usable(model, ids)
    with torch.autocast("cpu", torch.bfloat16):
        assert not cpu_blocks.usable(model, ids)
    hook = model.model.layers[1].register_forward_hook(lambda module, inputs, output: output)
    assert not cpu_blocks.usable(model, ids)
    hook.remove()
    assert cpu_blocks.usable(model, ids) and not cpu_blocks.usable(model.double(), ids)
