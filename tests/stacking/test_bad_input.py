"""What cannot be grown is refused in one line, and nothing half-written stays behind."""

import json
import random
import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BloomConfig, LlamaForSequenceClassification, LlamaModel

from tests.stacking.models import make_model, make_tokenizer
from tests.stacking.refusals import STACK, refused
from toolkit.errors import JobError, UserError
from toolkit.stacking.checkpoints.open import open_checkpoint, open_weights
from toolkit.stacking.config import Growth
from toolkit.stacking.grow_folder import grow_checkpoint
from toolkit.stacking.operators.grow import grow


def first_shard(folder):
    return sorted(folder.glob("*.safetensors"))[0]


def test_nothing_there(tmp_path):
    refused(tmp_path / "absent", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no config.json")


def test_a_folder_of_another_kind_says_what_it_is(one, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    refused(adapter, "holds an adapter (LoRA) only; merge it into its base first")
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "c0ffee"
    snapshot.parent.mkdir(parents=True)
    one.rename(snapshot)
    for place in (tmp_path / "hub", tmp_path / "hub" / "models--org--name"):
        refused(place, f"the checkpoint in it is {snapshot}", out=tmp_path / "out")


def test_no_weights(one):
    first_shard(one).unlink()
    refused(one, "no model.safetensors")


def test_shard_cut_short(many):
    shard = first_shard(many)
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(many, f"{shard.name}: ")


def with_header(text):
    return len(text).to_bytes(8, "little") + text


DAMAGED = [b"", b"\xff" * 64, with_header(b"not json"), with_header(b"[1, 2]"), with_header(b'{"a": {"dtype": "F32"}}')]


@pytest.mark.parametrize("content", DAMAGED)
def test_not_a_safetensors_file(one, content):
    first_shard(one).write_bytes(content)
    refused(one, "model.safetensors: not a")


def test_missing_shard(many):
    shard = first_shard(many)
    shard.unlink()
    refused(many, f"names {shard.name}, which is not there")


def edit_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_index_of_something_else(many):
    edit_index(many, lambda weights: weights.update(dict.fromkeys(weights, 5)))
    refused(many, "not an index of shards")


def test_missing_index_entry(many):
    edit_index(many, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    refused(many, "no entry for model.layers.1.mlp.up_proj.weight")


def test_index_entry_without_a_tensor(many):
    edit_index(many, lambda weights: weights.update({"model.extra.weight": first_shard(many).name}))
    refused(many, "holds model.extra.weight, which it does not")


def test_another_architecture(one):
    BloomConfig().save_pretrained(one)
    refused(one, "model_type bloom is not of a known family")


def test_unknown_and_quantised_configs(one):
    path = one / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    refused(one, "quantised")
    path.write_text("{")
    refused(one, "config.json: damaged, or no JSON")


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, {"format": "pt"})


def test_tensors_that_do_not_fit_the_config(one):
    edit_tensors(one, lambda state: state.update({"model.adapter.weight": torch.ones(2)}))
    refused(one, "unknown tensor model.adapter.weight")
    edit_tensors(one, lambda state: (state.pop("model.adapter.weight"), state.pop("model.norm.weight")))
    refused(one, "missing tensor model.norm.weight")
    edit_tensors(one, lambda state: state.update({"model.norm.weight": torch.ones(31)}))
    refused(one, "model.norm.weight is [31], its config asks for [32]")


def test_types_that_are_not_floats(one):
    edit_tensors(one, lambda state: state.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}))
    refused(one, "stored as I8")


def test_tokenizer_larger_than_the_vocabulary(one):
    """As CodeLlama's Python models are published: it comes along, and the report says so."""
    make_tokenizer(120).save_pretrained(one)
    report = grow_checkpoint(one, one.parent / "out", STACK)
    assert "the tokenizer knows 23 more tokens than the network, in source and target alike" in report["notes"]
    assert report["function"]["measured_on"] == "text"
    assert len(AutoTokenizer.from_pretrained(one.parent / "out")) == 120


def test_tokenizer_that_cannot_be_read(one):
    make_tokenizer().save_pretrained(one)
    (one / "tokenizer.json").write_text("{")
    refused(one, "its tokenizer cannot be read")


def test_growth_that_does_not_fit(one):
    refused(one, "not a whole number", growth=Growth(factor=1.5))
    refused(one, "key/value heads", growth=Growth(operator="zero", direction="width", factor=1.25))


def test_out_folder_that_is_not_empty(one):
    out = one.parent / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    refused(one, "exists and is not an empty folder", out=out)
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["folder", "link", "working folder"])
def test_an_empty_folder_that_is_there_is_filled_and_stays_itself(one, kind, monkeypatch):
    """A mount point, a link to a scratch disk or the folder one stands in cannot be replaced by another."""
    real = one.parent / "real"
    real.mkdir()
    (real / "lost+found").mkdir()
    (one.parent / "link").symlink_to(real)
    monkeypatch.chdir(real if kind == "working folder" else one.parent)
    inode = real.stat().st_ino
    grow_checkpoint(one, {"folder": real, "link": one.parent / "link", "working folder": "."}[kind], STACK)
    assert real.stat().st_ino == inode and (one.parent / "link").is_symlink()
    names = {path.name for path in real.iterdir()}
    assert names >= {"config.json", "model.safetensors", "growth.json"} and ".partial" not in names
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        grow_checkpoint(one, real, STACK)


def test_a_folder_that_is_there_is_empty_again_where_files_cannot_all_be_moved_into_it(one):
    """Because somebody else has made a folder of the name of the last one meanwhile."""
    out = one.parent / "out"
    out.mkdir()

    def interfere():
        (out / "config.json" / "mine").mkdir(parents=True, exist_ok=True)

    with pytest.raises(JobError, match="writing failed, nothing was kept"):
        grow_checkpoint(one, out, STACK, measure=False, on_tensor=interfere)
    assert [path.name for path in out.iterdir()] == ["config.json"]
    assert [path.name for path in (out / "config.json").iterdir()] == ["mine"]


def test_a_folder_that_is_there_is_empty_again_after_a_failure(one):
    real = one.parent / "real"
    real.mkdir()
    with largest_file(100_000), pytest.raises(JobError, match="writing failed, nothing was kept"):
        grow_checkpoint(one, real, STACK)
    assert list(real.iterdir()) == []
    (real / ".partial").mkdir()
    (real / ".partial" / "model.safetensors").write_bytes(b"half")  # of a killed attempt
    grow_checkpoint(one, real, STACK)
    assert not (real / ".partial").exists()


@contextmanager
def largest_file(num_bytes):
    """As on a full disk, a write beyond this many bytes fails."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_write_failing_in_the_middle_of_a_shard(one):
    with largest_file(100_000):
        refused(one, "writing failed, nothing was kept", JobError)
    grow_checkpoint(one, one.parent / "out", STACK)


def test_a_killed_attempt_is_cleared_away(one):
    partial = one.parent / ".out.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    (partial / "transformer").mkdir()
    (partial / "transformer" / "config.json").write_text("{}")
    grow_checkpoint(one, one.parent / "out", STACK)
    assert not partial.exists()


def header_of(*entries):
    """A safetensors file of float32 vectors at these offsets."""
    header = {f"t{i}": {"dtype": "F32", "shape": [2], "data_offsets": list(ends)} for i, ends in enumerate(entries)}
    return with_header(json.dumps(header).encode()) + bytes(max(end for _, end in entries))


@pytest.mark.parametrize(
    "content", [header_of((0, 8), (4, 12)), header_of((0, 8), (16, 24)), header_of((0, 8), (0, 8))]
)
def test_tensors_that_overlap_or_leave_gaps(one, content):
    """The library that made the format refuses them too."""
    first_shard(one).write_bytes(content)
    with pytest.raises(SafetensorError):
        load_file(first_shard(one))
    refused(one, "its tensors overlap or leave gaps")


def test_a_header_nested_without_end(one):
    first_shard(one).write_bytes(with_header(b"[" * 50_000))
    refused(one, "its header cannot be read")


def test_configs_with_values_of_all_kinds_are_grown_or_refused_in_one_line(one):
    """Every key of config.json set to things it should not be: no traceback, nothing built that would not fit."""
    path = one / "config.json"
    raw = json.loads(path.read_text())
    draws = random.Random(0)
    values = [None, -1, 0, 1.5, 10**9, "x", [], {}, True, [1, 2], "nan"]
    for key in sorted(raw):
        for value in draws.sample(values, 3):
            path.write_text(json.dumps(raw | {key: value}))
            try:
                checkpoint = open_checkpoint(one)
                grow(checkpoint.architecture, checkpoint.config, checkpoint.tensors, STACK)
            except UserError as error:
                assert "\n" not in str(error)


def test_a_bin_file_that_holds_more_than_tensors(tmp_path):
    torch.save({"a": torch.zeros(2), "b": {"c": torch.zeros(2)}}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: b is a dict, expected tensors by name"):
        open_weights(tmp_path)


def test_what_lies_in_a_folder_without_a_config_is_named(tmp_path):
    for name, said in (
        ("model.Q4_0.gguf", "no config.json there; give the file, "),
        ("checkpoint-20/config.json", "no config.json there; give one of the checkpoints in it, such as "),
        ("consolidated.00.pth", "holds weights in their maker's own layout (consolidated.00.pth)"),
    ):
        folder = tmp_path / name.partition("/")[0] / "folder"
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"")
        refused(folder, said)
        if name.endswith("config.json"):
            refused(folder, f"such as {folder / 'checkpoint-20'} (")


def test_a_file_of_a_checkpoint_is_told_its_folder(one):
    refused(one / "config.json", f"is a file; give its folder, {one}", out=one.parent / "out")


def test_an_adapter_beside_weights_is_refused(one):
    (one / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    refused(one, "adapter_config.json: an adapter (LoRA) beside the weights of the folder; merge it into its base")


def test_weights_of_a_variant_are_named(one):
    first_shard(one).rename(one / "model.fp16.safetensors")
    refused(one, "pytorch_model.bin there (but model.fp16.safetensors; a variant is read under the plain name)")


@pytest.mark.parametrize("kind", [LlamaModel, LlamaForSequenceClassification])
def test_a_network_without_the_head_of_a_language_model_says_what_it_is(kind, tmp_path):
    kind(make_model().config).save_pretrained(tmp_path / "source")
    refused(tmp_path / "source", f"no head of a language model (lm_head.weight); its config says {kind.__name__}")


def test_settings_of_a_tokenizer_without_the_tokenizer_say_so(one):
    make_tokenizer().save_pretrained(one)
    (one / "tokenizer.json").unlink()
    refused(one, "settings of a tokenizer, but no tokenizer (tokenizer.json, ")


def test_code_of_a_checkpoints_own_is_not_run_and_that_is_said(one, caplog):
    open_checkpoint(one)
    assert "auto_map" not in caplog.text
    config = json.loads((one / "config.json").read_text())
    (one / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}))
    open_checkpoint(one)
    assert "config.json: names code of its own (auto_map), which is not run: read as transformers' own" in caplog.text


def test_the_config_of_a_checkpoint_is_read_once(one, monkeypatch):
    from toolkit.stacking.checkpoints import open as opening

    read, names = opening.read_object, []
    monkeypatch.setattr(opening, "read_object", lambda path, **kinds: names.append(path.name) or read(path, **kinds))
    open_checkpoint(one)
    assert names.count("config.json") == 1


def test_a_pointer_of_git_lfs_is_told_from_damage(one):
    first_shard(one).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(one, "model.safetensors: not a whole safetensors file (a pointer of Git LFS stands in its place; git lfs")
