"""``compile=true``: the numbers of the network as it is, in micro-batches too, and the same bytes when it goes on."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters

from tests.stacking.models import make_model, token_ids
from tests.zoo.video.test_unet import inputs, make_pair
from tests.zoo.world.nano_world import nano_clips, nano_tokenizer, nano_transformer
from toolkit.launch import launch
from toolkit.runs.states.sharding import shard
from toolkit.stacking.pretrain.language_loss import LanguageModelLoss
from toolkit.zoo.world import linear

GROW = ["experiment=grow_smoke", "stage=pretrain", "optim.batch_size=8", "compare.eval_tokens=320", "num_threads=1"]


def losses(folder):
    return [json.loads(line)["loss"] for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow  # inductor's C++ is compiled
def test_a_compiled_training_in_micro_batches_has_the_losses_of_a_plain_one_and_goes_on_to_the_bit(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    steps = ["log_every_steps=1", "checkpoint_every_steps=2"]
    compiled = [*GROW, *steps, "compile=true", "optim.micro_batch_size=2"]
    assert launch("grow-llm", [*GROW, *steps, "budget.tokens=1024", "hydra.run.dir=plain"]) == 0
    assert launch("grow-llm", [*compiled, "budget.tokens=1024", "hydra.run.dir=whole"]) == 0
    for tokens in (512, 1024):
        assert launch("grow-llm", [*compiled, f"budget.tokens={tokens}", "hydra.run.dir=parts"]) == 0
    assert losses("whole") == pytest.approx(losses("plain"), rel=1e-5) and len(losses("whole")) == 4
    [weights] = Path("whole").glob("model/**/*.safetensors")
    assert weights.read_bytes() == (Path("parts") / weights.relative_to("whole")).read_bytes()


def test_layers_that_are_sharded_are_compiled_one_by_one_into_one_graph(tmp_path, monkeypatch):
    """By a backend that compiles nothing: a break of the graph within a layer would be half of a compilation."""
    module, ids = LanguageModelLoss(make_model()), token_ids(2, 9)
    expected = module(ids[:, :-1], ids[:, 1:])
    layers = module.network.model.layers
    for layer in layers:
        monkeypatch.setattr(layer, "compile", lambda layer=layer: type(layer).compile(layer, backend="aot_eager"))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    counters.clear()
    try:
        shard(module, layers, compiled=True)
        found = module(ids[:, :-1], ids[:, 1:])
    finally:
        dist.destroy_process_group()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert counters["stats"]["unique_graphs"] == 1 and len(layers) > 1 and not counters["graph_break"]


def test_a_world_models_transformer_is_one_graph(monkeypatch):
    """``fullgraph`` raises at a break of the graph."""
    monkeypatch.setattr(linear, "_LEAST_PRODUCTS", 0)  # as of a network of a real size
    tokenizer, (frames, actions) = nano_tokenizer(), nano_clips(dtype=torch.float32)
    network = nano_transformer(tokenizer, has_reward=True).train()
    tokens = tokenizer.tokenize(frames)
    expected = network(tokens, tokenizer.layout, actions)
    found = torch.compile(network, backend="eager", fullgraph=True)(tokens, tokenizer.layout, actions)
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)


@pytest.mark.slow  # torch traces it for seconds
def test_a_video_network_is_one_graph():
    x, t, y, given = inputs()
    pair = make_pair(random_control=True, block_out_channels=(16,), attention_levels=(False,)).train()
    given |= {"t_hint": torch.tensor([150, 20]), "up_scale": torch.tensor([2.0, 4.0])}
    expected = pair(x, t, y, **given)
    found = torch.compile(pair, backend="eager", fullgraph=True)(x, t, y, **given)
    torch.testing.assert_close(found, expected)
