"""A checkpoint that was trained on is still that checkpoint: its types, its keys, and what came with it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.stacking.models import logits, make_bpe, make_model, token_ids
from toolkit.launch import launch
from toolkit.stacking.checkpoints.write import readable_by_all

LLAMA3 = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3"}
LLAMA3 = LLAMA3 | {"original_max_position_embeddings": 32}
SHORT = ["experiment=grow_smoke", "budget.tokens=512", "compare.eval_tokens=128"]


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A grown bfloat16 Llama as it is published: version 4's keys, two ends of a text, a licence, a template."""
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    make_model(vocab_size=320, dtype=torch.bfloat16).save_pretrained("source")
    make_bpe().save_pretrained("source")
    source = Path("source")
    raw = json.loads((source / "config.json").read_text())
    del raw["rope_parameters"], raw["dtype"]
    raw |= {"rope_theta": 5e5, "rope_scaling": LLAMA3, "torch_dtype": "bfloat16", "eos_token_id": [1, 5]}
    (source / "config.json").write_text(json.dumps(raw))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5], "temperature": 0.6}))
    (source / "LICENSE").write_text("as is")
    (source / "USE_POLICY.md").write_text("be good")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    (source / "growth.json").write_text(json.dumps({"new_layers": [1]}))
    return source


def test_training_on_keeps_what_came_with_the_source(source):
    assert launch("grow-llm", [*SHORT, "stage=pretrain", "model=source", "hydra.run.dir=run"]) == 0
    out = Path("run/model/pretrain")
    assert json.loads((out / "config.json").read_text()) == json.loads((source / "config.json").read_text())
    for name in ("generation_config.json", "LICENSE", "USE_POLICY.md", "growth.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert (out / "additional_chat_templates" / "tool.jinja").is_file()
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16} and before.keys() == after.keys()
    assert not any(torch.equal(before[key], after[key]) for key in before if "proj" in key)
    network = AutoModelForCausalLM.from_pretrained(out)
    assert network.config.rope_parameters["rope_theta"] == 5e5
    assert network.generation_config.eos_token_id == [1, 5]


def test_a_tokenizer_of_the_users_replaces_the_sources(source):
    make_bpe(280).save_pretrained("other")
    words = ["stage=pretrain", "model=source", "tokenize.tokenizer=other", "hydra.run.dir=run"]
    assert launch("grow-llm", [*SHORT, *words]) == 0
    assert len(AutoTokenizer.from_pretrained("run/model/pretrain")) == 280 < len(AutoTokenizer.from_pretrained(source))


@pytest.mark.parametrize("scaling", [None, LLAMA3], ids=["plain", "llama3"])
def test_what_is_written_anew_is_read_alike_by_versions_4_and_5(scaling, tmp_path):
    """Version 4 reads rope_theta and rope_scaling and passes over rope_parameters; version 5 reads both forms."""
    model = make_model(rope_parameters={**(scaling or {"rope_type": "default"}), "rope_theta": 5e5})
    model.config.dtype = torch.float32
    written = readable_by_all(model.config)
    assert written["rope_theta"] == 5e5 and written.get("rope_scaling") == scaling
    assert "rope_parameters" not in written and "dtype" not in written and written["torch_dtype"] == "float32"
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(written))
    again, ids = AutoModelForCausalLM.from_pretrained(tmp_path), token_ids(1, 60)
    assert torch.equal(logits(again.eval(), ids), logits(model, ids))


def test_a_network_trained_here_is_written_for_both_versions(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    words = [*SHORT, "stage=pretrain", "network.rope_theta=500000", "hydra.run.dir=run"]
    assert launch("grow-llm", words) == 0
    written = json.loads(Path("run/model/pretrain/config.json").read_text())
    assert written["rope_theta"] == 5e5 and "rope_parameters" not in written and "_name_or_path" not in written
    settings = json.loads(Path("run/model/pretrain/tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert AutoModelForCausalLM.from_pretrained("run/model/pretrain").config.rope_parameters["rope_theta"] == 5e5
    assert AutoTokenizer.from_pretrained("run/model/pretrain")("def").input_ids
