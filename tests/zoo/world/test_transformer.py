"""The transformer over a clip's tokens: causality, actions, rewards, losses, and agreement with transformers' Llama."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.zoo.world.nano_world import ACTION_DIM, nano_clips, nano_tokenizer, nano_transformer
from toolkit.zoo.world.linear import linear
from toolkit.zoo.world.llama import KeyValueCache, llama_pass
from toolkit.zoo.world.transformer import (
    VideoTransformer,
    build_video_transformer,
    llama_config,
    reward_targets,
    symexp,
    symlog,
)

T0, NUM_FUTURE = 2, 4


@pytest.fixture(scope="module")
def tokenizer():
    return nano_tokenizer()


@pytest.fixture(scope="module")
def layout(tokenizer):
    return tokenizer.layout


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return tokenizer.tokenize(nano_clips(dtype=torch.float32)[0])


@pytest.fixture(scope="module")
def actions():
    return nano_clips()[1]


@pytest.fixture(scope="module")
def network(tokenizer):
    return nano_transformer(tokenizer, has_reward=True, has_action_recon=True).double()


@torch.no_grad()
@pytest.mark.parametrize("frame", range(NUM_FUTURE))
def test_an_action_changes_nothing_before_the_frame_it_leads_to(network, layout, tokens, actions, frame):
    other = actions.clone()
    other[:, T0 - 1 + frame] += 1.0
    before, after = network.logits(tokens, layout, actions), network.logits(tokens, layout, other)
    slot = layout.slot_index(frame)
    assert torch.equal(before[:, :slot], after[:, :slot])
    assert (before[:, slot:] != after[:, slot:]).any(-1).all()


@torch.no_grad()
def test_actions_before_the_last_context_frame_and_at_the_last_frame_are_not_used(network, layout, tokens, actions):
    other = actions.clone()
    other[:, : T0 - 1] += 1.0
    other[:, -1] += 1.0
    assert torch.equal(network.logits(tokens, layout, actions), network.logits(tokens, layout, other))


@torch.no_grad()
@pytest.mark.parametrize("frame", range(NUM_FUTURE))
def test_a_frame_changes_nothing_before_itself(network, layout, tokens, actions, frame):
    other, start = tokens.clone(), layout.slot_index(frame) + 1
    other[:, start] = (
        layout.num_context_codes + (other[:, start] - layout.num_context_codes + 1) % layout.num_dynamics_codes
    )
    before, after = network.logits(tokens, layout, actions), network.logits(other, layout, actions)
    assert torch.equal(before[:, :start], after[:, :start])
    assert (before[:, start:] != after[:, start:]).any(-1).all()


@torch.no_grad()
def test_a_fresh_action_projection_leaves_the_action_free_model_as_it_was(tokenizer, layout, tokens, actions):
    free = nano_transformer(tokenizer, action_dim=None).double()
    conditioned = free.with_actions(ACTION_DIM, has_reward=True)
    assert torch.equal(free.logits(tokens, layout), conditioned.logits(tokens, layout, actions))
    assert conditioned.action_dim == ACTION_DIM and conditioned.has_reward and not free.action_dim


@torch.no_grad()
def test_our_pass_is_transformers_own(network, layout, tokens, actions):
    embeds = network.embed(tokens, layout, actions)
    theirs = network.llm(inputs_embeds=embeds, use_cache=False).logits
    # transformers normalises in float32 whatever the dtype
    torch.testing.assert_close(network.logits(tokens, layout, actions), theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_losses_are_those_of_the_full_logits(network, layout, tokens, actions):
    found = network(tokens, layout, actions)
    logits, labels = network.logits(tokens, layout, actions).float(), layout.labels(tokens)
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(found.loss, expected)
    n = layout.tokens_per_frame
    assert found.token_losses.shape == (3, NUM_FUTURE, n) and found.slot_losses.shape == (3, NUM_FUTURE - 1)
    total = found.token_losses.sum() + found.slot_losses.sum()
    torch.testing.assert_close(total / (3 * layout.num_targets(NUM_FUTURE)), expected)
    for j in range(NUM_FUTURE):
        at = layout.slot_index(j)
        own = F.cross_entropy(
            logits[:, at : at + n].flatten(0, 1), tokens[:, at + 1 : at + 1 + n].flatten(), reduction="none"
        )
        torch.testing.assert_close(found.token_losses[:, j].flatten(), own)


@torch.no_grad()
def test_rewards_and_actions_are_read_from_the_frame_they_led_to(network, layout, tokens, actions):
    found = network(tokens, layout, actions)
    states = llama_pass(network.llm, network.embed(tokens, layout, actions))
    for j in range(NUM_FUTURE):
        slot = layout.slot_index(j)
        at_end = states[:, slot + layout.tokens_per_frame]
        torch.testing.assert_close(found.rewards[:, j], network.reward_linear(at_end).squeeze(-1))
        whole = network.action_recon_linear(states[:, slot : slot + layout.tokens_per_frame + 1])
        torch.testing.assert_close(found.recon_actions[:, j], whole)


def test_the_reward_target_is_that_of_the_move_into_the_frame():
    rewards = torch.tensor([[10.0, 11.0, 12.0, 13.0, 14.0, 15.0]])  # row t: the move from frame t to t+1
    assert torch.equal(reward_targets(rewards, T0), symlog(torch.tensor([[11.0, 12.0, 13.0, 14.0]])))
    x = torch.tensor([-300.0, -0.5, 0.0, 2.0])
    torch.testing.assert_close(symexp(symlog(x)), x)


def test_a_reward_head_learns_the_current_actions_reward(tokenizer, layout, tokens):
    """Reward 1 where this move's action points right: chance (loss 0.12) under the release's shift by one."""
    torch.manual_seed(0)
    network = nano_transformer(tokenizer, has_reward=True, initializer_range=0.1).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(3)
    for _ in range(100):
        actions = torch.randn(32, T0 + NUM_FUTURE, ACTION_DIM, generator=generator)
        rewards = (actions[..., 0] > 0).float()
        clips = tokens[torch.randint(3, (32,), generator=generator)]
        loss = (network(clips, layout, actions).rewards - reward_targets(rewards, T0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.04


def test_a_normaliser_is_absorbed(tokenizer, layout, tokens, actions):
    network = nano_transformer(tokenizer).double()
    mean, std = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([2.0, 0.1, 5.0]).double()
    with torch.no_grad():
        expected = network.logits(tokens, layout, (actions - mean) / std)
        network.absorb_normaliser(mean, std)
        torch.testing.assert_close(network.logits(tokens, layout, actions), expected)


def test_what_does_not_fit_is_refused(network, tokenizer, layout, tokens, actions):
    with pytest.raises(ValueError, match="actions: missing, the network takes 3 numbers a frame"):
        network(tokens, layout)
    with pytest.raises(ValueError, match=r"actions of shape \(3, 6, 2\): expected \(3, 6, 3\)"):
        network(tokens, layout, actions[..., :2])
    with pytest.raises(ValueError, match="the network is action-free"):
        nano_transformer(tokenizer, action_dim=None)(tokens, layout, actions.float())
    with pytest.raises(ValueError, match="53 tokens: the network has 52 positions"):
        nano_transformer(tokenizer, action_dim=None, max_position_embeddings=52)(tokens, layout)
    with pytest.raises(ValueError, match="vocabulary of 58: the tokenizer's is 61"):
        network.bind(nano_tokenizer(num_dyn_embeddings=27))


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[53], [20, 33], [34, 1, 1, 1, 2, 14], [1] * 53])
def test_a_cache_changes_nothing(network, layout, tokens, actions, chunks):
    embeds = network.embed(tokens, layout, actions)
    whole, cache, start, parts = llama_pass(network.llm, embeds), KeyValueCache.empty(network.llm, 3, 4), 0, []
    for size in chunks:
        cache = cache.extended(size, spare=3)
        parts.append(llama_pass(network.llm, embeds[:, start : start + size], cache))
        start += size
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-10
    last = cache.select(torch.tensor([2, 0, 2]))
    assert last.length == 53 and last.nbytes == cache.nbytes


@torch.no_grad()
def test_handles_of_one_cache_do_not_see_each_other(network, layout, tokens, actions):
    """Two futures from one past, interleaved: the second to write gets memory of its own."""
    embeds = network.embed(tokens, layout, actions)
    past = KeyValueCache.empty(network.llm, 3, 64).extended(40)
    llama_pass(network.llm, embeds[:, :40], past)
    one, two = past.extended(1), past.extended(1)
    llama_pass(network.llm, embeds[:, 50:51], two)
    llama_pass(network.llm, embeds[:, 40:41], one)
    two = two.extended(1)
    llama_pass(network.llm, embeds[:, 51:52], two)
    one = one.extended(12)
    last = llama_pass(network.llm, embeds[:, 41:53], one)
    assert (last - llama_pass(network.llm, embeds)[:, 41:]).abs().max() < 1e-10
    other = torch.cat([embeds[:, :40], embeds[:, 50:52], embeds[:, 52:]], dim=1)
    found = llama_pass(network.llm, embeds[:, 52:], two.extended(1))
    assert (found - llama_pass(network.llm, other)[:, 42:]).abs().max() < 1e-10


@torch.no_grad()
@pytest.mark.parametrize("first", [0, 1, 34, 52])
def test_the_last_layer_may_skip_positions(network, layout, tokens, actions, first):
    embeds = network.embed(tokens, layout, actions)
    assert (
        llama_pass(network.llm, embeds, first=first) - llama_pass(network.llm, embeds)[:, first:]
    ).abs().max() < 1e-10


@pytest.mark.parametrize("shape", [(2, 3, 8), (40, 128)], ids=["small: MKL", "large: oneDNN"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear_is_the_linear_layer_with_its_gradients(shape, has_bias):
    torch.manual_seed(0)
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(160, shape[-1], requires_grad=True)
    bias = torch.randn(160, requires_grad=True) if has_bias else None
    inputs = [one for one in (x, weight, bias) if one is not None]
    ours, theirs = linear(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    grad = torch.randn_like(theirs)
    for one, two in zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), strict=True
    ):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias), theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "num_parameters", "num_tensors"),
    [
        ({}, 138_434_304, 111),
        (
            {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
            436_261_888,
            219,
        ),
    ],
    ids=["small", "medium"],
)
def test_released_sizes(sizes, num_parameters, num_tensors):
    with torch.device("meta"):
        network = build_video_transformer(**sizes)
    assert sum(one.numel() for one in network.parameters()) == num_parameters
    assert len(network.state_dict()) == num_tensors


def test_places_in_the_picture(tokenizer, layout):
    """4x4 context tokens over 2x2 cells: every token gets the rows of its own cell, and of the next one to come."""
    network = nano_transformer(tokenizer, spatial_embedding=True)
    own, coming, within = (one.weight for one in (network.spatial.own, network.spatial.next, network.spatial.within))
    rows = network.spatial(T0, NUM_FUTURE)
    assert rows.shape == (layout.length(NUM_FUTURE), 32)
    for start in (0, 17):  # of the two context frames' tokens; a slot stands between them
        for y in range(4):
            for x in range(4):
                expected = own[2 * (y // 2) + x // 2] + within[2 * (y % 2) + x % 2]
                assert torch.equal(rows[start + 4 * y + x], expected)
    assert not rows[16].any()
    for frame in range(NUM_FUTURE):
        at = layout.slot_index(frame)
        assert torch.equal(rows[at], coming[0]) and torch.equal(rows[at + 4], own[3])
        assert torch.equal(rows[at + 2], own[1] + coming[2])


def test_attention_dropout_applies_in_training_only(tokenizer, layout, tokens, actions):
    network = VideoTransformer(llama_config(layout, 32, 48, 2, 4, attention_dropout=0.5, action_dim=ACTION_DIM))
    with torch.no_grad():
        network.train()
        one, two = (network(tokens, layout, actions.float()).loss for _ in range(2))
        assert one != two
        network.eval()
        assert network(tokens, layout, actions.float()).loss == network(tokens, layout, actions.float()).loss
