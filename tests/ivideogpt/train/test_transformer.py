"""The transformer's objective and data: weights of terms, aligned rewards, decay groups, cached tokens."""

from dataclasses import replace

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
    own_tokens,
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


def test_the_first_frame_after_a_gap_is_no_target(world):
    clip = batch(world)
    apart = replace(clip, adjacent=torch.tensor([True, False, True, False]))
    for weight in (1.0, 4.0):
        made = objective(world, first_frame_weight=weight, reward_weight=0.0)
        out = world.transformer(clip.tokens, world.tokenizer.layout, (clip.actions - made.mean) / made.std)
        total = out.token_losses.sum() + out.slot_losses.sum() - out.token_losses[[1, 3], 0].sum()
        wanted = total / (4 * world.tokenizer.layout.num_targets(3))
        wanted = wanted + (weight - 1) * out.token_losses[[0, 2], 0].mean() / 2 / 3
        torch.testing.assert_close(made(apart)["loss"], wanted)
    with_all = objective(world)(replace(clip, adjacent=torch.ones(4, dtype=torch.bool)))["loss"]
    torch.testing.assert_close(with_all, objective(world)(clip)["loss"])


def test_own_tokens_stand_for_a_share_of_those_of_future_frames_alone(world):
    clip, layout = batch(world), world.tokenizer.layout
    torch.manual_seed(0)
    seen = own_tokens(world.transformer, clip.tokens, layout, clip.actions, 1.0)
    drawn = torch.zeros_like(clip.tokens, dtype=torch.bool)
    for slot in layout.slot_indices(3):
        drawn[:, slot + 1 : slot + 1 + layout.tokens_per_frame] = True
    assert torch.equal(seen[~drawn], clip.tokens[~drawn])
    assert (seen[drawn] >= layout.num_context_codes).all() and (seen[drawn] < layout.context_slot).all()
    assert (seen[drawn] != clip.tokens[drawn]).float().mean() > 0.5
    half = own_tokens(world.transformer, clip.tokens, layout, clip.actions, 0.5)[drawn] != clip.tokens[drawn]
    assert 0.2 < half.float().mean() < 0.6
    assert torch.equal(own_tokens(world.transformer, clip.tokens, layout, clip.actions, 0.0), clip.tokens)


def test_own_tokens_are_read_in_training_and_the_true_ones_are_the_targets(world):
    clip, made = batch(world), objective(world, own_tokens=1.0)
    plain = objective(world)(clip)["loss"]
    assert torch.equal(made.eval()(clip)["loss"], plain) and made.train()(clip)["loss"] != plain
    network, layout = world.transformer, world.tokenizer.layout
    seen = own_tokens(network, clip.tokens, layout, clip.actions, 1.0)
    start, logits = layout.prompt_length, network.logits(seen, layout, clip.actions)
    loss = torch.nn.functional.cross_entropy(logits[:, start - 1 : -1].flatten(0, 1), clip.tokens[:, start:].flatten())
    torch.testing.assert_close(network(clip.tokens, layout, clip.actions, seen).loss, loss)


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
