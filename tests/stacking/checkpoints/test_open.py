"""A checkpoint folder in, one out that transformers takes as any other."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.stacking.models import CONFIGS, logits, make_model, make_tokenizer, relative_change, token_ids
from toolkit.stacking.checkpoints import probe
from toolkit.stacking.checkpoints.open import open_checkpoint
from toolkit.stacking.checkpoints.probe import SAMPLE_TEXT, transformers_logits
from toolkit.stacking.checkpoints.safetensors_io import SafetensorsFile
from toolkit.stacking.config import Growth
from toolkit.stacking.grow_folder import grow_checkpoint

STACK = Growth(operator="stack", factor=2)
OPERATORS = [
    STACK,
    Growth(operator="zero", factor=2),
    Growth(operator="random", factor=2),
    Growth(operator="direct", direction="width", factor=2),
    Growth(operator="learn", direction="width", factor=2),
]

PRESERVING = [Growth(operator="zero", factor=2), Growth(operator="direct", direction="width", factor=2)]


def load_strictly(folder):
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_loads_strictly_and_generates_with_and_without_cache(name, tmp_path):
    source = make_model(name)
    source.save_pretrained(tmp_path / "source")
    for number, growth in enumerate(OPERATORS):
        report = grow_checkpoint(tmp_path / "source", tmp_path / str(number), growth)
        model, prompt = load_strictly(tmp_path / str(number)), token_ids(1, 6)
        settings = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
        cached, uncached = (model.generate(prompt, use_cache=use, **settings) for use in (True, False))
        assert torch.equal(cached, uncached)
        assert cached.shape == (1, 16)
        assert sum(p.numel() for p in model.parameters()) == report["cost"]["target"]["parameters"]
        tied = model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
        assert tied == source.config.tie_word_embeddings == report["tied"]
        if growth.operator in ("zero", "direct"):
            assert relative_change(logits(model, prompt), logits(source, prompt)) < 1e-5


@pytest.mark.parametrize("large", [False, True], ids=["in memory", "from disk"])
@pytest.mark.parametrize("name", ["llama", "llama_tied", "qwen3"])
def test_what_is_probed_is_the_model(name, large, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "IN_MEMORY", 0 if large else 2**28)
    model, ids = make_model(name), token_ids()
    model.save_pretrained(tmp_path / "model")
    tensors = open_checkpoint(tmp_path / "model").tensors
    assert torch.equal(transformers_logits(tmp_path / "model", ids, tensors, str(tmp_path)), logits(model, ids))


def test_report_tells_what_came_from_where(tmp_path):
    make_model().save_pretrained(tmp_path / "source")
    report = grow_checkpoint(tmp_path / "source", tmp_path / "out", Growth(operator="zero", factor=2))
    assert report == json.loads((tmp_path / "out" / "growth.json").read_text())
    assert report["source_layers"] == [0, 0, 1, 1, 2, 2]
    assert report["new_layers"] == report["zeroed_layers"] == [1, 3, 5]
    assert report["connection_rate"] == 0.4
    assert report["growth_factor"] == pytest.approx(2, abs=0.01)
    cost = report["cost"]["target"]
    assert cost["flops_total"] == 6 * cost["parameters"] > cost["flops_non_embedding"] == 6 * cost["non_embedding"]
    assert report["function"]["verdict"] == "exact"
    assert report["function"]["measured_on"] == "random ids"
    assert "random token ids, not on text" in report["notes"][0]
    assert report["peak_memory_mib"] > 0


def test_tokenizer_and_generation_config_come_along(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    model = make_model()
    model.generation_config = GenerationConfig(temperature=0.7, do_sample=True, eos_token_id=2)
    model.save_pretrained(source)
    make_tokenizer().save_pretrained(source)
    (source / "LICENSE").write_text("as is")
    report = grow_checkpoint(source, out, STACK)
    assert AutoTokenizer.from_pretrained(out)("the river").input_ids == [4, 5]
    assert load_strictly(out).generation_config.temperature == 0.7
    assert (out / "LICENSE").read_text() == "as is"
    assert report["function"]["measured_on"] == "text"
    assert report["function"]["verdict"] == "not preserved"
    assert report["function"]["num_tokens"] == 64 <= len(SAMPLE_TEXT.split())
    own_text = grow_checkpoint(source, tmp_path / "own", STACK, text="the river of it")
    assert own_text["function"]["num_tokens"] == 4


def test_config_is_the_sources_but_for_what_growth_changes(tmp_path):
    """Rotary frequencies in the form of transformers 4, keys of other programs, a class of somebody's own."""
    source = tmp_path / "source"
    make_model().save_pretrained(source)
    raw = json.loads((source / "config.json").read_text())
    del raw["rope_parameters"], raw["dtype"]
    scaling = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3"}
    raw |= {"rope_theta": 5e5, "rope_scaling": scaling | {"original_max_position_embeddings": 32}}
    raw |= {"torch_dtype": "float32", "eos_token_id": [2, 3], "auto_map": {"AutoModel": "theirs.Model"}, "mine": [1]}
    (source / "config.json").write_text(json.dumps(raw))
    for name, growth, changes in (
        ("deep", Growth(operator="zero", factor=2), {"num_hidden_layers": 6}),
        ("wide", Growth(operator="direct", direction="width", factor=2), {"hidden_size": 64, "intermediate_size": 80}),
    ):
        report = grow_checkpoint(source, tmp_path / name, growth)
        assert report["function"]["verdict"] in ("exact", "preserved")
        written = json.loads((tmp_path / name / "config.json").read_text())
        heads = {"num_attention_heads": 8, "num_key_value_heads": 4} if name == "wide" else {}
        expected = {key: value for key, value in raw.items() if key != "auto_map"} | changes | heads
        assert written == expected
        ids = token_ids(1, 40)
        assert relative_change(logits(load_strictly(tmp_path / name), ids), logits(load_strictly(source), ids)) < 1e-5


def test_perplexities_in_the_report_are_transformers(tmp_path):
    make_model().save_pretrained(tmp_path / "source")
    make_tokenizer().save_pretrained(tmp_path / "source")
    report = grow_checkpoint(tmp_path / "source", tmp_path / "out", STACK)["function"]
    ids = make_tokenizer()(SAMPLE_TEXT, return_tensors="pt").input_ids[:, :64]
    for name, folder in (("source", "source"), ("target", "out")):
        with torch.no_grad():
            loss = load_strictly(tmp_path / folder)(ids, labels=ids).loss
        assert report[f"{name}_perplexity"] == pytest.approx(loss.exp().item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_type_is_kept(dtype, tmp_path):
    model = make_model(dtype=dtype)
    model.save_pretrained(tmp_path / "source")
    for name, growth in (("stack", STACK), ("width", Growth(operator="direct", direction="width", factor=2))):
        report = grow_checkpoint(tmp_path / "source", tmp_path / name, growth)
        grown = load_strictly(tmp_path / name)
        assert {parameter.dtype for parameter in grown.parameters()} == {dtype}
        assert report["dtypes"] == [str(dtype).removeprefix("torch.")]
    assert report["function"]["verdict"] == "preserved"


def test_shards_in_and_out(tmp_path):
    model = make_model(dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "source", max_shard_size="10KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 3
    report = grow_checkpoint(tmp_path / "source", tmp_path / "out", STACK, max_shard_bytes=10_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == report["shards"] > 6
    assert index["metadata"]["total_size"] == report["bytes"]
    one_file = make_model(dtype=torch.bfloat16)
    one_file.save_pretrained(tmp_path / "one")
    grow_checkpoint(tmp_path / "one", tmp_path / "one_out", STACK)
    states = [load_strictly(tmp_path / name).state_dict() for name in ("out", "one_out")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


def test_old_bin_files_are_read_without_unpickling_objects(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "new")
    old = tmp_path / "old"
    old.mkdir()
    shutil.copy(tmp_path / "new" / "config.json", old)
    constant = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    torch.save(model.state_dict() | constant, old / "pytorch_model.bin")
    grow_checkpoint(old, tmp_path / "out", STACK)
    state, expected = load_strictly(tmp_path / "out").state_dict(), model.state_dict()
    assert torch.equal(state["model.layers.4.mlp.up_proj.weight"], expected["model.layers.1.mlp.up_proj.weight"])


def test_a_tied_head_stored_twice_is_stored_once(tmp_path):
    from safetensors.torch import load_file, save_file

    model = make_model("llama_tied")
    model.save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"
    state = load_file(path)
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, path, {"format": "pt"})
    grow_checkpoint(tmp_path / "source", tmp_path / "out", STACK)
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    load_strictly(tmp_path / "out")


def test_a_head_that_should_be_tied_and_is_not_stays_its_own(tmp_path):
    """Merged adapters write such files; transformers 5 unties them, and 4 would drop the head."""
    from safetensors.torch import load_file, save_file

    make_model("llama_tied").save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"
    state = load_file(path)
    head = state["model.embed_tokens.weight"] + 0.1 * torch.randn(97, 32, generator=torch.Generator().manual_seed(0))
    save_file(state | {"lm_head.weight": head}, path, {"format": "pt"})
    source, ids = load_strictly(tmp_path / "source"), token_ids()
    assert (logits(source, ids) - logits(make_model("llama_tied"), ids)).abs().max() > 0.5
    for number, growth in enumerate(PRESERVING):
        report = grow_checkpoint(tmp_path / "source", tmp_path / str(number), growth)
        grown = load_strictly(tmp_path / str(number))
        assert report["function"]["verdict"] in ("exact", "preserved") and not report["tied"]
        assert (logits(grown, ids) - logits(source, ids)).abs().max() < 1e-5
        assert json.loads((tmp_path / str(number) / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_tied_model_that_stores_only_its_head(tmp_path):
    from safetensors.torch import load_file, save_file

    model, ids = make_model("llama_tied"), token_ids()
    model.save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"
    state = load_file(path)
    state["lm_head.weight"] = state.pop("model.embed_tokens.weight")
    save_file(state, path, {"format": "pt"})
    report = grow_checkpoint(tmp_path / "source", tmp_path / "out", Growth(operator="zero", factor=2))
    assert report["function"]["verdict"] == "exact"
    assert torch.equal(logits(load_strictly(tmp_path / "out"), ids), logits(model, ids))


def test_the_probe_sees_what_the_reader_gets_wrong(tmp_path, monkeypatch):
    """Preservation is measured by transformers: a reader that loses a tensor's values cannot call itself exact."""
    make_model().save_pretrained(tmp_path / "source")
    read, write = SafetensorsFile.read, SafetensorsFile.write

    def write_wrongly(self, name, file):
        if name == "model.norm.weight":
            file.write((read(self, name) * 1.5).numpy().data)
        else:
            write(self, name, file)

    monkeypatch.setattr(SafetensorsFile, "write", write_wrongly)
    monkeypatch.setattr(
        SafetensorsFile, "read", lambda self, name: read(self, name) * (1.5 if "model.norm" in name else 1)
    )
    report = grow_checkpoint(tmp_path / "source", tmp_path / "out", Growth(operator="zero", factor=2))
    assert report["function"]["verdict"] == "not preserved"


def test_memory_is_a_tensors_not_the_models(tmp_path):
    """64 MiB in 8 MiB shards, grown to 192 MiB, in far less memory than one source."""
    sizes = {"hidden_size": 512, "head_dim": 128, "intermediate_size": 1024, "num_hidden_layers": 8}
    make_model(**sizes).save_pretrained(tmp_path / "source", max_shard_size="8MB")
    checkpoint = open_checkpoint(tmp_path / "source")
    if not Path("/proc/self/status").exists():
        pytest.skip("resident memory is read from /proc")
    lines = Path("/proc/self/status").read_text().splitlines()
    before = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
    report = grow_checkpoint(checkpoint, tmp_path / "out", Growth(factor=3), measure=False)
    assert report["bytes"] > 150 * 2**20
    assert report["peak_memory_mib"] - before < 8
