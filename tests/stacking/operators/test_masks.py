"""G_random's masks: silent at 0, gone at 1 (appendix A.5)."""

import pytest
import torch

from tests.stacking.models import build, grow_model, logits, make_model, relative_change, token_ids
from toolkit.stacking.config import Growth
from toolkit.stacking.operators.masks import GrowthMasks

FAMILIES = ["llama", "llama_tied", "llama_biases", "qwen3"]


def masked(name, direction, grow_steps=10):
    source = make_model(name)
    grown = grow_model(source, Growth(operator="random", direction=direction, factor=2))
    model = build(grown)
    return source, model, GrowthMasks(model, grown.plan, grown.old, grown.new, grow_steps)


@pytest.mark.parametrize("name", FAMILIES)
def test_depth_at_zero_is_the_source(name):
    source, model, _ = masked(name, "depth")
    assert torch.equal(logits(model, token_ids()), logits(source, token_ids()))


@pytest.mark.parametrize("name", FAMILIES)
def test_width_at_zero_is_the_source(name):
    source, model, _ = masked(name, "width")
    assert relative_change(logits(model, token_ids()), logits(source, token_ids())) < 1e-5


@pytest.mark.parametrize(("direction", "last_step"), [("depth", 10), ("width", 30)])
def test_at_one_it_is_the_plain_model(direction, last_step):
    _, model, masks = masked("llama_biases", direction)
    ids = token_ids()
    masks.set_step(last_step // 2)
    halfway = logits(model, ids)
    masks.set_step(last_step)
    opened = logits(model, ids)
    masks.remove()
    assert torch.equal(opened, logits(model, ids))
    assert (halfway - opened).abs().max() > 1e-3


def test_width_opens_in_three_phases():
    _, _, masks = masked("llama", "width")
    masks.set_step(15)
    assert (masks.open["mlp"], masks.open["residual"], masks.open["heads"]) == (1, 0.5, 0)


def test_masks_hide_new_parts_from_training_until_they_open():
    _, model, masks = masked("llama", "depth")
    ids, weight = token_ids(), model.model.layers[4].mlp.up_proj.weight
    model(ids, labels=ids).loss.backward()
    assert weight.grad.abs().max() == 0
    masks.set_step(5)
    model(ids, labels=ids).loss.backward()
    assert weight.grad.abs().max() > 0
