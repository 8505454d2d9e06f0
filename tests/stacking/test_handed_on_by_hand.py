"""What is handed on between a config, a corpus, a network and its files; nothing here trains."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from tests.stacking.models import make_model, make_tokenizer
from toolkit.errors import UserError
from toolkit.stacking import stage_grow, zoo_networks
from toolkit.stacking.checkpoints.open import open_checkpoint
from toolkit.stacking.checkpoints.probe import preservation, probe_ids
from toolkit.stacking.checkpoints.safetensors_io import split_into_shards
from toolkit.stacking.checkpoints.write import readable_by_all
from toolkit.stacking.config import GrowLLM, Growth, Network, Optim
from toolkit.stacking.measure import compare
from toolkit.stacking.measure.tasks import ACCURACIES, BENCHMARKS
from toolkit.stacking.operators.architecture import Spaces
from toolkit.stacking.operators.families import FAMILIES
from toolkit.stacking.operators.llama import Llama, changed
from toolkit.stacking.operators.patterns import Layer
from toolkit.stacking.operators.tensors import Info
from toolkit.stacking.pretrain import corpus, saving
from toolkit.stacking.pretrain.networks import build, llama_config
from toolkit.zoo.disco.prior import AutoregressivePrior


def test_every_key_of_a_network_is_its_configs():
    network = Network(
        num_hidden_layers=2, hidden_size=48, intermediate_size=20, num_attention_heads=6, num_key_value_heads=3,
        tie_word_embeddings=True, rms_norm_eps=1e-4, rope_theta=5e5, context=40,
    )  # fmt: skip
    tokenizer = SimpleNamespace(bos_token_id=1, eos_token_id=2, pad_token_id=3)
    made = llama_config(network, 300, tokenizer)
    for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        assert getattr(made, key) == getattr(network, key), key
    assert (made.tie_word_embeddings, made.rms_norm_eps, made.max_position_embeddings) == (True, 1e-4, 40)
    assert made.rope_parameters["rope_theta"] == 5e5 and made.vocab_size == 300
    assert (made.bos_token_id, made.eos_token_id, made.pad_token_id) == (1, 2, 3)
    assert llama_config(Network(), 300).num_key_value_heads == Network().num_attention_heads


def test_a_network_that_is_built_trains_and_has_one_matrix_where_it_is_tied():
    config = llama_config(Network(num_hidden_layers=1, hidden_size=8, tie_word_embeddings=True, context=8), 260)
    values = {name: torch.randn(shape) for name, shape in Llama().shapes(config).items()}
    tensors = SimpleNamespace(infos=dict.fromkeys(values), read=values.__getitem__)
    made = build(config, tensors)
    assert made.training and all(one.requires_grad for one in made.parameters())
    assert made.lm_head.weight is made.model.embed_tokens.weight
    assert all(torch.equal(made.get_parameter(name), value) for name, value in values.items())
    assert not {one.data_ptr() for one in made.parameters()} & {one.data_ptr() for one in values.values()}
    halves = SimpleNamespace(infos=dict.fromkeys(values), read=lambda name: values[name].bfloat16())
    assert {one.dtype for one in build(config, halves).parameters()} == {torch.float32}


def test_the_map_learns_from_the_training_text_after_what_the_base_read(monkeypatch):
    """Ten sequences on, in batches of three that do not overlap; rates and steps as the config says."""
    read = []

    class Numbers:
        def __init__(self, tokens, context, seed):
            assert (tokens, context, seed) == ("training text", 16, 5)

        def batch(self, first, size):
            return torch.arange(first, first + size)[:, None], None

    def train_map(growth_map, config, source, batches, **keys):
        read.extend([ids.flatten().tolist() for ids in batches])
        read.append(keys)

    monkeypatch.setattr(stage_grow, "Sequences", Numbers)
    monkeypatch.setattr(stage_grow, "train_map", train_map)
    monkeypatch.setattr(stage_grow, "check_trainable", lambda *_: None)
    grown = SimpleNamespace(growth_map=torch.nn.Identity(), config=None)
    monkeypatch.setattr(stage_grow, "grow", lambda *_: grown)
    config = GrowLLM(operator="learn", factor=2, seed=5)
    config.learn.num_steps, config.learn.batch_size, config.learn.warmup_steps = 3, 3, 2
    config.learn.lr, config.learn.min_lr = 1e-3, 1e-4
    base = SimpleNamespace(config=None, source="a", architecture=None, tensors=None)
    store = SimpleNamespace(train="training text", valid="held-out text")
    assert stage_grow.trained_map(config, base, store, 16, first=10) is grown.growth_map
    keys = {"num_steps": 3, "warmup_steps": 2, "max_learning_rate": 1e-3, "min_learning_rate": 1e-4}
    assert read == [[10, 11, 12], [13, 14, 15], [16, 17, 18], keys]
    assert stage_grow.trained_map(GrowLLM(operator="stack", factor=2), base, store, 16) is None


def test_the_largest_change_of_a_logit_is_told():
    torch.manual_seed(0)
    network = AutoregressivePrior(num_latents=2, codebook_size=4, width=8, depth=1, num_heads=2).eval()
    other = AutoregressivePrior(num_latents=2, codebook_size=4, width=8, depth=1, num_heads=2).eval()
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        other.head.bias.view(-1)[3] += 0.5
    change, spread = zoo_networks.compare(network, other)
    probe = zoo_networks.ARCHITECTURES["AutoregressivePrior"].probe(network, 0)
    assert change == pytest.approx(0.5, abs=1e-5) and spread == pytest.approx(network(*probe).std().item(), rel=1e-5)


def test_held_out_texts_are_the_held_out_ones(monkeypatch):
    documents = [f"document {number}" for number in range(200)]
    made = SimpleNamespace(name="toy", origin="here", documents=lambda: iter(documents))
    monkeypatch.setattr(corpus, "_load", lambda config: made)
    config = GrowLLM()
    config.data.valid_fraction = 0.1
    found = list(corpus.held_out_texts(config))
    assert found == documents[5::10]  # the middle one of every ten


def test_a_tokenizer_is_trained_on_so_many_characters():
    texts = ["abc", "de", "fghi", "j"]
    for most, wanted in [(1, 1), (3, 1), (4, 2), (5, 2), (6, 3), (99, 4)]:
        assert list(corpus._first(iter(texts), most)) == texts[:wanted]


def test_what_a_checkpoint_has_cost_is_read_back(tmp_path):
    spent = {"tokens": 100, "sequences": 7, "time_s": 2.5, "store": "x"}
    spent["flops"] = {"total": 1.0, "non_embedding": 2.0, "matmul": 3.0}
    (tmp_path / saving.HISTORY_FILE).write_text(json.dumps(spent))
    found = saving.history(SimpleNamespace(folder=tmp_path, source="a"))
    assert (found.tokens, found.sequences, found.time_s, found.flops) == (100, 7, 2.5, spent["flops"])


def test_no_file_is_larger_than_asked_unless_one_tensor_is():
    infos = {name: Info((size,), torch.float32) for name, size in [("a", 3), ("b", 2), ("c", 1), ("d", 9), ("e", 1)]}
    assert split_into_shards(infos, 20) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert split_into_shards(infos, 24) == [["a", "b", "c"], ["d"], ["e"]]
    assert split_into_shards(infos, 64) == [["a", "b", "c", "d", "e"]]


def test_older_readers_find_the_base_of_the_rotation():
    kept = readable_by_all(llama_config(Network(rope_theta=5e5), 300))
    assert kept["rope_theta"] == 5e5 and "rope_parameters" not in kept and "rope_scaling" not in kept


def test_losses_are_of_the_next_token(tmp_path):
    """Of the model's own logits: minus the mean log-probability of token t + 1 after token t."""
    network = make_model()
    network.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    source = open_checkpoint(tmp_path)
    found = preservation(source, tmp_path, source.tensors)
    ids, _ = probe_ids(source, None, 0)
    with torch.no_grad():
        said = network(ids).logits.log_softmax(-1)[0]
    nats = -sum(float(said[t, ids[0, t + 1]]) for t in range(ids.shape[1] - 1)) / (ids.shape[1] - 1)
    assert found.source_loss == pytest.approx(nats, rel=1e-4) and found.verdict == "exact"
    assert found.source_perplexity == pytest.approx(math.exp(nats), rel=1e-4)


VERDICTS = [(0, "exact"), (2e-5, "preserved"), (0.01, "not preserved"), (1.0, "not preserved")]


@pytest.mark.parametrize(("change", "verdict"), VERDICTS)
def test_what_changes_a_logit_by_more_than_rounding_is_not_preserved(tmp_path, change, verdict):
    network = make_model()
    network.save_pretrained(tmp_path / "a")
    with torch.no_grad():
        network.model.norm.weight.add_(change)
    network.save_pretrained(tmp_path / "b")
    source = open_checkpoint(tmp_path / "a")
    assert preservation(source, tmp_path / "b", open_checkpoint(tmp_path / "b").tensors).verdict == verdict


def test_the_papers_benchmarks_are_scored_as_its_table_3_is_read_here():
    """Accuracy for Lambada and Winogrande, that by length for the other five, a perplexity for Wikitext."""
    metrics = {name: one.metric for name, one in BENCHMARKS.items()}
    normalised = dict.fromkeys(("arc_challenge", "arc_easy", "logiqa", "piqa", "sciq"), "acc_norm")
    assert metrics == normalised | {
        "lambada_openai": "acc", "winogrande": "acc", "wikitext": "word_perplexity",
    }  # fmt: skip
    assert set(ACCURACIES) == set(metrics) - {"wikitext"}


def config_of(kind, **keys):
    return AutoConfig.for_model(kind, **keys)


def test_the_share_of_a_mixture_that_a_token_meets():
    qwen = config_of("qwen3_moe", num_experts=8, num_experts_per_tok=2)
    mixtral = config_of("mixtral", num_local_experts=4, num_experts_per_tok=1)
    share = {kind: FAMILIES[kind].active_share for kind in ("qwen3_moe", "mixtral")}
    assert share["qwen3_moe"](qwen, "model.layers.0.mlp.experts.3.up_proj.weight") == 0.25
    assert share["mixtral"](mixtral, "model.layers.0.block_sparse_moe.experts.3.w1.weight") == 0.25
    assert share["qwen3_moe"](qwen, "model.layers.0.self_attn.q_proj.weight") == 1


def test_plain_layers_stay_plain_wherever_their_copies_stand():
    """Every second layer is a mixture, layers 1, 3 and 5; of those layer 3 is plain too."""
    config = config_of("qwen3_moe", num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[3])
    plan = [Layer(number) for number in (1, 0, 3, 5, 4, 1)]
    made = FAMILIES["qwen3_moe"].deepened(config, plan)
    assert (made.mlp_only_layers, made.decoder_sparse_step, made.num_hidden_layers) == ([1, 2, 4], 1, 6)


def test_kinds_of_layers_follow_their_source():
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    config = changed(config_of("smollm3", num_hidden_layers=3), {"layer_types": kinds, "no_rope_layers": [1, 1, 0]})
    made = Llama().deepened(config, [Layer(number) for number in (2, 0, 1, 0)])
    assert made.layer_types == [kinds[2], kinds[0], kinds[1], kinds[0]] and made.no_rope_layers == [0, 1, 1, 1]


def test_wider_networks_have_the_sizes_of_their_spaces_and_a_scaled_epsilon():
    config = llama_config(Network(hidden_size=16, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-3), 300)
    made = Llama().widened(config, Spaces(residual=32, heads=8, kv_heads=4, head_size=4, mlp=99), 0.5)
    assert (made.hidden_size, made.num_attention_heads, made.num_key_value_heads) == (32, 8, 4)
    assert (made.intermediate_size, made.head_dim, made.rms_norm_eps) == (99, 4, 5e-4)


def test_silent_copies_are_silenced_with_their_biases():
    """What writes to the stream, by family: the outputs of attention and MLP, weights and biases."""
    writes = {
        kind: {name for name, spec in FAMILIES[kind].layer_tensors.items() if spec.writes}
        for kind in ("llama", "gpt2", "gpt_neox", "qwen3_moe", "mixtral")
    }
    both = lambda *names: {f"{name}.{end}" for name in names for end in ("weight", "bias")}  # noqa: E731
    out = "self_attn.o_proj"
    assert writes["llama"] == both(out, "mlp.down_proj")
    assert writes["gpt2"] == both("attn.c_proj", "mlp.c_proj")
    assert writes["gpt_neox"] == both("attention.dense", "mlp.dense_4h_to_h")
    experts = {"qwen3_moe": "mlp.experts.*.down_proj.weight", "mixtral": "block_sparse_moe.experts.*.w2.weight"}
    for kind, name in experts.items():
        assert writes[kind] == both(out, "mlp.down_proj") | {name}
    blocks = zoo_networks.Blocks.layer_tensors
    assert {name for name, spec in blocks.items() if spec.writes} == both("attention.out", "mlp.2")


def test_gains_of_gemma_are_differences_to_one():
    gains = {name: spec.neutral for name, spec in FAMILIES["gemma2"].layer_tensors.items() if spec.kind == "gain"}
    assert len(gains) == 6 and set(gains.values()) == {0.0}
    assert {spec.neutral for spec in FAMILIES["olmo2"].layer_tensors.values() if spec.kind == "gain"} == {1.0}


def test_the_testbeds_factor_and_sweep_are_the_papers():
    assert GrowLLM().growth().factor == 4 and GrowLLM(factor=3).growth().factor == 3
    assert GrowLLM(optim=Optim(lr=1e-3)).scratch_lrs() == [1e-3]
    swept = GrowLLM(optim=Optim(scratch_lrs=[2e-3, 4e-3]))
    assert swept.scratch_lrs() == [2e-3, 4e-3]
    assert [name for name in swept.stages() if "scratch" in name] == ["scratch", "scratch-0.004"]
    assert isinstance(swept.growth(), Growth)


def test_shares_and_losses_are_told_with_their_spread_over_seeds():
    """Of 20 %, 30 % and 40 % the deviation is 10 %."""
    assert compare._percent([]) == "-" and compare._percent([0.256]) == "25.6 %"
    assert compare._percent([0.2, 0.3, 0.4]) == "30.0 ± 10.0 %"
    assert compare._loss([3.0]) == "3.000" and compare._loss([3.0, 5.0]) == f"4.000 ± {2**0.5:.3f}"


def test_arms_are_named_once():
    GrowLLM(stage="corpus", arms=["scratch", "grown"]).check()
    with pytest.raises(UserError, match="names one twice"):
        GrowLLM(stage="corpus", arms=["scratch", "grown", "scratch"]).check()
