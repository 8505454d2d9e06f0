"""Folders of the release: imported strictly, written back, found on the hub's cache; what is wrong is named."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.zoo.golden import GOLDEN, IVIDEOGPT_WEIGHTS, golden_weights, write_ivideogpt
from tests.zoo.world.nano_world import nano_clips, nano_tokenizer, nano_transformer
from toolkit import zoo
from toolkit.errors import UserError
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.release import import_ivideogpt
from toolkit.zoo.world.transformer import VideoTransformer


@pytest.fixture
def source(tmp_path):
    return write_ivideogpt(tmp_path / "official")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights_of(folder, part):
    return load_file(folder / part / IVIDEOGPT_WEIGHTS[part])


def test_every_tensor_comes_back_as_it_was(source, tmp_path):
    notice = zoo.import_weights("ivideogpt", source, tmp_path / "ours")
    assert "MIT" in notice
    for part in IVIDEOGPT_WEIGHTS:
        before, after = weights_of(source, part), weights_of(tmp_path / "ours", part)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    config = json.loads((tmp_path / "ours" / "tokenizer" / "config.json").read_text())
    original = json.loads((source / "tokenizer" / "config.json").read_text())
    assert {key: config[key] for key in original if not key.startswith("_")} == {
        key: one for key, one in original.items() if not key.startswith("_")
    }
    llama = json.loads((tmp_path / "ours" / "transformer" / "config.json").read_text())
    assert llama["model_type"] == "llama" and llama["rope_theta"] == 10000.0 and llama["vocab_size"] == 114
    # and what was written can be imported again
    import_ivideogpt(tmp_path / "ours", tmp_path / "again")
    assert zoo.load(tmp_path / "again").transformer.action_dim == 4


def test_the_folder_of_the_release_itself_can_be_loaded(source):
    world = zoo.load(source)
    assert isinstance(world, WorldModel) and world.spec.action_dim == 4 and not world.spec.has_reward
    assert type(zoo.load(source, part="tokenizer")).__name__ == "CompressiveVQModel"


def test_bare_and_prefixed_names_are_one(source, tmp_path):
    """An action-free release has bare names; the same weights under "llm." load too, and bare ones are written."""
    llama = {
        name: one
        for name, one in golden_weights(GOLDEN / "ivideogpt" / "transformer").items()
        if name.startswith("llm.")
    }
    bare = {name.removeprefix("llm."): one for name, one in llama.items()}
    path, found = source / "transformer" / "model.safetensors", []
    for form in (llama, bare):
        save_file(form, path)
        found.append(zoo.load(source))
    one, two = (world.transformer for world in found)
    assert one.action_dim == two.action_dim == 0
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    found[0].save_pretrained(tmp_path / "written")
    assert weights_of(tmp_path / "written", "transformer").keys() == bare.keys()


@pytest.mark.parametrize("context_length", [1, 2])
@pytest.mark.parametrize(
    "heads",
    [{}, {"has_reward": True}, {"has_reward": True, "has_action_recon": True, "spatial_embedding": True}],
    ids=str,
)
def test_other_sizes_are_read_from_the_tensors(tmp_path, context_length, heads):
    """Other widths, one context frame, five actions, grouped key-value heads, reward and reconstruction heads."""
    tokenizer = nano_tokenizer(context_length)
    transformer = nano_transformer(tokenizer, action_dim=5, **heads)
    WorldModel(tokenizer, transformer).save_pretrained(tmp_path / "official")
    (tmp_path / "official" / "config.json").unlink()  # the release has none
    import_ivideogpt(tmp_path / "official", tmp_path / "ours")
    world = zoo.load(tmp_path / "ours")
    assert (world.spec.action_dim, world.spec.T0, world.spec.has_reward) == (5, context_length, bool(heads))
    clips = nano_clips(dtype=torch.float32)[0]
    tokens, actions = tokenizer.tokenize(clips), torch.randn(3, 6, 5)
    assert torch.equal(world.tokenizer.tokenize(clips), tokens)
    ours, theirs = world.transformer(tokens, tokenizer.layout, actions), transformer(tokens, tokenizer.layout, actions)
    assert (ours.recon_actions is None) == ("has_action_recon" not in heads)
    # weights are equal to the bit; products with them round by where they begin in memory, and a file's begin elsewhere
    assert all(torch.equal(one, transformer.state_dict()[key]) for key, one in world.transformer.state_dict().items())
    torch.testing.assert_close(ours.loss, theirs.loss)
    torch.testing.assert_close(ours.rewards, theirs.rewards)


def test_the_half_precision_of_a_config_is_not_taken(source):
    edit_config(source / "transformer", torch_dtype="float16")
    weights = weights_of(source, "transformer")
    save_file({name: one.half() for name, one in weights.items()}, source / "transformer" / "model.safetensors")
    world = zoo.load(source)
    assert all(one.dtype == torch.float32 for one in world.parameters())


def test_an_imported_transformer_refuses_another_tokenizer(source, tmp_path):
    import_ivideogpt(source, tmp_path / "ours")
    path = tmp_path / "ours" / "tokenizer" / IVIDEOGPT_WEIGHTS["tokenizer"]
    weights = load_file(path)
    weights["quantize.embedding.weight"] = weights["quantize.embedding.weight"].flip(0).contiguous()
    save_file(weights, path)
    with pytest.raises(UserError, match=r"ours: transformer: trained with another tokenizer"):
        zoo.load(tmp_path / "ours")
    with pytest.raises(UserError, match="trained with another tokenizer"):
        import_ivideogpt(tmp_path / "ours", tmp_path / "again")
    assert not (tmp_path / "again").exists()


TOKENIZER, TRANSFORMER = "tokenizer", "transformer"
NORM = "llm.model.norm.weight"
BROKEN = [
    (lambda s: shutil.rmtree(s / TOKENIZER), "no tokenizer/ there"),
    (lambda s: (s / TOKENIZER / "config.json").write_text("{"), "damaged, or no JSON"),
    (lambda s: (s / TRANSFORMER / "model.safetensors").unlink(), r"transformer/model.safetensors: not found"),
    (lambda s: (s / TRANSFORMER / "model.safetensors").write_bytes(b"junk"), "not a readable safetensors file"),
    (lambda s: edit_config(s / TOKENIZER, patch=4), "unknown key 'patch'"),
    (lambda s: edit_config(s / TOKENIZER, patch_size=3), "patch_size=3: must divide the latent map's size, 16"),
    (lambda s: edit_config(s / TOKENIZER, context_length=1), r"kv_pos_emb: shape \(512, \d+\), expected \(256, \d+\)"),
    (lambda s: edit_config(s / TOKENIZER, down_block_types=["No"] * 3), "no network can be built"),
    (lambda s: edit_config(s / TRANSFORMER, model_type="gpt2"), "model_type=gpt2: only llama is known"),
    (lambda s: edit_config(s / TRANSFORMER, num_attention_heads=5), "no network can be built.*not a multiple"),
    (lambda s: edit_config(s / TRANSFORMER, vocab_size=8192), r"shape \(114, 64\), expected \(8192, 64\)"),
    (lambda s: edit_config(s / TRANSFORMER, num_hidden_layers=2), "unexpected tensor"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN)
def test_a_damaged_source_is_one_clear_line_and_nothing_is_written(source, tmp_path, damage, message):
    damage(source)
    with pytest.raises(UserError, match=message) as error:
        import_ivideogpt(source, tmp_path / "ours")
    assert "\n" not in str(error.value) and str(source) in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["official"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({TRANSFORMER: {NORM: None}}, f"1 missing tensor.*{NORM}"),
        ({TRANSFORMER: {"llm.more": torch.zeros(2)}}, "1 unexpected tensor.*llm.more"),
        ({TRANSFORMER: {NORM: torch.zeros(3)}}, rf"{NORM}: shape \(3,\), expected \(64,\)"),
        ({TRANSFORMER: {"action_linear.bias": torch.zeros(64, dtype=torch.int64)}}, "dtype torch.int64"),
        ({TRANSFORMER: {"action_linear.weight": None}}, "unexpected tensor.*action_linear.bias"),
        ({TOKENIZER: {"quant_linear.bias": None}}, "1 missing tensor.*quant_linear.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, changes, message):
    source = write_ivideogpt(tmp_path / "official", **changes)
    with pytest.raises(UserError, match=message):
        import_ivideogpt(source, tmp_path / "ours")


def test_a_used_destination_is_refused(source, tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "mine").write_text("")
    with pytest.raises(UserError, match="exists already"):
        import_ivideogpt(source, tmp_path / "ours")


def test_a_run_folder_gives_its_world_model(source, tmp_path):
    import_ivideogpt(source, tmp_path / "run" / "model")
    assert isinstance(zoo.load(tmp_path / "run"), WorldModel)
    assert type(zoo.load(tmp_path / "run", part="tokenizer")).__name__ == "CompressiveVQModel"


def test_the_action_range_is_kept(tmp_path):
    tokenizer = nano_tokenizer()
    world = WorldModel(tokenizer, nano_transformer(tokenizer), action_low=[-1, -2, -3], action_high=[1, 2, 3])
    world.save_pretrained(tmp_path / "world", safe_serialization=True, variant=None)  # as push_to_hub calls it
    assert zoo.load(tmp_path / "world").config == world.config
    edit_config(tmp_path / "world", action_lows=[1])
    with pytest.raises(UserError, match="not the config of a world model"):
        zoo.load(tmp_path / "world")


def test_the_nine_published_models_are_known_and_load_from_the_cache(source, tmp_path, monkeypatch):
    rows = {row["name"]: row for row in zoo.list_published()}
    assert len(rows) == 9 and all(
        row["licence"] == "MIT" and row["hub"].startswith("thuml/ivideogpt-") for row in rows.values()
    )
    assert rows["ivideogpt_oxe_64_act_free"]["parameters"] == 114_159_174 + 138_434_304
    assert rows["ivideogpt_oxe_64_act_free_medium"]["parameters"] == 114_159_174 + 436_261_888
    assert rows["ivideogpt_oxe_256_act_free"]["parameters"] == 310_472_774 + 138_434_304
    assert rows["ivideogpt_bair_64_act_cond"]["parameters"] == 113_831_494 + 138_434_304 + 5 * 768
    shown = zoo.show_network("ivideogpt_bair_64_act_cond")
    assert shown["hub"] == "thuml/ivideogpt-bair-64-act-cond" and shown["config"]["action_dim"] == 4

    # the hub's cache as its client lays it out, with golden weights in the place of the published ones
    repository = tmp_path / "cache" / "models--thuml--ivideogpt-bair-64-act-cond"
    shutil.copytree(source, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("ivideogpt_bair_64_act_cond", "thuml/ivideogpt-bair-64-act-cond"):
        assert zoo.load(name).spec.action_dim == 4
    with pytest.raises(UserError, match="thuml/ivideogpt-robonet-64-act-cond: no such folder, and not to be had"):
        zoo.load("ivideogpt_robonet_64_act_cond")


def test_a_transformer_alone_is_saved_and_read(tmp_path):
    network = nano_transformer(nano_tokenizer(), has_reward=True)
    network.save_pretrained(tmp_path)
    loaded = VideoTransformer.from_pretrained(tmp_path)
    assert loaded.action_dim == 3 and loaded.has_reward and loaded.config.num_key_value_heads == 2
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), network.state_dict().values(), strict=True)
    )
