"""Where checkpoints come from besides a folder: a GGUF file, and the hub (here a server that speaks like one)."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tests.stacking.checkpoints.test_open import load_strictly
from tests.stacking.models import logits, make_bpe, make_model, token_ids
from toolkit.errors import UserError
from toolkit.launch import launch
from toolkit.stacking.checkpoints.open import open_checkpoint
from toolkit.stacking.config import Growth
from toolkit.stacking.grow_folder import grow_checkpoint

STACK = Growth(operator="stack", factor=2)
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path, model, tokenizer=None, architecture="llama", head_size=None):
    """A Llama as llama.cpp stores it: rows of queries and keys in its order of rotary pairs."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    if head_size is not None:
        writer.add_key_length(head_size)
    if tokenizer is not None:
        bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
        tokens += ["<|endoftext|>", *(f"<unused{i}>" for i in range(config.vocab_size - len(tokens) - 1))]
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.float().numpy()
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        for part, heads in (("attn_q", config.num_attention_heads), ("attn_k", config.num_key_value_heads)):
            if part in name:
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ["llama", "llama_tied"])
def test_gguf_is_the_model_it_was_written_from(name, tmp_path):
    model = make_model(name, vocab_size=320)
    write_gguf(tmp_path / "model.gguf", model, make_bpe())
    report = grow_checkpoint(tmp_path / "model.gguf", tmp_path / "out", STACK)
    grown = load_strictly(tmp_path / "out")
    for key, tensor in model.state_dict().items():
        assert torch.equal(grown.state_dict()[key], tensor)
    assert report["tied"] == (name == "llama_tied")
    assert report["function"]["measured_on"] == "text"
    assert "unpacked to float32" in " ".join(report["notes"])
    text = "the river over the bridge"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text).input_ids == make_bpe()(text).input_ids

    silent = grow_checkpoint(tmp_path / "model.gguf", tmp_path / "silent", Growth(operator="zero", factor=2))
    assert silent["function"]["verdict"] == "exact"
    assert silent["function"]["source_perplexity"] == silent["function"]["target_perplexity"]
    assert torch.equal(logits(load_strictly(tmp_path / "silent"), token_ids()), logits(model, token_ids()))


def test_gguf_without_a_tokenizer(tmp_path):
    write_gguf(tmp_path / "model.gguf", make_model())
    report = grow_checkpoint(tmp_path / "model.gguf", tmp_path / "out", STACK)
    assert report["function"]["measured_on"] == "random ids"
    assert not list((tmp_path / "out").glob("tokenizer*"))


def test_gguf_that_cannot_be_read(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    write_gguf(path, make_model(), make_bpe())
    whole = path.read_bytes()
    for content, words in ((b"junk", "not a GGUF file"), (whole[:-1000], "not a whole one")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            open_checkpoint(path)
    write_gguf(path, make_model(), architecture="stablelm")
    with pytest.raises(UserError, match="model_type stablelm is not of a known family"):
        open_checkpoint(path)
    model = make_model()
    del model.model.layers[2].mlp.up_proj
    write_gguf(path, model)
    with pytest.raises(UserError, match=r"missing keys in the weights: model.layers.2.mlp.up_proj.weight"):
        open_checkpoint(path)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(UserError, match=r"needs the extra gguf \(pip install .*\[gguf\]'\)"):
        open_checkpoint(path)


def test_gguf_whose_heads_are_of_another_size_says_so(tmp_path):
    write_gguf(tmp_path / "model.gguf", make_model(head_dim=16), head_size=16)
    with pytest.raises(UserError, match="its heads have 16 features, but transformers reads 8"):
        open_checkpoint(tmp_path / "model.gguf")


class Hub(BaseHTTPRequestHandler):
    """What ``snapshot_download`` asks of a hub, for the one repository ``ours/model`` in ``folder``."""

    folder: Path
    commit = "c0ffee" * 6 + "0123"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/ours/model"):
            self.answer(json.dumps(self.about()).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/ours/model/resolve/"):
            content = (self.folder / path.rsplit("/", 1)[1]).read_bytes()
            self.answer(content, {"ETag": hashlib.sha1(content).hexdigest(), "X-Repo-Commit": self.commit})
        else:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def about(self):
        names = sorted(path.name for path in self.folder.iterdir())
        files = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names]
        return (
            files
            if "/tree/" in self.path
            else {"id": "ours/model", "sha": self.commit, "siblings": [{"rfilename": name} for name in names]}
        )

    def answer(self, content, headers):
        self.send_response(200)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine, and an empty cache of it; yields the environment for the command."""
    monkeypatch.chdir(tmp_path)
    Hub.folder = tmp_path / "repository"
    make_model(vocab_size=320).save_pretrained(Hub.folder)
    make_bpe().save_pretrained(Hub.folder)
    (Hub.folder / "consolidated.safetensors").write_bytes(b"the same weights again")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    yield {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    server.shutdown()


GROW = ("stage=grow", "model=ours/model", "operator=stack", "factor=2")


@pytest.mark.slow
def test_a_hub_id_is_fetched_once(hub, tmp_path, monkeypatch):
    command = [sys.executable, "-m", "toolkit.cli", "grow-llm", *GROW, "out=out"]
    subprocess.run(command, env=os.environ | hub, check=True, timeout=120)
    for key, tensor in make_model(vocab_size=320).state_dict().items():
        assert torch.equal(load_strictly(tmp_path / "out").state_dict()[key], tensor)
    assert json.loads((tmp_path / "out" / "growth.json").read_text())["function"]["measured_on"] == "text"
    assert not list((tmp_path / "cache").rglob("consolidated*"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    assert launch("grow-llm", [*GROW, "out=again"]) == 0  # offline, as every test
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


def test_hub_names_are_refused_offline(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert launch("grow-llm", ["stage=grow", "model=some-org/some-model", "operator=stack", "factor=2"]) == 2
    assert "model=some-org/some-model: no such folder, and not to be had from the hub" in capfd.readouterr().err
