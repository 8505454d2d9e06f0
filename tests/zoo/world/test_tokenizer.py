"""The compressive tokenizer: what depends on what, its codebooks, and the options that the paper does not have."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.zoo.world.nano_world import SIZE, nano_clips, nano_tokenizer
from toolkit.zoo.world.codebook import CodebookEMA, VectorQuantizer, perplexity, usage
from toolkit.zoo.world.tokenizer import CompressiveVQModel

T0 = 2


@pytest.fixture(scope="module")
def tokenizer():
    return nano_tokenizer().double()


@pytest.fixture
def frames():
    return nano_clips()[0]


def test_each_future_frame_stands_alone(tokenizer, frames):
    whole = tokenizer.layout.split(tokenizer.tokenize(frames))[1]
    for j in range(4):
        one = torch.cat([frames[:, :T0], frames[:, T0 + j : T0 + j + 1]], dim=1)
        assert torch.equal(tokenizer.layout.split(tokenizer.tokenize(one))[1][:, 0], whole[:, j])


def test_context_needs_no_future_frame(tokenizer, frames):
    context = tokenizer.encode_context(frames[:, :T0])
    codes, _ = tokenizer.layout.split(tokenizer.tokenize(frames))
    assert torch.equal(context.codes, codes)
    assert torch.equal(tokenizer.tokenize(frames[:, :T0]), tokenizer.layout.prompt(codes)[:, :-1])


def test_future_tokens_depend_on_the_context(tokenizer, frames):
    other = frames.clone()
    other[:, 0] = other[:, 0].flip(-1)
    mine, theirs = (tokenizer.layout.split(tokenizer.tokenize(one))[1] for one in (frames, other))
    assert (mine != theirs).any()


def test_decoding_needs_tokens_alone_and_is_frame_by_frame(tokenizer, frames):
    tokens = tokenizer.tokenize(frames)
    context_codes, dynamics_codes = tokenizer.layout.split(tokens)
    whole, context = tokenizer.detokenize(tokens), tokenizer.decode_context(context_codes)
    torch.testing.assert_close(context.frames, whole[:, :T0])
    for j in range(4):
        one = tokenizer.decode_frames(dynamics_codes[:, j : j + 1], context)
        torch.testing.assert_close(one[:, 0], whole[:, T0 + j])


def test_training_mode_changes_no_token(tokenizer, frames):
    expected = tokenizer.tokenize(frames)
    tokenizer.train()
    assert torch.equal(tokenizer.tokenize(frames), expected) and torch.equal(tokenizer.tokenize(frames), expected)
    assert tokenizer.training
    with torch.no_grad():  # the training forward does have dropout
        first, second = (tokenizer(frames[:, :T0], frames[:, T0:]).sample for _ in range(2))
    tokenizer.eval()
    assert not torch.equal(first, second)


def test_training_mode_is_restored_after_an_error(tokenizer):
    tokenizer.train()
    with pytest.raises(IndexError):
        tokenizer.decode_context(torch.full((1, T0, tokenizer.layout.tokens_per_context), 10**6))
    was_training = tokenizer.training
    tokenizer.eval()
    assert was_training


def test_the_training_forward_decodes_its_own_codes(tokenizer, frames):
    with torch.no_grad():
        found = tokenizer(frames[:, :T0], frames[:, T0:])
    tokens = tokenizer.layout.join(found.context_codes, found.dynamics_codes)
    assert torch.equal(tokens, tokenizer.tokenize(frames))
    torch.testing.assert_close(torch.cat([found.ref_sample, found.sample], 1), tokenizer.detokenize(tokens))


def test_gradients_pass_the_codebooks_straight_through(tokenizer, frames):
    found = tokenizer(frames[:, :T0], frames[:, T0:])
    (found.sample.sum() + found.ref_sample.sum()).backward()
    assert tokenizer.encoder.conv_in.weight.grad.abs().sum() > 0
    assert tokenizer.cond_encoder.conv_in.weight.grad.abs().sum() > 0
    assert tokenizer.quantize.embedding.weight.grad is None or not tokenizer.quantize.embedding.weight.grad.any()
    tokenizer.zero_grad()
    losses = tokenizer(frames[:, :T0], frames[:, T0:])
    (losses.commit_loss + losses.dyn_commit_loss).backward()
    assert tokenizer.quantize.embedding.weight.grad.any() and tokenizer.dynamics_quantize.embedding.weight.grad.any()
    tokenizer.zero_grad()


def test_without_quantising_the_latents_go_on_as_they_are(tokenizer, frames):
    with torch.no_grad():
        soft = tokenizer(frames[:, :T0], frames[:, T0:], quantize=False)
        hard = tokenizer(frames[:, :T0], frames[:, T0:])
    assert torch.equal(soft.context_latents, hard.context_latents) and torch.equal(
        soft.context_codes, hard.context_codes
    )
    assert not torch.allclose(soft.sample, hard.sample)


def test_wrong_frames_are_refused(tokenizer, frames):
    with pytest.raises(ValueError, match=r"frames of shape .*: expected \(clips, frames, 3, 16, 16\)"):
        tokenizer.tokenize(frames[..., :8])
    with pytest.raises(ValueError, match="1 context frames: the tokenizer takes 2"):
        tokenizer.tokenize(frames[:, :1])
    with pytest.raises(ValueError, match="uint8: expected floating point"):
        tokenizer.tokenize((frames * 255).byte())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 18}, "resolution=18: must be a multiple of 4"),
        ({"patch_size": 3}, "patch_size=3: must divide the latent map's size, 4"),
        ({"norm_type": "spatial"}, "norm_type=spatial"),
        ({"context_length": 0}, "context_length=0"),
        ({"norm_num_groups": 32}, "norm_num_groups=32: must divide the width 16"),
        ({"up_block_types": ("UpDecoderBlock2D",)}, "one per level expected, 3"),
    ],
)
def test_configs_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        nano_tokenizer(**change)


def test_fewer_context_frames_keep_the_last_rows_of_the_tables(tokenizer):
    two, one = nano_tokenizer(2), nano_tokenizer(2)
    one.set_context_length(1)
    assert one.layout.context_length == 1 == one.config.context_length
    for cut, full in zip(one.cond_encoder.cross_att_blocks, two.cond_encoder.cross_att_blocks, strict=True):
        assert torch.equal(cut.kv_pos_emb, full.kv_pos_emb[len(full.kv_pos_emb) // 2 :])
    clips = nano_clips(dtype=torch.float32)[0]
    assert one.detokenize(one.tokenize(clips)).shape == clips.shape
    with pytest.raises(ValueError, match=r"context_length=2: can be cut to 1 \.\. 1 only"):
        one.set_context_length(2)


def test_the_fingerprint_follows_the_weights():
    same, other = nano_tokenizer(seed=0), nano_tokenizer(seed=5)
    assert nano_tokenizer(seed=0).fingerprint() == same.fingerprint() != other.fingerprint()
    before = same.fingerprint()
    with torch.no_grad():
        same.encoder.conv_in.bias[0] += 1e-3
    assert same.fingerprint() != before


def test_the_conditional_pair_can_start_from_the_plain_one(tokenizer):
    network = nano_tokenizer()
    network.start_conditional_from_plain()
    assert torch.equal(network.cond_encoder.conv_in.weight, network.encoder.conv_in.weight)
    assert torch.equal(
        network.cond_decoder.up_blocks[1].resnets[0].conv1.weight, network.decoder.up_blocks[1].resnets[0].conv1.weight
    )


def test_a_diagonal_start_looks_at_the_same_place():
    network = nano_tokenizer(context_length=1)
    network.start_diagonal(generator=torch.Generator().manual_seed(0))
    block = network.cond_decoder.cross_att_blocks[0]
    memory = block.remember(torch.zeros(1, 1, 32, 4, 4))
    rows = block.q_norm(torch.zeros(1, 32, 4, 4)).flatten(2).transpose(1, 2) + block.q_pos_emb
    queries = block._split(F.linear(rows, block.att.in_proj_weight[:32], block.att.in_proj_bias[:32]))
    scores = (queries @ memory.keys.transpose(-1, -2)).mean(1)[0]
    assert torch.equal(scores.argmax(-1), torch.arange(16))


def test_nearest_codes_are_the_nearest():
    torch.manual_seed(0)
    quantizer, latents = VectorQuantizer(50, 6), torch.randn(7, 9, 6)
    torch.nn.init.normal_(quantizer.embedding.weight)
    distances = (latents[..., None, :] - quantizer.embedding.weight).square().sum(-1)
    found = quantizer(latents)
    assert torch.equal(found.codes, distances.argmin(-1))
    expected = 2 * distances.min(-1).values.mean() / 6  # commitment 1: both terms have one value
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.vectors, quantizer.embedding(found.codes))


def test_moving_averages_find_the_means_and_restart_the_dead():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0]])
    quantizer = VectorQuantizer(4, 2)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [99.0, 99.0]]))
    ema = CodebookEMA(quantizer, decay=0.8, restart_below=0.5)
    for _ in range(40):
        latents = centres.repeat(8, 1) + 0.01 * torch.randn(24, 2, generator=generator)
        ema.update(latents, quantizer.nearest(latents), generator)
    assert ema.num_restarted > 0  # the one at (99, 99)
    distances = torch.cdist(centres, quantizer.embedding.weight).min(1).values
    assert distances.max() < 0.05
    assert not quantizer.embedding.weight.requires_grad


def test_a_codebook_started_from_data_uses_all_its_codes():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    latents, quantizer = torch.randn(200, 4, generator=generator), VectorQuantizer(64, 4)
    assert usage(quantizer.nearest(latents), 64) < 0.7  # +-1/64 of the release's start
    quantizer.initialise(latents, generator)
    codes = quantizer.nearest(latents)
    assert usage(codes, 64) == 1.0 and 40 < perplexity(codes, 64) <= 64
    quantizer.initialise(latents[:10], generator)  # fewer latents than codes: jittered copies, all distinct
    assert len(quantizer.embedding.weight.unique(dim=0)) == 64
    assert perplexity(torch.zeros(5, dtype=torch.int64), 64) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("config", "num_parameters", "num_tensors"),
    [
        ({"context_length": 2}, 114_159_174, 420),
        ({"context_length": 1}, 113_831_494, 420),
        (
            {
                "block_out_channels": (128, 256, 256, 512, 768),
                "down_block_types": ("DownEncoderBlock2D",) * 5,
                "up_block_types": ("UpDecoderBlock2D",) * 5,
                "resolution": 256,
                "max_att_resolution": 32,
            },
            310_472_774,
            624,
        ),
    ],
    ids=["64", "64, one context frame", "256"],
)
def test_released_sizes(config, num_parameters, num_tensors):
    with torch.device("meta"):
        network = CompressiveVQModel(**config)
    assert sum(one.numel() for one in network.parameters()) == num_parameters
    assert len(network.state_dict()) == num_tensors
    assert network.layout.tokens_per_context == 256 and network.layout.tokens_per_frame == 16


def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    network = nano_tokenizer()
    network.save_pretrained(tmp_path)
    loaded, clips = CompressiveVQModel.from_pretrained(tmp_path).eval(), nano_clips(dtype=torch.float32)[0]
    assert torch.equal(loaded.tokenize(clips), network.tokenize(clips))
    assert loaded.fingerprint() == network.fingerprint() and loaded.config.resolution == SIZE
    loaded.save_pretrained(tmp_path / "again")
    assert str(tmp_path) not in (tmp_path / "again/config.json").read_text()
