"""Rows, bytes and memories of imagined worlds, the discriminator's layers, patches and maps, by plain numbers."""

import dataclasses

import numpy as np
import torch
from torch.nn import functional as F

from tests.ivideogpt import tiny
from toolkit.zoo.world.discriminator import PatchDiscriminator
from toolkit.zoo.world.linear import _Linear
from toolkit.zoo.world.llama import KeyValueCache, _place, rotate
from toolkit.zoo.world.model import read_world_model
from toolkit.zoo.world.release import import_ivideogpt
from toolkit.zoo.world.state import Kept, Pred, Preds, as_bytes
from toolkit.zoo.world.tokenizer_blocks import ConditionalDecoder, ConditionalEncoder, CrossAttention


def test_the_discriminator_is_its_layers_one_after_the_other():
    """Strided convolutions of spectral norm one; leaky ReLU of slope 0.2; instance norm on all but the first."""
    torch.manual_seed(0)
    network = PatchDiscriminator(hidden_channels=8, depth=2).eval()
    x = torch.rand(2, 3, 12, 12)
    first, second = (layer for layer in network.trunk if isinstance(layer, torch.nn.Conv2d))
    hidden = F.leaky_relu(F.conv2d(x, first.weight, first.bias, 2, 1), 0.2)
    hidden = F.conv2d(hidden, second.weight, second.bias, 2, 1)
    mean, variance = hidden.mean((2, 3), keepdim=True), hidden.var((2, 3), keepdim=True, correction=0)
    hidden = F.leaky_relu((hidden - mean) / (variance + 1e-5).sqrt(), 0.2)
    wanted = F.conv2d(hidden, network.head.weight, network.head.bias)
    torch.testing.assert_close(network(x), wanted)
    assert wanted.shape == (2, 1, 3, 3) and (first.out_channels, second.out_channels) == (4, 8)


def test_copies_of_a_row_stand_side_by_side():
    world = tiny.world()
    state = world.begin(tiny.starts(2), seeds=[5, 9])
    forked = state.fork(3)
    assert forked.seeds.tolist() == [5, 5, 5, 9, 9, 9] and len(forked) == 6
    assert torch.equal(forked.recent, state.recent.repeat_interleave(3, 0))
    assert state.fork(2, seeds=[1, 2, 3, 4]).seeds.tolist() == [1, 2, 3, 4]
    old = dataclasses.replace(state, frame=torch.tensor([1, 2]), used=torch.tensor([3, 4]))
    again = old.select([1, 0, 1])
    assert again.frame.tolist() == [2, 1, 2] and again.used.tolist() == [4, 3, 4]


def test_bytes_are_the_nearest_of_255_levels():
    levels = torch.arange(256.0).view(1, 16, 16).expand(3, -1, -1)
    for off in (-0.4, 0.4):
        made = as_bytes((levels + off) / 255)
        assert made.shape == (16, 16, 3) and made[..., 2].flatten().tolist() == list(range(256))
    assert as_bytes(torch.tensor([-1.0, 2.0, 0.5]).view(3, 1, 1)).flatten().tolist() == [0, 255, 128]


def test_the_oldest_frame_makes_room_for_the_newest():
    tokens, actions = torch.tensor([[[1, 1], [2, 2]]]), torch.tensor([[[7.0], [8.0]]])
    kept = Kept(torch.zeros(1, 1, 4), torch.zeros(1, 3, 2, 2), tokens, actions)
    made = kept.with_frame(torch.tensor([[3, 3]]), torch.tensor([[9.0]]))
    assert made.tokens.tolist() == [[[2, 2], [3, 3]]] and made.actions.flatten().tolist() == [8, 9]
    assert kept.tokens.tolist() == [[[1, 1], [2, 2]]]
    two = Kept.joined([kept, made], torch.tensor([1, 0]))
    assert two.tokens[:, 0, 0].tolist() == [2, 1] and two.select(torch.tensor([1])).actions.flatten().tolist() == [7, 8]


def test_frames_are_stacked_in_their_order():
    def pred(number, again):
        full = torch.full((1, 2), number)
        frame = torch.full((1, 2, 2, 3), number, dtype=torch.uint8)
        return Pred(frame, torch.tensor([float(number)]), full, torch.tensor([-float(number)]), torch.ones(1), again)

    made = Preds.stack([pred(0, False), pred(1, True)], [torch.zeros(1, 2), torch.ones(1, 2)], None)
    assert made.frames.shape == (1, 2, 2, 2, 3) and made.frames[0, :, 0, 0, 0].tolist() == [0, 1]
    assert made.rewards.tolist() == [[0, 1]] and made.logprobs.tolist() == [[0, -1]]
    assert made.recontextualised == (1,) and made.actions[0, :, 0].tolist() == [0, 1]


def test_a_frames_log_probability_is_a_sum_over_its_tokens_and_its_entropy_a_mean():
    world = tiny.world()
    state = world.begin(tiny.starts(2), seeds=0)
    action = np.zeros((2, 2), np.float32)
    _, drawn, _ = world.dynamics.frame(state.past, torch.zeros(2, 2), world.sampling, state.seeds, state.frame)
    pred = world.step(world.begin(tiny.starts(2), seeds=0), action)[1]
    assert torch.equal(pred.tokens, drawn.tokens) and drawn.tokens.shape == (2, 4)
    torch.testing.assert_close(pred.logprob, sum(drawn.logprobs[:, i] for i in range(4)))
    torch.testing.assert_close(pred.entropy, sum(drawn.entropies[:, i] for i in range(4)) / 4)


def test_a_turn_by_a_quarter_takes_the_first_half_to_the_second():
    """(x, y) -> (x cos - y sin, y cos + x sin), x the first half of a head's numbers and y the second."""
    heads = torch.tensor([1.0, 2, 3, 4])
    quarter = rotate(heads, torch.zeros(4), torch.ones(4))
    assert quarter.tolist() == [-3, -4, 1, 2]
    assert rotate(heads, torch.ones(4), torch.zeros(4)).tolist() == [1, 2, 3, 4]


def test_sequences_that_are_joined_twice_keep_where_they_begin():
    """Of 2, 3 and 5 positions: in a cache of 5 they begin at 3, 2 and 0, whichever were joined first."""
    llm = tiny.world().transformer.llm

    def cache(length):
        made = KeyValueCache.empty(llm, 1, length).extended(length)
        made._buffer.memory.fill_(float(length))
        return made

    rows = [torch.tensor([0]), torch.tensor([1])]
    inner = KeyValueCache.joined([cache(2), cache(3)], rows, 0)
    assert inner.starts.tolist() == [1, 0]
    outer = KeyValueCache.joined([inner, cache(5)], [torch.tensor([0, 2]), torch.tensor([1])], 0)
    assert outer.starts.tolist() == [3, 0, 2] and outer.length == 5
    held = outer._buffer.memory[0, 0, :, 0, :, 0]
    assert held.tolist() == [[0, 0, 0, 2, 2], [5] * 5, [0, 0, 3, 3, 3]]
    assert outer.select(torch.tensor([0, 2])).starts.tolist() == [1, 0]


def test_gradients_of_a_product_are_those_of_its_definition():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, 4), torch.randn(5, 4), torch.randn(5)
    grad = torch.randn(2, 3, 5)
    given = [one.requires_grad_(True) for one in (x, weight, bias)]
    _Linear.apply(*given).backward(grad)
    rows = grad.flatten(0, 1)
    for one, wanted in zip(given, (grad @ weight, rows.T @ x.flatten(0, 1), rows.sum(0)), strict=True):
        torch.testing.assert_close(one.grad, wanted.detach())


def test_attention_to_the_context_is_silu_of_the_sum():
    """Without weights attention gives its output's bias everywhere: SiLU of the map and that."""
    torch.manual_seed(0)
    block = CrossAttention(8, 2, 1, 4).eval()
    with torch.no_grad():
        block.att.out_proj.weight.zero_()
        block.att.out_proj.bias.copy_(torch.linspace(-1, 1, 8))
        maps, context = torch.randn(3, 8, 2, 2), torch.randn(1, 1, 8, 2, 2)
        made = block(maps, block.remember(context))
    total = maps + torch.linspace(-1, 1, 8)[:, None, None]
    torch.testing.assert_close(made, total * total.sigmoid())


def test_fewer_frames_keep_the_last_positions():
    block = CrossAttention(8, 2, 3, 4)
    with torch.no_grad():
        block.kv_pos_emb.copy_(torch.arange(12.0)[:, None].expand(-1, 8))
    block.keep_last_frames(2, 2)
    assert block.kv_pos_emb[:, 0].tolist() == list(range(4, 12))


def test_maps_up_to_the_largest_size_attend():
    plain = {"widths": (8, 16, 16), "layers_per_block": 1, "num_groups": 4, "act_fn": "silu", "mid_attention": True}
    inward = plain | {"in_channels": 3, "out_channels": 4, "block_types": ("DownEncoderBlock2D",) * 3}
    outward = plain | {"in_channels": 4, "out_channels": 3, "block_types": ("UpDecoderBlock2D",) * 3}
    # of 32 pixels: maps of 16, 8 and 8 on the way down; the latent's 8, then 16, 32 and 32 on the way up
    for most, down, up in [(7, [], [0]), (8, [1, 2], [0]), (16, [0, 1, 2], [0, 1]), (32, [0, 1, 2], [0, 1, 2, 3])]:
        assert ConditionalEncoder(32, 1, most, **inward).attended == down
        assert ConditionalDecoder(8, 1, most, **outward).attended == up


def test_patches_are_read_and_written_row_by_row():
    """A latent map whose numbers are their own places, through a projection that keeps them: the same map again."""
    coder = tiny.tokenizer()
    size, channels, p = coder.latent_size, 4, 4
    places = torch.arange(float(channels * size * size)).view(1, channels, size, size)
    seen = {}
    coder.cond_encoder.forward = lambda images, memory: places
    coder.cond_decoder.forward = lambda maps, memory: seen.setdefault("maps", maps)
    width = channels * p * p
    coder.quant_linear, coder.post_quant_linear = (torch.nn.Linear(width, width) for _ in range(2))
    for one in (coder.quant_linear, coder.post_quant_linear):
        torch.nn.init.eye_(one.weight), torch.nn.init.zeros_(one.bias)
    patches = coder._encode_frames(torch.zeros(1, 1, 3, 16, 16), [])
    assert patches.shape == (1, 1, (size // p) ** 2, width)
    for number in range((size // p) ** 2):  # tokens by rows; within one rows, columns, channels
        row, column = divmod(number, size // p)
        piece = places[0, :, row * p : (row + 1) * p, column * p : (column + 1) * p]
        assert torch.equal(patches[0, 0, number], piece.permute(1, 2, 0).flatten())
    coder._decode_frames(patches, [])
    assert torch.equal(seen["maps"], places)


def test_imported_networks_belong_together(tmp_path):
    """The release does not say which tokenizer's ids its transformer speaks; from the import on it is said."""
    tiny.world().save_pretrained(tmp_path / "release")
    import_ivideogpt(tmp_path / "release", tmp_path / "ours")
    made = read_world_model(tmp_path / "ours")
    assert made.transformer.config.tokenizer_fingerprint == made.tokenizer.fingerprint()


def test_a_new_position_sees_itself_and_what_came_before_it():
    """Two new positions after three; of rows that begin at 0 and at 2, the second sees nothing before its own start."""
    llm = tiny.world().transformer.llm
    embeds = torch.zeros(2, 2, 16)
    alike = _place(llm, embeds, KeyValueCache.empty(llm, 2, 5).extended(5))
    assert alike.mask.tolist() == [[True] * 4 + [False], [True] * 5] and not alike.is_causal
    cache = KeyValueCache.empty(llm, 2, 5).extended(5)
    cache.starts = torch.tensor([0, 2])
    own = _place(llm, embeds, cache)
    assert own.mask[0, 0].tolist() == alike.mask.tolist()
    assert own.mask[1, 0].tolist() == [[False, False, True, True, False], [False, False, True, True, True]]
    third = llm.model.rotary_emb(embeds, torch.tensor([[3]]))[0]  # the first new position of a row that begins at 0
    torch.testing.assert_close(own.cos[0, 0, 0], third[0, 0])
    torch.testing.assert_close(own.cos[1, 0, 0], llm.model.rotary_emb(embeds, torch.tensor([[1]]))[0][0, 0])
    whole = _place(llm, embeds, None)
    assert whole.is_causal and whole.mask is None


def test_a_frame_is_what_its_tokens_less_the_contexts_codes_decode_to():
    world = tiny.world()
    state, pred = world.step(world.begin(tiny.starts(2), seeds=3), np.zeros((2, 2), np.float32))
    assert (pred.tokens >= 16).all() and len(pred.tokens.unique()) > 1
    decoded = world.tokenizer.decode_frames((pred.tokens - 16)[:, None], state.context)
    assert torch.equal(pred.frame, as_bytes(decoded)[:, 0]) and torch.equal(state.recent[:, -1], pred.frame)


def test_the_action_that_leads_to_a_frame_changes_its_likelihood_and_no_earlier_ones():
    world = tiny.world(context_length=2, positions=200)
    rng = np.random.default_rng(0)
    frames, actions = (
        rng.integers(0, 256, (1, 5, 16, 16, 3), np.uint8),
        rng.uniform(-1, 1, (1, 3, 2)).astype(np.float32),
    )
    plain = world.score(frames[:, :2], frames[:, 2:], actions)
    for number in range(3):
        other = actions.copy()
        other[:, number] *= -1
        found = world.score(frames[:, :2], frames[:, 2:], other)
        assert torch.equal(found.logprobs[:, :number], plain.logprobs[:, :number])
        assert (found.logprobs[:, number:] != plain.logprobs[:, number:]).all()
