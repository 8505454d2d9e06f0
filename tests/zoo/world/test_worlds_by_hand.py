"""What an imagined world carries on, draws and adds up, and how a codebook follows its latents, by plain numbers."""

from dataclasses import asdict

import pytest
import torch

from tests.zoo.world.nano_world import nano_clips, nano_tokenizer, nano_transformer, nano_world
from toolkit.zoo.world import model
from toolkit.zoo.world.codebook import CodebookEMA, VectorQuantizer, draw_apart
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.sampling import Sampling, draw
from toolkit.zoo.world.state import Kept
from toolkit.zoo.world.tokens import TokenLayout
from toolkit.zoo.world.transformer import read_transformer, write_transformer


def quantizer(table, commitment=1.0):
    made = VectorQuantizer(len(table), len(table[0]), commitment)
    made.embedding.weight.data = torch.tensor(table)
    return made


# -- codebooks ---------------------------------------------------------------------------------------------------------


def test_latents_are_drawn_to_their_code_by_the_commitment_and_codes_to_their_latents_by_one():
    made = quantizer([[0.0, 0.0], [4.0, 0.0], [9.0, 9.0]], commitment=0.25)
    latents = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [0.0, 0.0]]], requires_grad=True)
    found = made(latents)
    assert found.codes.tolist() == [[0, 1, 0]] and found.vectors.tolist() == [[[0, 0], [4, 0], [0, 0]]]
    squares = (1 + (1 + 4)) / 6  # of all six numbers
    assert found.loss.item() == pytest.approx(1.25 * squares)
    found.loss.backward()
    torch.testing.assert_close(latents.grad[0], 0.25 * 2 / 6 * torch.tensor([[1.0, 0.0], [-1.0, 2.0], [0.0, 0.0]]))
    torch.testing.assert_close(made.embedding.weight.grad, 2 / 6 * torch.tensor([[-1.0, 0], [1.0, -2.0], [0.0, 0.0]]))


def test_a_code_is_the_moving_sum_of_its_latents_over_their_moving_number():
    """Both begin as if each code had just been met once; decay 0.75."""
    made = quantizer([[2.0, 0.0], [10.0, 10.0]])
    average = CodebookEMA(made, decay=0.75)
    average.update(torch.tensor([[4.0, 0.0], [6.0, 8.0], [1.0, 1.0]]), torch.tensor([0, 0, 1]))
    counts, sums = [0.75 + 0.25 * 2, 0.75 + 0.25], [[1.5 + 2.5, 2.0], [7.5 + 0.25, 7.75]]
    torch.testing.assert_close(average.counts, torch.tensor(counts))
    torch.testing.assert_close(average.sums, torch.tensor(sums))
    table = torch.tensor([[one / count for one in row] for row, count in zip(sums, counts, strict=True)])
    torch.testing.assert_close(made.embedding.weight.detach(), table)


def test_a_dead_code_goes_where_no_living_one_is():
    made = quantizer([[0.0, 0.0], [10.0, 10.0]])
    average = CodebookEMA(made, decay=0.5, restart_below=0.9, apart=True)
    latents = torch.tensor([[0.0, 0.0]] * 20 + [[10.0, 10.0]] * 20)
    average.update(latents, torch.zeros(40, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert average.num_restarted == 1 and average.sums[1].tolist() == [10.0, 10.0]


def test_what_is_far_from_every_start_is_drawn():
    latents = torch.tensor([[0.0, 0.0]] * 20 + [[5.0, 5.0]] + [[10.0, 10.0]] * 20)
    start = torch.tensor([[0.0, 0.0], [10.0, 10.0]])
    for seed in range(5):
        drawn = draw_apart(latents, 1, torch.Generator().manual_seed(seed), start)
        assert drawn.tolist() == [[5.0, 5.0]]


# -- drawing -----------------------------------------------------------------------------------------------------------


def test_a_low_temperature_sharpens_and_does_not_decide():
    logits = torch.tensor([0.0, 0.5]).view(1, 1, 2).expand(4000, 1, 2)
    tokens = draw(logits, 0, Sampling(temperature=0.5), torch.arange(4000), 0, 0).tokens.float()
    assert tokens.mean().item() == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=0.03)  # 0.5 / 0.5
    assert (Sampling().temperature, Sampling().top_k, Sampling().whole_vocabulary) == (1.0, 100, False)


def test_an_id_has_the_same_noise_whichever_others_may_be_drawn():
    logits = torch.randn(50, 3, 8, generator=torch.Generator().manual_seed(0))
    whole = torch.cat([torch.full((50, 3, 5), -torch.inf), logits], dim=-1)
    seeds = torch.arange(50)
    part = draw(logits, 5, Sampling(), seeds, 2, 1).tokens
    assert torch.equal(part, draw(whole, 0, Sampling(), seeds, 2, 1).tokens) and len(part.unique()) == 8


def test_as_many_frames_fit_as_whole_ones_do():
    layout = TokenLayout(2, 9, 4, 5, 7)
    for num in (0, 1, 6):
        assert layout.max_future(layout.length(num)) == num and layout.num_targets(num) == 5 * num - 1
        assert layout.max_future(layout.length(num) - 1) == max(0, num - 1)


# -- worlds ------------------------------------------------------------------------------------------------------------


def test_a_number_stands_for_seeds_that_follow_each_other():
    world, (frames, actions) = nano_world(), nano_clips(3)
    states = [world.begin(frames[:, :2], seeds=seeds) for seeds in (7, [7, 8, 9])]
    assert [one.seeds.tolist() for one in states] == [[7, 8, 9]] * 2
    found = [world.step(one, actions[:, 0])[1].tokens for one in states]
    assert torch.equal(*found)


@torch.no_grad()
def test_the_likelihood_of_a_frame_is_that_of_all_its_tokens_among_what_a_frame_can_hold():
    world, (frames, actions) = nano_world(), nano_clips(3)
    found = world.score(frames[:, :2], frames[:, 2:], actions[:, :4])
    layout = world.tokenizer.layout
    tokens = world.tokenizer.tokenize(frames)
    rows = torch.cat([actions[:, :1], actions[:, :4], actions[:, :1]], dim=1)  # the first and the last are not read
    logits = world.transformer.logits(tokens, layout, rows)[..., 32:56].log_softmax(-1)
    for frame in range(4):
        start = layout.slot_index(frame)
        expected = sum(
            logits[torch.arange(3), start + place, tokens[:, start + 1 + place] - 32]
            for place in range(layout.tokens_per_frame)
        )
        torch.testing.assert_close(found.logprobs[:, frame].double(), expected, rtol=1e-5, atol=1e-5)


def test_a_context_that_stays_is_kept_with_its_last_frame_and_is_what_is_composed(monkeypatch):
    world, (frames, actions) = nano_world(kept_frames=2, composite=True), nano_clips(3)
    state, given = world.begin(frames[:, :2]), []
    assert torch.equal(state.kept.frame, frames[:, 1])
    monkeypatch.setattr(model, "composite", lambda decoded, *more: given.append(more) or decoded)
    world.step(state, actions[:, 0])
    decoded, true = given[0]
    assert torch.equal(decoded, state.context.frames[:, 1]) and torch.equal(true, frames[:, 1])
    rows = state.select([2, 0]).kept
    assert torch.equal(rows.frame, frames[[2, 0], 1]) and torch.equal(rows.codes, state.kept.codes[[2, 0]])
    assert isinstance(rows, Kept)


@pytest.mark.parametrize(("kept", "used"), [(0, [1, 2, 3, 4, 5, 1, 2]), (2, [1, 2, 3, 4, 5, 3, 4])])
def test_positions_that_are_used_up_begin_anew_and_frames_are_counted_on(kept, used):
    world, (frames, actions) = nano_world(kept_frames=kept, max_position_embeddings=59), nano_clips(2, 9)
    assert world.dynamics.max_future == 5
    state, seen, again = world.begin(frames[:, :2]), [], []
    for step in range(7):
        state, pred = world.step(state, actions[:, step], on_overflow="recontext")
        seen.append(int(state.used))
        again.append(pred.recontextualised)
        assert int(state.frame) == step + 1
    assert seen == used and again == [False] * 5 + [True, False]


@pytest.mark.parametrize("goal", [False, True])
def test_a_new_context_is_the_last_frames_behind_the_goal_where_there_is_one(goal):
    tokenizer = nano_tokenizer(3)
    world = WorldModel(tokenizer, nano_transformer(tokenizer, max_position_embeddings=128), goal_conditioned=goal)
    world, (frames, actions) = world.double(), nano_clips(2)
    start = world.begin(frames[:, :3])
    state, pred = world.step(start, actions[:, 0])
    kept = start.recent[:, [0, 2]] if goal else start.recent[:, 1:]
    assert torch.equal(state.recent, torch.cat([kept, pred.frame[:, None]], dim=1))
    assert world.spec.goal_conditioned == goal
    shown = []

    def policy(observation, t):
        shown.append(observation)
        return actions[:, t]

    found = world.imagine(start, policy, 2)
    assert torch.equal(shown[0], start.recent[:, 2]) and torch.equal(shown[1], found.frames[:, 0])


def test_how_a_world_is_drawn_from_is_kept_in_its_config(tmp_path):
    tokenizer = nano_tokenizer()
    how = Sampling(0.7, 9)
    made = WorldModel(tokenizer, nano_transformer(tokenizer), sampling=how)
    assert made.config["sampling"] == asdict(how)
    made.save_pretrained(tmp_path)
    assert WorldModel.from_pretrained(tmp_path).sampling == how


def test_a_transformer_tells_the_squares_of_its_places_by_its_tables(tmp_path):
    network = nano_transformer(nano_tokenizer(), spatial_embedding=True, initializer_range=0.05)
    spread = torch.cat([one.weight.flatten() for one in network.spatial.children()]).std().item()
    assert spread == pytest.approx(0.05, rel=0.15) and network.config.rms_norm_eps == 1e-6
    write_transformer(network, tmp_path)
    read = read_transformer(tmp_path)
    assert read.config.spatial_embedding == [16, 4]
    assert torch.equal(read.spatial(2, 3), network.spatial(2, 3))


# -- the transformer's memory and the tokenizer ------------------------------------------------------------------------


@torch.no_grad()
def test_what_is_known_of_a_world_is_read_as_in_training():
    """Context and two frames with the actions that led to them, then the state that draws the third's first token."""
    tokenizer = nano_tokenizer()
    transformer = nano_transformer(tokenizer, spatial_embedding=True)
    dynamics, layout = WorldModel(tokenizer, transformer).double().dynamics, tokenizer.layout
    frames, actions = nano_clips(3)
    tokens = tokenizer.tokenize(frames[:, :4])
    context, future = layout.split(tokens)
    past = dynamics.look(context, 8, future + layout.num_context_codes, actions[:, 1:3])
    assert past.cache.length == tokens.shape[1] and past.pending is None
    whole = tokenizer.tokenize(frames[:, :5])
    logits = transformer.logits(whole, layout, actions[:, :5])[:, layout.slot_index(2), 32:56].log_softmax(-1)
    greedy = Sampling(temperature=0.0)
    found = dynamics.frame(past, actions[:, 3], greedy, torch.arange(3), 2)[1]
    assert torch.equal(found.tokens[:, 0], logits.argmax(-1) + 32)
    torch.testing.assert_close(found.logprobs[:, 0].double(), logits.amax(-1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_in_a_warm_up_latents_go_on_as_they_are():
    tokenizer = nano_tokenizer().double()
    frames, _ = nano_clips(2)
    plain, coded = (tokenizer(frames[:, :2], frames[:, 2:], quantize) for quantize in (False, True))
    assert torch.equal(plain.context_latents, coded.context_latents)
    expected = tokenizer.decode_context(plain.context_codes)
    torch.testing.assert_close(coded.ref_sample, expected.frames)
    made, maps = tokenizer._decode_context(plain.context_latents)
    torch.testing.assert_close(plain.ref_sample, made)
    memory = tokenizer.cond_decoder.remember(maps)
    torch.testing.assert_close(plain.sample, tokenizer._decode_frames(plain.dynamics_latents, memory))
    assert not torch.allclose(plain.sample, coded.sample)


def test_codes_may_be_narrower_than_latents_and_tokens_are_the_same_in_training():
    tokenizer = nano_tokenizer(vq_embed_dim=5)
    assert tokenizer.quantize.embedding.weight.shape == (32, 5) and tokenizer.quant_linear.out_features == 5
    for block in tokenizer.cond_encoder.cross_att_blocks:
        assert block.att.dropout == block.resid_dropout.p == 0.1
        torch.nn.init.normal_(block.att.out_proj.weight)
    frames = nano_clips(2, dtype=torch.float32)[0]
    expected = tokenizer.tokenize(frames)
    assert torch.equal(tokenizer.train().tokenize(frames), expected) and tokenizer.training
    block = tokenizer.cond_decoder.cross_att_blocks[0]
    tokenizer.start_diagonal(3.0, torch.Generator().manual_seed(0))
    assert block.q_pos_emb.std().item() == pytest.approx(3.0, rel=0.2)
    context = torch.randn(2, 2, block.q_pos_emb.shape[1], 4, 4)
    before = block.remember(context).keys
    torch.nn.init.normal_(block.q_norm.weight)
    assert torch.equal(block.remember(context).keys, before)  # its own norm is the keys'
    torch.nn.init.normal_(block.kv_norm.weight)
    assert not torch.equal(block.remember(context).keys, before)
