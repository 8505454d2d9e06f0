"""Weights and settings that other programs wrote: old files of torch, odd values of a config, NaN."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.stacking.models import make_model
from tests.stacking.refusals import refused
from toolkit.errors import UserError
from toolkit.stacking.checkpoints.open import open_checkpoint, open_weights
from toolkit.stacking.pretrain.networks import build


def as_bin(folder, wrapped=lambda state: state, **options):
    """The weights as an old file of torch."""
    torch.save(wrapped(load_file(folder / "model.safetensors")), folder / "pytorch_model.bin", **options)
    (folder / "model.safetensors").unlink()


def test_a_file_from_before_torch_1_6_is_read_as_any_other(one, saved):
    as_bin(one, _use_new_zipfile_serialization=False)
    assert set(open_weights(one).infos) == set(load_file(saved / "one" / "model.safetensors"))


@pytest.mark.parametrize(
    ("wrapped", "said"),
    [
        (
            lambda state: make_model(),
            "it holds a transformers.models.llama.modeling_llama.LlamaForCausalLM, which",
        ),
        (list, "holds a list, expected tensors by name"),
        (lambda state: {"state_dict": state}, "state_dict is a dict, expected tensors by name"),
    ],
)
def test_a_file_that_holds_more_or_less_than_a_state_dict(one, wrapped, said):
    as_bin(one, wrapped)
    refused(one, said)


def test_a_program_of_torchscript_and_what_torch_did_not_write(one):
    (one / "model.safetensors").unlink()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), one / "pytorch_model.bin")
    refused(one, "it is a program of TorchScript, which is not run; save the module's state_dict")
    for content in (b"hello", b"<html>"):
        (one / "pytorch_model.bin").write_bytes(content)
        refused(one, "pytorch_model.bin: cannot be read: torch.save writes no such file (")


def test_a_shard_of_old_files_that_is_missing_is_named(one):
    as_bin(one)
    (one / "pytorch_model.bin").rename(one / "pytorch_model-00001-of-00002.bin")
    names = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    (one / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    refused(one, "pytorch_model.bin.index.json: names pytorch_model-00002-of-00002.bin, which is not there")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0; expected a whole number from 1"),
        ({"max_position_embeddings": None}, "max_position_embeddings is None; expected a whole number from 1"),
        ({"quantization_config": {}}, "the weights are quantised"),
        ({"hidden_act": "none such"}, "cannot be read: KeyError: 'none such'"),
    ],
)
def test_odd_values_of_a_config(one, changes, said):
    path = one / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(one, said)


def test_settings_of_generation_are_looked_at_before_the_work(one):
    (one / "generation_config.json").write_text("[]")
    refused(one, "generation_config.json: expected a JSON object, found list; mend the file, or move it away")


def test_weights_that_are_no_numbers_are_named(one):
    state = load_file(one / "model.safetensors")
    state["model.norm.weight"][3] = float("nan")
    save_file(state, one / "model.safetensors", {"format": "pt"})
    refused(one, "model.norm.weight holds numbers that are not finite; measure=false grows it all the same")
    checkpoint = open_checkpoint(one)
    with pytest.raises(UserError, match=r"^model\.norm\.weight holds numbers that are not finite; a network with"):
        build(checkpoint.config, checkpoint.tensors)
