"""The operators on iVideoGPT's world model, a Llama with heads for actions and rewards inside a zoo network."""

import json

import pytest
import torch

from tests.zoo.world.nano_world import nano_clips, nano_world
from toolkit.errors import UserError
from toolkit.launch import launch
from toolkit.stacking.checkpoints.open import find_network
from toolkit.stacking.config import Growth
from toolkit.stacking.zoo_networks import grow_network
from toolkit.zoo import load

PRESERVING = [
    Growth(operator="zero", factor=2),
    Growth(operator="llama_pro", insert=1),
    Growth(operator="direct", direction="width", factor=2),
    Growth(operator="zero", direction="width", factor=2),
]


def scores(world):
    """Likelihoods of true frames and the rewards read from them: through actions, tokens and every head."""
    clips, actions = nano_clips()
    found = world.score(clips[:, :2], clips[:, 2:], actions[:, 1:-1])
    return torch.cat([found.logprobs.flatten(), found.rewards.flatten()])


@pytest.fixture(
    params=[{}, {"tie_word_embeddings": True}, {"spatial_embedding": True}], ids=["untied", "tied", "cells"]
)
def world(request):
    world = nano_world(has_reward=True, **request.param)
    for name, parameter in world.transformer.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return world


@pytest.mark.parametrize("growth", PRESERVING, ids=lambda growth: f"{growth.operator} {growth.direction}")
def test_the_function_is_kept(world, growth):
    before = scores(world)
    world.transformer, _ = grow_network(world.transformer, growth)
    assert (scores(world) - before).abs().max() < 1e-9


def test_stack_repeats_the_layers(world):
    target, grown = grow_network(world.transformer, Growth(operator="stack", factor=3))
    assert grown.sources == [0, 1] * 3
    for number, layer in enumerate(target.llm.model.layers):
        source = world.transformer.llm.model.layers[number % 2].state_dict()
        assert all(torch.equal(tensor, source[name]) for name, tensor in layer.state_dict().items())
    assert target.config.tokenizer_fingerprint == world.transformer.config.tokenizer_fingerprint


def test_a_run_of_a_world_model_is_taken_as_a_whole_unless_a_part_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    for place in ("model", "model/tokenizer", "model/transformer"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "config.json").write_text("{}")
    assert find_network(str(tmp_path)) == str(tmp_path / "model")
    assert find_network(str(tmp_path), "transformer") == str(tmp_path / "model" / "transformer")
    (tmp_path / "model" / "config.json").unlink()  # of a DisCo-Diff's parts none is the whole
    with pytest.raises(UserError, match="has several networks; part= is one of tokenizer, transformer"):
        find_network(str(tmp_path))


def test_a_saved_world_model_grows_through_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nano_world(dtype=torch.float32, has_reward=True).save_pretrained("world")
    words = ["stage=grow", "model=world", "operator=zero", "factor=2", "out=grown", "hydra.run.dir=run"]
    assert launch("grow-llm", words) == 0
    report = json.loads((tmp_path / "grown" / "growth.json").read_text())
    assert report["function"]["verdict"] == "exact"
    assert report["cost"]["target"]["flops_matmul"] > report["cost"]["source"]["flops_matmul"]
    world, grown = load("world"), load("grown")
    assert grown.transformer.config.num_hidden_layers == 4
    clips, actions = nano_clips(dtype=torch.float32)
    state, other = world.begin(clips[:, :2]), grown.begin(clips[:, :2])
    before = world.rollout(state, actions[:, 1:3], "greedy")
    after = grown.rollout(other, actions[:, 1:3], "greedy")
    assert torch.equal(before.frames, after.frames)
