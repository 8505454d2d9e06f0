"""A frame's tokens, guessed and passed together, are those of token-by-token decoding, whatever the guess."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.zoo.world.nano_world import nano_clips, nano_world
from toolkit.zoo.world import draft as world_draft
from toolkit.zoo.world import dynamics as world_dynamics
from toolkit.zoo.world.draft import Draft, can_draft
from toolkit.zoo.world.llama import llama_pass

pytestmark = pytest.mark.processor
K = 4
OPTIONS = [{}, {"has_reward": True}, {"action_dim": None}, {"spatial_embedding": True}, {"context_length": 1}]


def rollout(world, num_rows, sampling=None, guesses=True):
    frames, actions = nano_clips(num_rows, dtype=world.spec.dtype)
    world.dynamics.guesses = guesses
    start = world.begin(frames[:, : world.spec.T0], seeds=3)
    if not world.spec.action_dim:
        return world.rollout(start, None, sampling, num_frames=K)
    return world.rollout(start, actions[:, :K], sampling)


def assert_same(found, expected):
    assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.frames, expected.frames)
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.entropies, expected.entropies, rtol=1e-4, atol=1e-4)
    if expected.rewards is not None:
        torch.testing.assert_close(found.rewards, expected.rewards, rtol=1e-4, atol=1e-4)


def garbage(tokens):
    return torch.randint(32, 56, tokens.shape)


@pytest.fixture
def passes(monkeypatch):
    """Places of every pass, in order."""
    lengths = []

    def counted(llm, embeds, *rest, **more):
        lengths.append(embeds.shape[1])
        return llama_pass(llm, embeds, *rest, **more)

    monkeypatch.setattr(world_dynamics, "llama_pass", counted)
    return lengths


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_last_frame_as_a_guess_leads_to_the_same_tokens(options, num_rows, dtype):
    world = nano_world(dtype=dtype, **options)
    for sampling in (None, "greedy"):
        assert_same(rollout(world, num_rows, sampling), rollout(world, num_rows, sampling, guesses=False))


@pytest.mark.parametrize("window", [2, 3, 8])
def test_so_does_any_guess_with_any_number_of_places_at_a_time(monkeypatch, window):
    world, look = nano_world(has_reward=True), world_dynamics.Dynamics.look
    expected = rollout(world, 3, guesses=False)
    torch.manual_seed(0)
    monkeypatch.setattr(
        world_dynamics.Dynamics, "look", lambda *one: look(*one)._replace(guess=torch.randint(32, 56, (3, 4)))
    )
    monkeypatch.setattr(world_dynamics, "MOST_PLACES", 3 * window)
    assert_same(rollout(world, 3), expected)


@torch.no_grad()
def test_a_right_guess_is_one_pass_and_a_wrong_one_as_many_as_tokens(passes):
    world = nano_world()
    frames, actions = nano_clips(2)
    dynamics, state = world.dynamics, world.begin(frames[:, : world.spec.T0], seeds=3)
    how = (actions[:, 0], world.sampling, state.seeds, 0)
    tokens = dynamics.frame(state.past, *how)[1].tokens
    for guess, most in ((tokens, 1), (garbage(tokens), world.spec.n)):
        passes.clear()
        assert torch.equal(dynamics.frame(state.past._replace(guess=guess), *how)[1].tokens, tokens)
        assert len(passes) <= most and passes[0] == world.spec.n
    passes.clear()
    dynamics.guesses = False
    dynamics.frame(state.past, *how)
    assert passes == [1] * world.spec.n


@pytest.fixture
def drafting(monkeypatch):
    if torch.backends.quantized.engine not in ("x86", "fbgemm"):
        pytest.skip("no float16 products here")
    monkeypatch.setattr(world_draft, "LARGE", 0)


@pytest.mark.usefixtures("drafting")
@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_draft_leads_to_the_same_tokens(options, num_rows):
    world = nano_world(dtype=torch.float32, **options)
    assert_same(rollout(world, num_rows), rollout(world, num_rows, guesses=False))
    assert world.dynamics._draft is not None


@pytest.mark.usefixtures("drafting")
def test_so_does_a_draft_of_another_network(monkeypatch):
    world, other = nano_world(dtype=torch.float32, has_reward=True), nano_world(dtype=torch.float32, seed=7)
    expected = rollout(world, 2, guesses=False)
    wrong = Draft(other.transformer.llm, other.transformer.llm.lm_head.weight[32:56])
    monkeypatch.setattr(world.dynamics, "_current_draft", lambda sampling: wrong)
    assert_same(rollout(world, 2), expected)


@pytest.mark.usefixtures("drafting")
def test_one_draft_is_kept_while_the_weights_stay_as_they_are():
    world = nano_world(dtype=torch.float32)
    rollout(world, 1)
    draft = world.dynamics._draft[1]
    rollout(world, 1)
    assert world.dynamics._draft[1] is draft
    with torch.no_grad():
        world.transformer.llm.model.layers[0].mlp.up_proj.weight.add_(0.01)
    expected = rollout(world, 1, guesses=False)
    assert_same(rollout(world, 1), expected)
    assert world.dynamics._draft[1] is not draft


@pytest.mark.usefixtures("drafting")
@torch.no_grad()
def test_a_draft_is_close_to_the_network():
    llm = nano_world(dtype=torch.float32).transformer.llm
    for name, gain in llm.named_parameters():
        if "norm" in name:  # no two norms alike
            torch.nn.init.normal_(gain, 1.0, 0.5)
    embeds = torch.randn(2, 5, 32)
    draft = Draft(llm, llm.lm_head.weight[32:56])
    true = llama_pass(llm, embeds) @ llm.lm_head.weight[32:56].t()
    error = (draft.lm_head(llama_pass(draft, embeds)) - true).abs().max() / true.std()
    assert 0 < error < 0.005


@pytest.mark.usefixtures("drafting")
def test_many_rows_of_a_large_network_are_decoded_in_turn(passes):
    world = nano_world(dtype=torch.float32)
    world_dynamics_rows = world_dynamics.MOST_PLACES // world.spec.n + 1
    rollout(world, world_dynamics_rows)
    assert world.dynamics._draft is None and passes[1:4] == [1, 1, 1]


def test_what_can_be_drafted(monkeypatch):
    llm = nano_world(dtype=torch.float32).transformer.llm
    monkeypatch.setattr(type(torch.backends.quantized), "engine", "fbgemm")
    assert can_draft(llm) and not can_draft(copy.deepcopy(llm).double())
    llm.config.mlp_bias = True
    assert not can_draft(llm)
    llm.config.mlp_bias = False
    monkeypatch.setattr(type(torch.backends.quantized), "engine", "qnnpack")
    assert not can_draft(llm)
