"""Guessing a frame and checking it gives the tokens of token-by-token decoding, whatever the guess."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.zoo.world.nano_world import nano_clips, nano_world
from toolkit.zoo.world import draft as world_draft
from toolkit.zoo.world.draft import Draft, draft_pays

pytestmark = pytest.mark.processor
K = 4


class Wrong:
    """Guesses that have nothing to do with the network; what it wrote into the cache is garbage, too."""

    def guess(self, opening, cache, num_tokens, embed, pick):
        for place in range(num_tokens):
            length = opening.shape[1] if place == 0 else 1
            for layer in range(2):
                cache.until(cache.length + place).write(layer, *torch.randn(2, 1, 2, length, 8))
        return torch.randint(32, 56, (1, num_tokens))


def rollouts(world, sampling=None):
    frames, actions = nano_clips(1, dtype=world.spec.dtype)
    start = world.begin(frames[:, : world.spec.T0], seeds=3)
    kinds = {} if world.spec.action_dim else {"num_frames": K}
    return [world.rollout(start, actions[:, :K] if not kinds else None, sampling, **kinds) for _ in range(2)]


@pytest.mark.parametrize(
    "options", [{}, {"has_reward": True}, {"action_dim": None}, {"spatial_embedding": True}], ids=str
)
@pytest.mark.parametrize("sampling", [None, "greedy"])
def test_any_guess_leads_to_the_same_tokens(monkeypatch, options, sampling):
    torch.manual_seed(0)
    world = nano_world(**options)
    expected, _ = rollouts(world, sampling)
    monkeypatch.setattr("toolkit.zoo.world.dynamics.draft_pays", lambda llm, num_rows: True)
    monkeypatch.setattr(world.dynamics, "_current_draft", lambda sampling: Wrong())
    found, again = rollouts(world, sampling)
    for preds in (found, again):
        assert torch.equal(preds.tokens, expected.tokens) and torch.equal(preds.frames, expected.frames)
        torch.testing.assert_close(preds.logprobs, expected.logprobs)
        if options.get("has_reward"):
            torch.testing.assert_close(preds.rewards, expected.rewards)


@pytest.mark.parametrize("options", [{}, {"has_reward": True}, {"spatial_embedding": True}], ids=str)
def test_the_draft_itself(monkeypatch, options):
    """In float32, with grouped key-value heads: nearly always right, and remade when the weights change."""
    world = nano_world(dtype=torch.float32, **options)
    expected, _ = rollouts(world)
    monkeypatch.setattr("toolkit.zoo.world.dynamics.draft_pays", lambda llm, num_rows: True)
    found, _ = rollouts(world)
    assert torch.equal(found.tokens, expected.tokens)
    draft = world.dynamics._draft[1]
    rollouts(world)
    assert world.dynamics._draft[1] is draft
    with torch.no_grad():
        world.transformer.llm.model.layers[0].mlp.up_proj.weight.add_(0.01)
    rollouts(world)
    assert world.dynamics._draft[1] is not draft


@torch.no_grad()
def test_a_guess_is_close_to_what_the_network_would_draw():
    world = nano_world(dtype=torch.float32)
    frames, actions = nano_clips(1, dtype=torch.float32)
    dynamics, calls = world.dynamics, []
    state = world.begin(frames[:, : world.spec.T0])
    cache = state.past.cache.extended(world.spec.n)
    opening = dynamics._opening(None, actions[:, 0], 1)

    def pick(logits, place):
        calls.append(logits)
        return logits.argmax(-1) + dynamics.layout.num_context_codes

    draft = Draft(world.transformer.llm, world.transformer.llm.lm_head.weight[32:56])
    tokens = draft.guess(opening, cache.until(state.past.cache.length + 1), world.spec.n, dynamics._embed_inner, pick)
    exact = torch.cat([opening, dynamics._embed_inner(tokens[:, :-1])], dim=1)
    from toolkit.zoo.world.llama import llama_pass

    true = llama_pass(world.transformer.llm, exact, cache) @ world.transformer.llm.lm_head.weight[32:56].t()
    error = (torch.cat(calls, dim=1) - true).abs().max() / true.std()
    assert error < 0.02


def test_drafting_is_for_one_row_of_a_large_network_on_a_cpu(monkeypatch):
    llm = nano_world(dtype=torch.float32).transformer.llm
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    assert not draft_pays(llm, 1)
    monkeypatch.setattr(world_draft, "LEAST_WEIGHTS", 1000)
    assert draft_pays(llm, 1) and not draft_pays(llm, 2) and not draft_pays(copy.deepcopy(llm).double(), 1)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    assert not draft_pays(llm, 1)
