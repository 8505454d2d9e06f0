"""How attention to the context and codebooks begin, what drops out, what is exchanged, what a state takes."""

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from tests.ivideogpt import tiny
from toolkit.zoo.world.codebook import CodebookEMA, VectorQuantizer
from toolkit.zoo.world.composite import _likeness
from toolkit.zoo.world.fast_layers import Residual, _active, exchange_layers
from toolkit.zoo.world.tokenizer_blocks import CrossAttention, attention_groups


def test_a_place_begins_by_looking_at_itself_in_every_frame():
    block = CrossAttention(8, 2, 3, 4)
    before = block.att.in_proj_weight.detach().clone()
    block.start_diagonal(0.25, torch.Generator().manual_seed(1))
    table = 0.25 * torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(block.q_pos_emb, table) and torch.equal(block.kv_pos_emb, torch.cat([table] * 3))
    queries, keys, values = block.att.in_proj_weight.chunk(3)
    assert torch.equal(queries, torch.eye(8)) and torch.equal(keys, torch.eye(8)) and torch.equal(values, before[16:])


def test_what_is_found_in_the_context_drops_out_in_training():
    torch.manual_seed(0)
    block = CrossAttention(8, 2, 1, 4, dropout=0.0)
    block.resid_dropout.p = 1.0
    maps, memory = torch.randn(3, 8, 2, 2), block.remember(torch.randn(1, 1, 8, 2, 2))
    assert torch.equal(block.train()(maps, memory), nn.functional.silu(maps))
    assert not torch.allclose(block.eval()(maps, memory), nn.functional.silu(maps))


def test_attention_has_the_releases_groups_where_its_width_allows():
    assert [attention_groups(channels, 4) for channels in (64, 32, 48, 8)] == [32, 32, 4, 4]


@pytest.mark.parametrize(("activation", "exchanged"), [("silu", True), ("gelu", False)])
def test_only_blocks_of_silu_are_exchanged_and_nothing_that_needs_a_gradient_is_overwritten(activation, exchanged):
    network = nn.Sequential(ResnetBlock2D(in_channels=8, temb_channels=None, groups=4, non_linearity=activation))
    exchange_layers(network)
    assert (type(network[0]) is Residual) == exchanged
    kept = torch.ones(2, requires_grad=True) * 1
    assert _active(kept) is not kept and kept.tolist() == [1, 1]


def test_colours_are_as_unlike_as_their_most_unlike_channel():
    frames = torch.tensor([0.0, 0.05, 0.02]).view(1, 1, 3, 1, 1)
    assert _likeness(frames, 0 * frames, 0.1).item() == pytest.approx(0.5)


def test_codes_begin_within_one_over_their_number_and_a_restarted_one_as_one_latent():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(50, 4)
    assert 0.9 / 50 < quantizer.embedding.weight.abs().max() <= 1 / 50
    average = CodebookEMA(quantizer, decay=0.5, restart_below=0.6)
    latents = torch.full((3, 4), 7.0)
    for total in (49, 98):  # all but code 0 fall to a half and begin anew, each time
        average.update(latents, torch.zeros(3, dtype=torch.int64))
        assert average.num_restarted == total and average.counts[1:].tolist() == [1.0] * 49
        torch.testing.assert_close(average.sums[1:], latents[:1].expand(49, -1), atol=0.1, rtol=0)


def test_true_tokens_are_what_is_predicted_from_those_that_are_seen():
    world = tiny.world()
    network, layout = world.transformer, world.tokenizer.layout
    rng = torch.Generator().manual_seed(0)
    context = torch.randint(16, (2, layout.context_length, layout.tokens_per_context), generator=rng)
    true, other = (torch.randint(4, (2, 2, layout.tokens_per_frame), generator=rng) for _ in range(2))
    tokens, seen = layout.join(context, true), layout.join(context, other)
    actions = torch.zeros(2, layout.context_length + 2, network.action_dim)
    found = network(tokens, layout, actions, seen)
    log_probs = network.logits(seen, layout, actions).log_softmax(-1)[:, layout.prompt_length - 1 : -1]
    wanted = -log_probs.gather(-1, tokens[:, layout.prompt_length :, None]).squeeze(-1)
    torch.testing.assert_close(found.loss, wanted.mean())
    torch.testing.assert_close(found.token_losses[:, 0], wanted[:, : layout.tokens_per_frame])
    assert not torch.allclose(found.loss, network(tokens, layout, actions).loss)


def test_a_state_takes_the_bytes_of_its_numbers():
    state = tiny.world().begin(tiny.starts(2), seeds=0)
    kept = [state.recent, state.context.frames, *(part for one in state.context.memory for part in one)]
    of_each = [one.numel() * {torch.uint8: 1, torch.float32: 4}[one.dtype] for one in kept]
    assert state.nbytes == state.past.cache.nbytes + sum(of_each)


def test_no_code_is_restarted_unless_that_was_asked_for():
    quantizer = VectorQuantizer(5, 3)
    average = CodebookEMA(quantizer, decay=0.0)  # counts are the last batch's alone, so exactly 0 where unused
    average.update(torch.randn(4, 3), torch.tensor([0, 0, 2, 2]))
    assert average.counts.tolist() == [2.0, 0.0, 2.0, 0.0, 0.0] and average.num_restarted == 0
