"""The world model: its cache, its noise, its border. In float64, where equal means equal."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.zoo.world.nano_world import ACTION_DIM, SIZE, nano_clips, nano_tokenizer, nano_transformer, nano_world
from toolkit.errors import UserError
from toolkit.zoo.world.llama import llama_pass
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.sampling import Sampling, draw
from toolkit.zoo.world.state import Preds

T0, K, B = 2, 4, 3


@pytest.fixture(scope="module", params=[{}, {"spatial_embedding": True}], ids=str)
def world(request):
    return nano_world(has_reward=True, **request.param)


@pytest.fixture(scope="module")
def context():
    return (nano_clips(B)[0][:, :T0] * 255).round().byte().movedim(2, -1)


@pytest.fixture(scope="module")
def actions():
    return nano_clips(B)[1][:, :K]


def assert_same(one: Preds, two: Preds) -> None:
    assert torch.equal(one.tokens, two.tokens) and torch.equal(one.frames, two.frames)
    for name in ("rewards", "logprobs", "entropies"):
        mine, theirs = getattr(one, name), getattr(two, name)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs)


def rows(preds: Preds, index) -> Preds:
    parts = (preds.frames, preds.rewards, preds.tokens, preds.logprobs, preds.entropies)
    kept = [None if one is None else one[index] for one in parts]
    return Preds(*kept, (), None, preds.state)


def test_spec(world):
    spec = world.spec
    assert (spec.resolution, spec.T0, spec.N, spec.n, spec.action_dim) == (SIZE, T0, 16, 4, ACTION_DIM)
    assert spec.max_future == (96 + 1 - 34) // 5 and spec.has_reward and spec.dtype == torch.float64


@pytest.mark.parametrize("sampling", [None, "greedy", Sampling(temperature=0.7, top_k=5), Sampling(top_k=None)])
def test_a_rollout_is_its_steps(world, context, actions, sampling):
    whole = world.rollout(world.begin(context, seeds=7), actions, sampling)
    state, preds = world.begin(context, seeds=7), []
    for t in range(K):
        state, pred = world.step(state, actions[:, t], sampling)
        preds.append(pred)
    assert_same(whole, Preds.stack(preds, [None] * K, state))
    assert whole.frames.shape == (B, K, SIZE, SIZE, 3) and whole.frames.dtype == torch.uint8
    assert whole.rewards.shape == whole.logprobs.shape == whole.entropies.shape == (B, K)
    assert torch.equal(whole.state.observation, whole.frames[:, -1])


def test_a_rows_future_is_the_same_alone_and_in_any_batch(world, context, actions):
    whole = world.rollout(world.begin(context, seeds=[5, 11, 3]), actions)
    for row, seed in enumerate([5, 11, 3]):
        alone = world.rollout(world.begin(context[row : row + 1], seeds=seed), actions[row : row + 1])
        assert_same(alone, rows(whole, slice(row, row + 1)))
    order = [2, 0, 1, 2]
    mixed = world.rollout(world.begin(context[order], seeds=[3, 5, 11, 3]), actions[order])
    assert_same(mixed, rows(whole, order))
    assert_same(
        world.rollout(world.begin(context, seeds=4), actions),
        world.rollout(world.begin(context, seeds=[4, 5, 6]), actions),
    )


def test_the_cached_rollout_is_the_uncached_one(world, context, actions):
    """Draw every token from a full pass over the whole prefix, as if there were no cache."""
    layout, network = world.tokenizer.layout, world.transformer
    preds = world.rollout(world.begin(context, seeds=[1, 2, 3]), actions)
    images = context.movedim(-1, 2).double() / 255
    tokens, seeds = layout.prompt(world.tokenizer.encode_context(images).codes), torch.tensor([1, 2, 3])
    weight = network.llm.lm_head.weight[layout.num_context_codes : layout.context_slot]
    for frame in range(K):
        for place in range(layout.tokens_per_frame):
            embeds = network.llm.model.embed_tokens(tokens)
            if network.spatial is not None:
                embeds += network.spatial(T0, frame + 1)[: tokens.shape[1]]
            for j in range(frame + 1):
                embeds[:, layout.slot_index(j)] += network.action_linear(actions[:, j])
            logits = (llama_pass(network.llm, embeds)[:, -1] @ weight.t())[:, None]
            drawn = draw(logits, layout.num_context_codes, Sampling(), seeds, frame, place)
            tokens = torch.cat([tokens, drawn.tokens], dim=1)
        tokens = torch.cat([tokens, torch.full_like(tokens[:, :1], layout.frame_slot)], dim=1)
    assert torch.equal(layout.split(tokens[:, :-1])[1] + layout.num_context_codes, preds.tokens)


def test_a_state_can_be_stepped_again_and_forked(world, context, actions):
    start = world.begin(context, seeds=0)
    middle, _ = world.step(start, actions[:, 0])
    left, _ = world.step(middle, actions[:, 1])
    _, right = world.step(middle, -actions[:, 1])  # from the same state, after it was stepped
    left, after = world.step(left, actions[:, 2])
    fresh = world.rollout(world.begin(context, seeds=0), actions[:, :3])
    assert torch.equal(after.tokens, fresh.tokens[:, 2])
    other = world.rollout(world.begin(context, seeds=0), torch.stack([actions[:, 0], -actions[:, 1]], 1))
    assert torch.equal(right.tokens, other.tokens[:, 1])

    forked = middle.fork(2)
    both = torch.stack([actions[:, 1], -actions[:, 1]], 1).flatten(0, 1)  # row by row: true, negated
    _, pred = world.step(forked, both)
    assert torch.equal(pred.tokens[0::2], fresh.tokens[:, 1]) and torch.equal(pred.tokens[1::2], right.tokens)
    assert not torch.equal(pred.tokens[0::2], pred.tokens[1::2])


def test_select_clone_and_reseed(world, context, actions):
    state, _ = world.step(world.begin(context, seeds=0), actions[:, 0])
    _, whole = world.step(state, actions[:, 1])
    _, part = world.step(state.select([2, 0]), actions[[2, 0], 1])
    assert torch.equal(part.tokens, whole.tokens[[2, 0]])
    _, masked = world.step(state.select(torch.tensor([False, True, False])), actions[1:2, 1])
    assert torch.equal(masked.tokens, whole.tokens[1:2])
    _, cloned = world.step(state.clone(), actions[:, 1])
    assert torch.equal(cloned.frame, whole.frame)
    same, other = state.fork(2), state.fork(2, seeds=range(6))
    twice = actions[:, 1].repeat_interleave(2, 0)
    assert torch.equal(*(world.step(same, twice)[1].tokens[k::2] for k in (0, 1)))
    assert not torch.equal(*(world.step(other, twice)[1].tokens[k::2] for k in (0, 1)))
    assert len(state) == B and 0 < state.nbytes < other.nbytes
    with pytest.raises(ValueError, match="seeds of shape"):
        state.reseeded([1])


def test_seeds_matter_and_greedy_needs_none(world, context, actions):
    one, two = (world.rollout(world.begin(context, seeds=seed), actions).tokens for seed in (0, 100))
    assert not torch.equal(one, two)
    one, two = (world.rollout(world.begin(context, seeds=seed), actions, "greedy").tokens for seed in (0, 100))
    assert torch.equal(one, two)


def test_actions_lead_to_their_own_frame(world, context, actions):
    """Changing action k changes frame k and nothing before."""
    before = world.rollout(world.begin(context), actions).tokens
    for k in range(K):
        other = actions.clone()
        other[:, k] += 3.0
        after = world.rollout(world.begin(context), other).tokens
        assert torch.equal(after[:, :k], before[:, :k]) and not torch.equal(after[:, k], before[:, k])


def test_inside_a_frame_only_dynamics_codes_are_drawn(world, context, actions):
    layout = world.tokenizer.layout
    tokens = world.rollout(world.begin(context), actions, Sampling(temperature=5.0, top_k=None)).tokens
    assert (tokens >= layout.num_context_codes).all() and (tokens < layout.context_slot).all()
    free = world.rollout(world.begin(context), actions, Sampling(5.0, None, whole_vocabulary=True)).tokens
    assert (free < layout.num_context_codes).any()


def test_score_agrees_with_what_was_imagined(world, context, actions):
    """The tokens of a roll-out, scored by teacher forcing: the same log-probabilities and rewards."""
    layout = world.tokenizer.layout
    preds = world.rollout(world.begin(context), actions)
    images = context.movedim(-1, 2).double() / 255
    codes = world.tokenizer.encode_context(images).codes
    tokens = layout.join(codes, preds.tokens - layout.num_context_codes)
    padded = torch.cat([actions[:, :1], actions, actions[:, :1]], dim=1)
    logprobs, rewards = world.dynamics.score(tokens, padded)
    torch.testing.assert_close(logprobs.sum(-1).float(), preds.logprobs)
    torch.testing.assert_close(rewards, preds.rewards)
    clips, taken = nano_clips(B)
    scores = world.score(clips[:, :T0], clips[:, T0:], taken[:, T0 - 1 : -1])
    assert scores.logprobs.shape == scores.rewards.shape == (B, 4) and (scores.logprobs < 0).all()
    assert not torch.allclose(
        scores.logprobs, world.score(clips[:, :T0], clips[:, T0:], -taken[:, T0 - 1 : -1]).logprobs
    )


def test_score_refuses_frames_of_another_number_of_rows(world):
    clips, taken = nano_clips(B)
    with pytest.raises(UserError, match=f"frames: 1 rows, the context has {B}"):
        world.score(clips[:, :T0], clips[:1, T0:], taken[:, T0 - 1 : -1])


def test_a_policy_sees_bytes(world, context):
    seen = []

    def policy(observation, t):
        seen.append((observation.dtype, tuple(observation.shape), t, int(observation.max())))
        return np.full((B, ACTION_DIM), 0.1 * t)

    preds = world.imagine(world.begin(context), policy, K)
    assert [one[:3] for one in seen] == [(torch.uint8, (B, SIZE, SIZE, 3), t) for t in range(K)]
    assert max(one[3] for one in seen) > 200
    assert torch.allclose(preds.actions[:, :, 0], 0.1 * torch.arange(K, dtype=torch.float64).expand(B, K))


def test_an_action_free_world(context):
    world = nano_world(action_dim=None)
    preds = world.rollout(world.begin(context), num_frames=3)
    state, pred = world.step(world.begin(context))
    assert torch.equal(pred.tokens, preds.tokens[:, 0]) and preds.rewards is None and preds.actions is None
    with pytest.raises(UserError, match="the network is action-free"):
        world.step(state, torch.zeros(B, 2))
    with pytest.raises(UserError, match="num_frames for an action-free model"):
        world.rollout(state)


def test_horizon_past_the_positions(world, context):
    most, start = world.spec.max_future, world.begin(context)
    long = torch.zeros(B, most + 3, ACTION_DIM)
    with pytest.raises(UserError, match=rf"{most + 3} future frames: 96 positions hold {most}"):
        world.rollout(start, long)
    full = world.rollout(start, long[:, :most])
    with pytest.raises(UserError, match="future frames"):
        world.step(full.state, long[:, 0])
    with pytest.raises(UserError, match="on_overflow=wrap: choose one of raise, recontext"):
        world.step(start, long[:, 0], on_overflow="wrap")
    preds = world.rollout(start, long, on_overflow="recontext")
    assert preds.recontextualised == (most,) and preds.frames.shape[1] == most + 3
    assert torch.equal(preds.tokens[:, :most], full.tokens)
    # from there on it is the world that looks at the last frames, with its clock going on
    again = world.begin(full.frames[:, -T0:])
    state = type(again)(again.past, again.context, again.recent, start.seeds, frame=most)
    _, pred = world.step(state, long[:, 0])
    assert torch.equal(pred.tokens, preds.tokens[:, most])


@pytest.mark.parametrize("has_reward", [True, False])
def test_a_context_that_stays_is_read_again_with_the_last_frames_as_they_were_drawn(context, has_reward):
    world = nano_world(has_reward=has_reward, spatial_embedding=True, kept_frames=3)
    most, start = world.spec.max_future, world.begin(context, seeds=4)
    moves = torch.sin(torch.arange(B * 40 * ACTION_DIM).view(B, 40, ACTION_DIM)).double()
    preds = world.rollout(start, moves, on_overflow="recontext")
    assert preds.recontextualised[:2] == (most, most + most - 3)
    assert preds.state.context is start.context and len(set(preds.recontextualised)) > 2
    for renewed in preds.recontextualised[:2]:  # the frame after it, teacher forced on the context and what was drawn
        seen, layout = preds.tokens[:, renewed - 3 : renewed + 1], world.tokenizer.layout
        tokens = layout.join(start.kept.codes, seen - layout.num_context_codes)
        rows = torch.cat([moves[:, :1].expand(-1, T0 - 1, -1), moves[:, renewed - 3 : renewed + 1], moves[:, :1]], 1)
        logprobs, rewards = world.dynamics.score(tokens, rows)
        torch.testing.assert_close(logprobs[:, -1].sum(-1).float(), preds.logprobs[:, renewed])
        if has_reward:
            torch.testing.assert_close(rewards[:, -1], preds.rewards[:, renewed])


def test_frames_that_are_kept_fit_the_positions():
    most = nano_world().spec.max_future
    nano_world(kept_frames=most - 1)
    with pytest.raises(UserError, match=rf"kept_frames={most}: the positions hold {most} future frames"):
        nano_world(kept_frames=most)
    with pytest.raises(UserError, match="kept_frames=-1"):
        nano_world(kept_frames=-1)


@pytest.mark.parametrize("kept_frames", [0, 2])
@pytest.mark.parametrize("has_reward", [True, False])
def test_worlds_of_any_ages_go_on_together_as_they_would_alone(context, actions, has_reward, kept_frames):
    world = nano_world(has_reward=has_reward, spatial_embedding=True, kept_frames=kept_frames)
    states = [world.begin(context[:1], seeds=3), world.begin(context[1:], seeds=[5, 8]), world.begin(context[:2], 11)]
    for age, number in ((3, 0), (1, 1)):
        for t in range(age):
            states[number], _ = world.step(states[number], actions[: len(states[number]), t])
    order = [[2], [0, 4], [3, 1]]
    both, alone = world.join(states, order), states
    assert len(both) == 5 and both.seeds.tolist() == [5, 12, 3, 11, 6 + 2]
    most = world.spec.max_future
    for t in range(most + 1):  # beyond the positions of every one of them, each at its own time
        moves = torch.sin(torch.arange(5 * ACTION_DIM).view(5, ACTION_DIM) + 0.7 * t).double()
        both, pred = world.step(both, moves, on_overflow="recontext")
        together = [
            world.step(one, moves[rows], on_overflow="recontext") for one, rows in zip(alone, order, strict=True)
        ]
        alone = [state for state, _ in together]
        for (_, own), rows in zip(together, order, strict=True):
            assert torch.equal(pred.tokens[rows], own.tokens) and torch.equal(pred.frame[rows], own.frame)
            torch.testing.assert_close(pred.logprob[rows], own.logprob)
            assert (own.reward is None) == (not has_reward)
            if has_reward:
                torch.testing.assert_close(pred.reward[rows], own.reward)
        assert pred.recontextualised == any(own.recontextualised for _, own in together)
        if t == 2:  # rows that were taken out and joined again
            both = world.join([both.select([3, 1]), both.select([0, 2, 4])], [[3, 1], [0, 2, 4]])
    with pytest.raises(UserError, match=r"expected 0\.\.2, one for each world"):
        world.join(states[:2], [[0], [0, 1]])


def test_a_goal_stays_in_a_new_context(context):
    tokenizer = nano_tokenizer()
    world = WorldModel(tokenizer, nano_transformer(tokenizer), goal_conditioned=True)
    state, pred = world.step(world.begin(context), torch.zeros(B, ACTION_DIM))
    assert torch.equal(state.recent[:, 0], context[:, 0]) and torch.equal(state.recent[:, 1], pred.frame)


def test_images_in_any_usual_form(world, context, actions):
    expected = world.rollout(world.begin(context), actions).tokens
    channels_first = context.movedim(-1, 2)
    for form in (channels_first, context.double() / 255, channels_first.double() / 255, context.numpy()):
        assert torch.equal(world.rollout(world.begin(form), actions.numpy()).tokens, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w, c, a: w.begin(c[:, :1]), "context: 1 frames, expected 2"),
        (lambda w, c, a: w.begin(c[:, :, :8]), r"context of shape .*: expected \(rows, frames, 16, 16, 3\)"),
        (lambda w, c, a: w.begin(c.float()), r"context: floating-point values outside \[0, 1\]"),
        (lambda w, c, a: w.begin(c.float() * float("nan")), "not finite"),
        (lambda w, c, a: w.begin(c.int()), "context of dtype torch.int32: expected uint8"),
        (lambda w, c, a: w.begin(c, seeds=[1, 2]), r"seeds of shape \(2,\): expected one int, or one for each of 3"),
        (lambda w, c, a: w.step(w.begin(c), a[:, 0, :2]), r"actions of shape \(3, 1, 2\): expected \(3, 1, 3\)"),
        (lambda w, c, a: w.step(w.begin(c)), "actions: missing, the network takes 3 numbers"),
        (lambda w, c, a: w.step(w.begin(c), a[:, 0] / 0), "actions: hold values that are not finite"),
        (
            lambda w, c, a: w.rollout(w.begin(c), a[:, 0]),
            r"actions of shape \(3, 3\): expected \(rows, frames, numbers\)",
        ),
        (lambda w, c, a: w.rollout(w.begin(c), a, "best"), "sampling=best: choose None, 'greedy' or a Sampling"),
        (lambda w, c, a: w.imagine(w.begin(c), lambda o, t: a[:, 0], 0), "num_frames=0: must be at least 1"),
        (lambda w, c, a: Sampling(temperature=-1), "sampling.temperature=-1: must be at least 0"),
        (lambda w, c, a: Sampling(top_k=0), "sampling.top_k=0: must be at least 1"),
    ],
)
def test_bad_input_is_one_clear_line(world, context, actions, call, message):
    with pytest.raises(UserError, match=message) as error:
        call(world, context, actions)
    assert "\n" not in str(error.value)


def test_a_transformer_refuses_a_tokenizer_it_was_not_trained_with():
    mine, other = nano_tokenizer(seed=0), nano_tokenizer(seed=9)
    transformer = nano_transformer(mine)
    WorldModel(other, transformer)  # not yet bound to any
    transformer.bind(mine)
    WorldModel(mine, transformer)
    with pytest.raises(UserError, match="trained with another tokenizer"):
        WorldModel(other, transformer)
    transformer.bind(other)  # after adapting the tokenizer alone
    WorldModel(other, transformer)
    with pytest.raises(UserError, match="vocabulary of 58, but the tokenizer's codes and slots make 66"):
        WorldModel(nano_tokenizer(num_vq_embeddings=40), transformer)
    with pytest.raises(UserError, match="action_low: 2 numbers, the actions have 3"):
        WorldModel(other, transformer, action_low=[0, 0])


def test_a_model_keeps_how_it_is_sampled_and_of_what_kind_its_actions_are(tmp_path, context, actions):
    plain, own = nano_world(), Sampling(temperature=0.05, top_k=3)
    told = plain.rollout(plain.begin(context, seeds=7), actions, own)
    assert not torch.equal(told.tokens, plain.rollout(plain.begin(context, seeds=7), actions).tokens)
    WorldModel(plain.tokenizer, plain.transformer, sampling=own, discrete=ACTION_DIM).save_pretrained(tmp_path / "own")
    read = WorldModel.from_pretrained(tmp_path / "own").double()
    assert read.sampling == own and read.config["discrete"] == ACTION_DIM
    assert torch.equal(read.rollout(read.begin(context, seeds=7), actions).tokens, told.tokens)
    state = read.begin(context, seeds=7)
    for k in range(K):
        state, pred = read.step(state, actions[:, k])
        assert torch.equal(pred.tokens, told.tokens[:, k])
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    older = {key: value for key, value in config.items() if key not in ("sampling", "discrete")}
    (tmp_path / "own" / "config.json").write_text(json.dumps(older))
    assert WorldModel.from_pretrained(tmp_path / "own").sampling == Sampling()
    for wrong, message in (({"sampling": {"heat": 1}}, "not the config of a world model"),
                           ({"sampling": {"temperature": -1}}, "temperature=-1"),
                           ({"discrete": 100}, "discrete=100: does not divide")):  # fmt: skip
        (tmp_path / "own" / "config.json").write_text(json.dumps(older | wrong))
        with pytest.raises(UserError, match=message):
            WorldModel.from_pretrained(tmp_path / "own")
