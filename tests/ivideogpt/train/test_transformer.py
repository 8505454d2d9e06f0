"""The transformer's objective and data: weights of terms, aligned rewards, decay groups, cached tokens."""

import numpy as np
import pytest
import torch

from tests.ivideogpt import tiny
from toolkit.ivideogpt.clips import arrange
from toolkit.ivideogpt.train.transformer import (
    TokenClips,
    TransformerObjective,
    cached_tokens,
    held_out,
    make_optimizer,
    tokenise,
)
from toolkit.runs.record import Run


@pytest.fixture
def world():
    return tiny.world()


def batch(world, num=4):
    clips = tiny.clips()
    return tokenise(world.tokenizer, arrange(clips.train.sample(num, 0, "x"), tiny.config()), torch.device("cpu"))


def objective(world, **optim):
    config = tiny.config()
    for name, value in optim.items():
        setattr(config.optim.transformer, name, value)
    return TransformerObjective(world.transformer, world.tokenizer, config, tiny.clips().statistics)


def test_terms_add_up_and_the_first_frame_can_weigh_more(world):
    clip = batch(world)
    plain, heavy = (objective(world, first_frame_weight=weight)(clip) for weight in (1.0, 4.0))
    assert torch.allclose(heavy["loss"] - plain["loss"], 3 * plain["frame_1"] / 3, rtol=1e-4)  # 3 future frames
    none = objective(world, reward_weight=0.0)(clip)
    assert torch.allclose(plain["loss"] - none["loss"], plain["reward"], rtol=1e-4)


def test_actions_are_normalised_and_afterwards_taken_in_their_own_units(world):
    clip, statistics = batch(world), tiny.clips().statistics
    made = objective(world)
    before = made(clip)["tokens"]
    world.transformer.requires_grad_(True)
    world.transformer.absorb_normaliser(torch.from_numpy(statistics["mean"]), torch.from_numpy(statistics["std"]))
    raw = TransformerObjective(world.transformer, world.tokenizer, tiny.config(), {})
    assert torch.allclose(raw(clip)["tokens"], before, atol=1e-5)


def test_the_reward_of_a_frame_is_that_of_the_move_into_it(world):
    """The reference code compares it with the next move's, which would learn nothing of the action."""
    clip = batch(world)
    made = objective(world)
    base = made(clip)["reward"]
    for row, matters in ((0, True), (2, True), (3, False)):
        rewards = clip.rewards.clone()
        rewards[:, row] += 5
        changed = made(TokenClips(clip.tokens, clip.actions, rewards))["reward"]
        assert (changed != base) == matters, row


def test_other_actions_are_told_apart_by_a_model_that_minds_them(world):
    found = held_out(objective(world), batch(world))
    assert found["valid_rise_with_other_actions"] != 0
    world.transformer.action_linear.weight.data.zero_()
    assert held_out(objective(world), batch(world))["valid_rise_with_other_actions"] == 0


def test_matrices_decay_and_embeddings_and_norms_do_not(world):
    network = world.transformer.requires_grad_(True)
    decayed, kept = (group["params"] for group in make_optimizer(network, tiny.config()).param_groups)
    assert all(parameter.dim() == 2 for parameter in decayed)
    embedding = network.llm.model.embed_tokens.weight
    assert any(one is embedding for one in kept) and not any(one is embedding for one in decayed)
    assert len(decayed) + len(kept) == len(list(network.parameters()))


def test_cached_tokens_are_made_once_for_a_tokenizer_and_anew_for_another(tmp_path, world):
    config = tiny.config()
    config.optim.transformer.cached_clips = 5
    run = Run(tmp_path, config)
    args = (run, config, tiny.clips(), torch.device("cpu"))
    first = cached_tokens(world.tokenizer, *args)
    path = tmp_path / "checkpoints" / "tokens.safetensors"
    stamp = path.stat().st_mtime_ns
    again = cached_tokens(world.tokenizer, *args)
    assert path.stat().st_mtime_ns == stamp and torch.equal(first.tokens, again.tokens)
    assert first.tokens.shape[0] == 5 and torch.equal(first.actions, again.actions)
    with torch.no_grad():
        world.tokenizer.quantize.embedding.weight.add_(torch.randn(16, 4))
    other = cached_tokens(world.tokenizer, *args)
    assert not torch.equal(other.tokens, first.tokens) and np.array_equal(other.rewards, first.rewards)
