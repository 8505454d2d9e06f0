"""Every family through transformers' own classes: what we grow against layers that transformers copies by hand."""

import copy
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.stacking.models import CONFIGS, VOCABULARY, logits, make_model, token_ids
from toolkit.errors import UserError
from toolkit.stacking.config import Growth
from toolkit.stacking.grow_folder import grow_checkpoint
from toolkit.stacking.operators import llama
from toolkit.stacking.operators.families import FAMILIES
from toolkit.stacking.operators.llama import Llama

SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
SCALED = {"embedding_multiplier": 2.0, "logits_scaling": 1.5, "residual_multiplier": 0.5, "attention_multiplier": 0.3}
ONE_KEY_PER_HEAD = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
OTHERS = {
    "ministral3": ("Ministral3Config", SIZES | {"head_dim": 8}),
    "granite": ("GraniteConfig", SIZES | SCALED),
    "gemma2": (
        "Gemma2Config",
        SIZES | {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8, "layer_types": MIXED},
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        SIZES | {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8, "layer_types": MIXED},
    ),
    "gemma": ("GemmaConfig", SIZES | {"head_dim": 8}),
    "phi": ("PhiConfig", SIZES | {"qk_layernorm": True}),
    "phi3": ("Phi3Config", SIZES | {"sliding_window": 4}),
    "opt": ("OPTConfig", ONE_KEY_PER_HEAD | {"ffn_dim": 40, "word_embed_proj_dim": 32}),
    "olmo2": ("Olmo2Config", SIZES),
    "olmo3": ("Olmo3Config", SIZES | {"sliding_window": 4, "layer_types": MIXED}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        SIZES
        | {
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "mlp_only_layers": [1],
        }
        | {"decoder_sparse_step": 1},
    ),
    "mixtral": ("MixtralConfig", SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}),
    "gpt2": ("GPT2Config", {"n_layer": 3, "n_embd": 32, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 64}),
    "gpt_neox": ("GPTNeoXConfig", ONE_KEY_PER_HEAD),
}
STACK, ZERO = Growth(operator="stack", factor=2), Growth(operator="zero", factor=2)
COPYING = [
    (STACK, [0, 1, 2, 0, 1, 2]),
    (Growth(operator="interleave", factor=2), [0, 0, 1, 1, 2, 2]),
    (Growth(operator="solar", drop=1), [0, 1, 1, 2]),
    (Growth(operator="pattern", pattern="1-1*3-1"), [0, 1, 1, 1, 2]),
    (Growth(operator="list", layers=[2, 0, 0, 1, 2]), [2, 0, 0, 1, 2]),
]
SILENT = [ZERO, Growth(operator="llama_pro", insert=3)]


def model_of(kind):
    """A tiny model of transformers' own class, every weight drawn."""
    if kind in CONFIGS:
        return make_model(kind)
    name, settings = OTHERS[kind]
    model = AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            draws = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(draws + 1 if "norm" in key or ".ln_" in key else draws)
    return model.eval()


def layers_of(model):
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 2)


def by_hand(model, sources):
    """The model with other layers: transformers' own modules, copied; no code of ours."""
    config = copy.deepcopy(model.config)
    for key in ("layer_types", "no_rope_layers"):
        if getattr(config, key, None):
            setattr(config, key, [getattr(model.config, key)[layer] for layer in sources])
    if getattr(config, "mlp_only_layers", None):
        config.mlp_only_layers = [i for i, layer in enumerate(sources) if layer in model.config.mlp_only_layers]
    config.num_hidden_layers = len(sources)
    target = AutoModelForCausalLM.from_config(config)
    for layer, source in zip(layers_of(target), sources, strict=True):
        layer.load_state_dict(layers_of(model)[source].state_dict())
    rest = {k: v for k, v in model.state_dict().items() if not re.search(r"\.(h|layers)\.\d+\.", k)}
    assert not target.load_state_dict(rest, strict=False).unexpected_keys
    return target.eval()


def loaded(folder):
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def check(kind, folder, copying, silent):
    """The largest difference of logits to layers copied by hand, and to the source where the function is kept."""
    model, ids = model_of(kind), token_ids(2, 12)
    model.save_pretrained(folder / "source")
    copied, kept = 0.0, 0.0
    for number, (growth, sources) in enumerate(copying):
        grow_checkpoint(folder / "source", folder / f"copied{number}", growth, measure=False)
        difference = logits(loaded(folder / f"copied{number}"), ids) - logits(by_hand(model, sources), ids)
        copied = max(copied, difference.abs().max().item())
    for number, growth in enumerate(silent):
        report = grow_checkpoint(folder / "source", folder / f"silent{number}", growth)
        assert report["function"]["verdict"] == "exact"
        difference = logits(loaded(folder / f"silent{number}"), ids) - logits(model, ids)
        kept = max(kept, difference.abs().max().item())
    return copied, kept


@pytest.mark.parametrize("kind", OTHERS)
def test_grown_as_by_hand_and_silent_copies_change_nothing(kind, tmp_path):
    assert check(kind, tmp_path, COPYING[:1], SILENT[:1]) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*CONFIGS, *OTHERS])
def test_all_operators_in_all_families(kind, tmp_path):
    """What the table in docs/growing.md says."""
    assert check(kind, tmp_path, COPYING, SILENT) == (0, 0)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    grown, prompt = loaded(tmp_path / "silent0"), token_ids(1, 6)
    assert torch.equal(
        grown.generate(prompt, use_cache=True, **settings), grown.generate(prompt, use_cache=False, **settings)
    )


def test_the_page_names_every_family():
    page = (Path(__file__).parents[3] / "docs" / "growing.md").read_text()
    for kind in FAMILIES:
        assert f"`{kind}`" in page


@pytest.mark.parametrize("kind", ["granite", "ministral3"])
def test_growing_in_width(kind, tmp_path):
    model, ids = model_of(kind), token_ids(2, 12)
    model.save_pretrained(tmp_path / "source")
    for operator in ("direct", "zero"):
        growth = Growth(operator=operator, direction="width", factor=2)
        report = grow_checkpoint(tmp_path / "source", tmp_path / operator, growth)
        assert report["function"]["verdict"] in ("exact", "preserved")
        assert (logits(loaded(tmp_path / operator), ids) - logits(model, ids)).abs().max() < 1e-4


def test_others_refuse_to_grow_in_width_and_to_train(tmp_path):
    model_of("gemma2").save_pretrained(tmp_path / "source")
    growth = Growth(operator="direct", direction="width", factor=2)
    with pytest.raises(UserError, match="direction=width operator=direct: such networks grow in depth only"):
        grow_checkpoint(tmp_path / "source", tmp_path / "out", growth)
    from toolkit.stacking.operators.families import check_trainable

    with pytest.raises(UserError, match="gemma2 networks grow here, but do not train here"):
        check_trainable(model_of("gemma2").config, "model=source")


def test_fresh_layers_of_gemma_have_gains_that_change_nothing(tmp_path):
    model_of("gemma2").save_pretrained(tmp_path / "source")
    grow_checkpoint(tmp_path / "source", tmp_path / "out", Growth(operator="random", factor=2), measure=False)
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert state["model.layers.3.input_layernorm.weight"].abs().max() == 0  # stored as the difference to 1


def test_flops_of_a_mixture_count_the_experts_that_are_asked(tmp_path):
    model_of("mixtral").save_pretrained(tmp_path / "source")
    cost = grow_checkpoint(tmp_path / "source", tmp_path / "out", STACK)["cost"]["source"]
    experts = 3 * 4 * 3 * 32 * 40  # layers, experts, matrices of 32 x 40
    assert cost["parameters"] == sum(p.numel() for p in model_of("mixtral").parameters())
    assert cost["flops_total"] == 6 * (cost["parameters"] - experts // 2)  # two of four


def test_gpt2_as_it_is_published(tmp_path):
    """Without the prefix of its class, and with the masks that old versions stored."""
    model, ids = model_of("gpt2"), token_ids()
    model.save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"
    state = {key.removeprefix("transformer."): tensor for key, tensor in load_file(path).items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64).tril() for layer in range(3)}
    save_file(state | masks, path, {"format": "pt"})
    report = grow_checkpoint(tmp_path / "source", tmp_path / "out", ZERO)
    assert report["function"]["verdict"] == "exact"
    assert torch.equal(logits(loaded(tmp_path / "out"), ids), logits(model, ids))


def test_pythia_as_it_is_published(tmp_path):
    """With masks of booleans and rotary frequencies in every layer."""
    model, ids = model_of("gpt_neox"), token_ids()
    model.save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"
    constants = {}
    for layer in range(3):
        attention = f"gpt_neox.layers.{layer}.attention"
        constants[f"{attention}.bias"] = torch.ones(1, 1, 64, 64).tril().bool()
        constants[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        constants[f"{attention}.rotary_emb.inv_freq"] = torch.ones(1)
    save_file(load_file(path) | constants, path, {"format": "pt"})
    grow_checkpoint(tmp_path / "source", tmp_path / "out", ZERO)
    assert torch.equal(logits(loaded(tmp_path / "out"), ids), logits(model, ids))


def test_a_mixture_that_is_dense_in_every_second_layer(tmp_path):
    """``decoder_sparse_step`` counts layers; of another number of layers it would mean others."""
    name, settings = OTHERS["qwen3_moe"]
    config = getattr(transformers, name)(**settings | {"mlp_only_layers": [], "decoder_sparse_step": 2})
    model, ids = AutoModelForCausalLM.from_config(config).eval(), token_ids()
    model.save_pretrained(tmp_path / "source")
    report = grow_checkpoint(tmp_path / "source", tmp_path / "out", ZERO)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["mlp_only_layers"] == [0, 1, 4, 5] and written["decoder_sparse_step"] == 1
    assert report["function"]["verdict"] == "exact"
    assert torch.equal(logits(loaded(tmp_path / "out"), ids), logits(model, ids))


def test_the_families_are_those_tested():
    assert set(FAMILIES) == set(itertools.chain(OTHERS, (CONFIGS[name]().model_type for name in CONFIGS)))


def test_shapes_of_equal_configs_are_found_once_and_nobody_can_spoil_them(monkeypatch):
    built, own = [], Llama.skeleton
    monkeypatch.setattr(llama, "FOUND_SHAPES", {})
    monkeypatch.setattr(Llama, "skeleton", lambda self, config: built.append(config) or own(self, config))
    config = make_model().config
    Llama().shapes(config).clear()
    found = Llama().shapes(copy.deepcopy(config))
    assert len(built) == 1 and found["model.norm.weight"] == (config.hidden_size,)
    larger = llama.changed(config, {"vocab_size": config.vocab_size + 1})
    assert Llama().shapes(larger) != found and len(built) == 2


@pytest.mark.parametrize("setting", [{"do_layer_norm_before": False}, {"word_embed_proj_dim": 16}])
def test_opt_350m_is_refused(setting, tmp_path):
    name, settings = OTHERS["opt"]
    AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings | setting)).save_pretrained(tmp_path / "in")
    with pytest.raises(UserError, match=r"as of OPT-350m\): cannot be grown"):
        grow_checkpoint(tmp_path / "in", tmp_path / "out", STACK)
    assert not (tmp_path / "out").exists()
