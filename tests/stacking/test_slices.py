"""mergekit's files: layers of one or several checkpoints, against transformers' own modules copied by hand."""

import json

import pytest
import torch
import yaml

from tests.stacking.checkpoints.test_open import load_strictly
from tests.stacking.models import logits, make_model, make_tokenizer, token_ids
from tests.stacking.operators.test_families import by_hand, layers_of, model_of
from toolkit.errors import UserError
from toolkit.launch import launch
from toolkit.stacking.config import Growth
from toolkit.stacking.grow_folder import grow_checkpoint

SLICES = Growth(operator="slices")


def part(model, first, last, **more):
    return {"sources": [{"model": model, "layer_range": [first, last], **more}]}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Two Llamas of one shape, ``a`` of three layers and ``b`` of five."""
    monkeypatch.chdir(tmp_path)
    found = {"a": make_model(), "b": make_model(seed=1, num_hidden_layers=5)}
    for name, model in found.items():
        model.save_pretrained(name)
        make_tokenizer().save_pretrained(name)
    return found


def write(*slices, **more):
    content = {"slices": list(slices), "merge_method": "passthrough", "dtype": "float32", **more}
    with open("merge.yml", "w") as file:
        yaml.safe_dump(content, file)


def test_overlapping_ranges_of_one_model(models):
    write(part("a", 0, 2), part("a", 1, 3))
    assert launch("grow-llm", ["stage=grow", "operator=slices", "model=merge.yml", "out=out", "hydra.run.dir=run"]) == 0
    ids = token_ids()
    assert torch.equal(logits(load_strictly("out"), ids), logits(by_hand(models["a"], [0, 1, 1, 2]), ids))
    with open("out/growth.json") as file:
        report = json.load(file)
    assert report["source_layers"] == [0, 1, 1, 2] and report["new_layers"] == [2]
    assert "layers 1 to 2 of a" in report["notes"]


def test_layers_of_two_models(models):
    """Embedding of the first slice's model, final norm and head of the last one's."""
    write(part("a", 0, 2), part("b", 3, 5), part("b", 2, 4))
    grow_checkpoint("merge.yml", "out", SLICES)
    target, ids = by_hand(models["b"], [0, 1, 3, 4, 2, 3]), token_ids()
    for number in (0, 1):
        layers_of(target)[number].load_state_dict(layers_of(models["a"])[number].state_dict())
    target.model.embed_tokens.load_state_dict(models["a"].model.embed_tokens.state_dict())
    assert torch.equal(logits(load_strictly("out"), ids), logits(target, ids))


def test_settings_of_layers_come_from_their_own_model(models, tmp_path):
    model_of("gemma2").save_pretrained("c")
    write(part("c", 0, 2), part("c", 1, 3))
    grow_checkpoint("merge.yml", "out", SLICES)
    ids = token_ids()
    assert torch.equal(logits(load_strictly("out"), ids), logits(by_hand(model_of("gemma2"), [0, 1, 1, 2]), ids))


def test_scaled_to_nothing_a_copy_is_silent(models):
    silent = {"scale": [{"filter": "o_proj", "value": 0.0}, {"filter": "down_proj", "value": 0.0}, {"value": 1.0}]}
    write(part("a", 0, 2), part("a", 1, 2, parameters=silent), part("a", 2, 3))
    report = grow_checkpoint("merge.yml", "out", SLICES)
    assert report["function"]["verdict"] == "exact"
    half = {"scale": [{"filter": "down_proj", "value": 0.5}]}
    write(part("a", 0, 3, parameters=half))
    grow_checkpoint("merge.yml", "half", SLICES)
    old, new = models["a"].state_dict(), load_strictly("half").state_dict()
    for name, tensor in new.items():
        assert torch.equal(tensor, old[name] * (0.5 if "down_proj" in name else 1))


def test_a_star_fits_every_tensor_that_no_earlier_filter_fits(models):
    scale = [{"filter": "down_proj", "value": 1.0}, {"filter": "*", "value": 0.5}]
    write(part("a", 0, 3, parameters={"scale": scale}), tokenizer_source="base")
    grow_checkpoint("merge.yml", "out", SLICES)
    old, new = models["a"].state_dict(), load_strictly("out").state_dict()
    for name, tensor in new.items():
        assert torch.equal(tensor, old[name] * (1 if "down_proj" in name else 0.5))


def test_a_filter_is_held_against_the_number_that_a_layer_had(models):
    """As mergekit does (plan.py reads the parameters of a source by the name of the tensor that comes in)."""
    write(part("b", 3, 5, parameters={"scale": [{"filter": "layers.4.mlp", "value": 0.5}]}), part("b", 0, 1))
    grow_checkpoint("merge.yml", "out", SLICES)
    old, new = models["b"].state_dict(), load_strictly("out").state_dict()
    for target, source, factor in [(0, 3, 1.0), (1, 4, 0.5), (2, 0, 1.0)]:
        for name in ("mlp.up_proj.weight", "self_attn.o_proj.weight"):
            wanted = old[f"model.layers.{source}.{name}"] * (factor if "mlp" in name else 1)
            assert torch.equal(new[f"model.layers.{target}.{name}"], wanted)


@pytest.mark.parametrize("scale", [0.5, [{"filter": "*", "value": 0.5}, {"value": 3.0}]])
def test_a_scale_is_of_all_that_comes_from_its_slice(models, scale):
    """The embedding is of the first slice, final norm and head of the last one."""
    write(part("a", 0, 1, parameters={"scale": scale}), part("a", 1, 2), part("b", 2, 3, parameters={"scale": 0.25}))
    grow_checkpoint("merge.yml", "out", SLICES)
    first, last, new = (one.state_dict() for one in (models["a"], models["b"], load_strictly("out")))
    assert torch.equal(new["model.embed_tokens.weight"], 0.5 * first["model.embed_tokens.weight"])
    for name in ("model.norm.weight", "lm_head.weight"):
        assert torch.equal(new[name], 0.25 * last[name])
    for layer, source, factor in [(0, first, 0.5), (1, first, 1.0), (2, last, 0.25)]:
        name = f"model.layers.{layer}.input_layernorm.weight"
        assert torch.equal(new[name], factor * source[name])


REFUSED = [
    ({"slices": [part("a", 0, 9)]}, "layer_range [0, 9]: a has 3 layers"),
    ({"slices": [part("a", 2, 2)]}, "slices[0]: must name a model and layer_range"),
    ({"slices": []}, "slices: must be a list"),
    ({"slices": [part("a", 0, 2)], "merge_method": "slerp"}, "merge_method slerp mixes weights"),
    ({"slices": [part("a", 0, 2)], "base_model": "a"}, "base_model is not understood"),
    ({"slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}] * 2}]}, "must hold one model"),
    ({"slices": [part("a", 0, 2, parameters={"weight": 1})]}, "weight is not understood"),
    ({"slices": [part("a", 0, 2, parameters={"scale": "much"})]}, "scale: must be a number"),
    ({"slices": [part("a", 0, 2, parameters={"scale": True})]}, "scale: must be a number"),
    ({"slices": [part("a", 0, 2, parameters={"scale": float("nan")})]}, "scale: nan would leave no number"),
    (
        {"slices": [part("a", 0, 2, parameters={"scale": [{"filter": "c_proj", "value": 0}]})]},
        "filter c_proj: no tensor of these layers of a has that in its name",
    ),
    ({"slices": [part("a", 0, 2)], "tokenizer_source": "b"}, "tokenizer_source b: the tokenizer is a's"),
    ({"slices": [part("a", 0, 2), part("b", 0, 2)], "tokenizer_source": "union"}, "tokenizer_source union"),
    ({"slices": [part("a", 0, 2)], "dtype": "bfloat16"}, "dtype bfloat16: a is stored in float32"),
    ({"slices": [part("a", 0, 2), part("wide", 0, 2)]}, "hidden_size is 32 in a, but 64 in wide"),
]


@pytest.mark.parametrize(("content", "message"), REFUSED)
def test_what_is_not_understood_is_refused(models, content, message):
    if "wide" in message:
        make_model(hidden_size=64).save_pretrained("wide")
    with open("merge.yml", "w") as file:
        yaml.safe_dump(content, file)
    with pytest.raises(UserError) as caught:
        grow_checkpoint("merge.yml", "out", SLICES)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["slices: [", "just words", "- 1"])
def test_files_that_are_none(models, text):
    with open("merge.yml", "w") as file:
        file.write(text)
    with pytest.raises(UserError, match=r"merge.yml: (cannot be read|must hold)"):
        grow_checkpoint("merge.yml", "out", SLICES)
