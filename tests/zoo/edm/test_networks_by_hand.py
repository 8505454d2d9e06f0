"""Networks that have no official outputs to be held against, written out with plain products: attention to latents, the
Transformer, the ViT of U-ViT, and the residual MLP."""

from __future__ import annotations

import math

import pytest
import torch

from tests.zoo.edm.test_unet import FAMILIES, LATENTS, build, codes, inputs, shake
from tests.zoo.edm.test_uvit import NARROW
from toolkit.zoo.config import ADMConfig, SongConfig
from toolkit.zoo.edm.blocks import BlockOptions, CrossAttention, NoiseEmbedding, ResidualBlock, SelfAttention
from toolkit.zoo.edm.build import build_network
from toolkit.zoo.edm.mlp import MLPDenoiser, NoiseFeatures, ToyScoreDenoiser
from toolkit.zoo.edm.transformer import Transformer, TransformerBlock
from toolkit.zoo.edm.unet import SongUNet
from toolkit.zoo.edm.unet_base import InputSkip
from toolkit.zoo.edm.uvit import UViT, ViT, ViTBlock


def shaken(module, std=0.3):
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(std * torch.randn_like(parameter))
    return module.eval()


def affine(layer, x):
    return x @ layer.weight.T + layer.bias


def layer_norm(norm, x):
    centred = x - x.mean(-1, keepdim=True)
    unit = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return unit if norm is None else unit * norm.weight + norm.bias


def attention(q, k, v, num_heads, causal=False):
    """(T, W) and twice (S, W): a head at a time, each with W / heads neighbouring channels."""
    size, made = q.shape[-1] // num_heads, []
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[:, part] @ k[:, part].T / math.sqrt(size)
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
        shares = scores.exp() / scores.exp().sum(-1, keepdim=True)
        made.append(shares @ v[:, part])
    return torch.cat(made, -1)


def self_attention(layer, x, causal=False):
    q, k, v = affine(layer.qkv, x).chunk(3, -1)
    return affine(layer.out, attention(q, k, v, layer.num_heads, causal))


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def silu(x):
    return x / (1 + torch.exp(-x))


def pixels(x):
    """(C, H, W) -> (N, C)."""
    return x.flatten(1).T


def cross_attention(layer, x, tokens):
    """Of one sample: x (C, H, W) normalised in groups of four channels, tokens (m, w)."""
    groups = x.view(-1, 4, *x.shape[1:])
    flat = groups.flatten(1)
    unit = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    normed = unit.view_as(x) * layer.norm.weight[:, None, None] + layer.norm.bias[:, None, None]
    seen = tokens[layer.slots] if layer.null is None else torch.cat([tokens[layer.slots], layer.null])
    k, v = affine(layer.key_value, seen).chunk(2, -1)
    added = affine(layer.out, attention(affine(layer.query, pixels(normed)), k, v, layer.num_heads))
    return x + added.T.view_as(x)


@pytest.mark.parametrize("null_kv", [False, True])
@torch.no_grad()
def test_pixels_attend_to_their_slots_of_the_latents(null_kv):
    layer = shaken(CrossAttention(8, 2, token_width=5, slots=slice(1, 3), null_kv=null_kv))
    x, tokens = torch.randn(2, 8, 3, 2), torch.randn(2, 4, 5)
    wanted = [cross_attention(layer, *one) for one in zip(x, tokens, strict=True)]
    torch.testing.assert_close(layer(x, tokens), torch.stack(wanted), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_a_transformer_adds_attention_and_an_mlp_to_normalised_inputs(causal):
    network, x = shaken(Transformer(8, depth=2, num_heads=2, dropout=0.5)), torch.randn(1, 5, 8)
    h = x[0]
    for block in network.blocks:
        h = h + self_attention(block.attention, layer_norm(block.norm_attention, h), causal)
        h = h + affine(block.mlp[2], gelu(affine(block.mlp[0], layer_norm(block.norm_mlp, h))))
    torch.testing.assert_close(network(x, causal)[0], layer_norm(network.norm, h), atol=1e-5, rtol=1e-4)
    caches, steps = network.new_caches(5), []
    for place in ([0, 1], [2], [3], [4]):
        steps.append(network(x[:, place], True, caches))
    if causal:
        torch.testing.assert_close(torch.cat(steps, 1)[0], layer_norm(network.norm, h), atol=1e-5, rtol=1e-4)


def test_a_transformers_weights_start_by_their_inputs_and_its_depth():
    torch.manual_seed(0)
    network = Transformer(64, depth=8, num_heads=4)
    for block in network.blocks:
        sizes = {block.attention.qkv: 1 / 8, block.mlp[0]: 1 / 8, block.attention.out: 1 / 32, block.mlp[2]: 1 / 64}
        for layer, deviation in sizes.items():  # 1 / sqrt(16) of 1 / sqrt(64) and of 1 / sqrt(256) where it writes
            assert layer.weight.std().item() == pytest.approx(deviation, rel=0.05) and not layer.bias.any()


@torch.no_grad()
def test_dropout_is_of_what_both_halves_of_a_block_write():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8)
    block = TransformerBlock(8, 2, dropout=1.0)
    assert torch.equal(block.train()(x), x) and not torch.allclose(block.eval()(x), x)


def test_what_a_config_says_of_a_network_is_handed_on():
    adm = ADMConfig(
        width=16, width_multipliers=[1, 2], num_blocks=1, attention_resolutions=[4], channels_per_head=8, dropout=0.3
    )
    song = {"width": 8, "width_multipliers": [1, 1], "num_blocks": 1, "attention_resolutions": [4], "dropout": 0.2}
    made = build_network(adm, (3, 8, 8), 0.5).config
    assert (made["dropout"], made["channels_per_head"], made["channel_mult"], made["attn_resolutions"]) == (
        0.3,
        8,
        [1, 2],
        [4],
    )
    plain = build_network(SongConfig(**song), (3, 8, 8), 0.5).config
    keys = ("dropout", "embedding_type", "encoder_type", "channel_mult_noise", "resample_filter")
    assert [plain[key] for key in keys] == [0.2, "positional", "standard", 1, (1, 1)]
    ncsnpp = build_network(SongConfig(**song, variant="ncsnpp"), (3, 8, 8), 0.5).config
    assert [ncsnpp[key] for key in keys] == [0.2, "fourier", "residual", 2, [1, 3, 3, 1]]


def test_song_networks_begin_by_xavier_with_what_writes_at_next_to_nothing():
    torch.manual_seed(0)
    network = SongUNet(8, 1, model_channels=16, channel_mult=(1,), num_blocks=1, attn_resolutions=(8,))
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            assert (
                module.conv_out.weight.abs().max()
                <= 1e-5 * (6 / (16 * 9 * 2)) ** 0.5
                < module.conv_in.weight.abs().max()
            )
        if isinstance(module, SelfAttention):
            bound = 0.2**0.5 * (6 / (16 + 48)) ** 0.5
            assert 0.9 * bound < module.qkv.weight.abs().max() <= bound and module.out.weight.abs().max() < 1e-5


def test_no_label_is_a_row_of_zeros():
    torch.manual_seed(0)
    network, x = MLPDenoiser((2,), width=8, depth=1, num_classes=3).eval(), torch.randn(4, 2)
    torch.testing.assert_close(network(x, 0.7), network(x, 0.7, torch.zeros(4, 3)))
    assert not torch.allclose(network(x, 0.7), network(x, 0.7, torch.ones(4, 3)))


@pytest.mark.parametrize("training", [True, False])
def test_a_base_that_gets_latents_stays_in_its_mode_and_with_its_weights(training):
    base = MLPDenoiser((2,), width=8, depth=1).train(training)
    made = MLPDenoiser.from_base(base, num_latents=2, codebook_size=3)
    assert made.training is training and made.num_latents == 2
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in base.state_dict().items())


def test_a_residual_block_drops_out_before_its_last_convolution():
    torch.manual_seed(0)
    block = ResidualBlock(8, 8, BlockOptions(4, lambda channels: 1, dropout=1.0)).train()
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    torch.testing.assert_close(block(x, embedding), x + block.conv_out.bias[:, None, None])
    assert not torch.allclose(block.eval()(x, embedding), x + block.conv_out.bias[:, None, None], atol=0.01)


def test_a_skip_of_the_input_adds_a_projection_of_the_smaller_image():
    torch.manual_seed(0)
    skip, h, image = InputSkip(3, 8, (1, 1)), torch.randn(2, 8, 2, 2), torch.randn(2, 3, 4, 4)
    small = torch.nn.functional.avg_pool2d(image, 2)
    added, side = skip(h, image)
    torch.testing.assert_close(side, small)
    torch.testing.assert_close(
        added, h + torch.einsum("oi,bihw->bohw", skip.conv.weight[..., 0, 0], small) + skip.conv.bias[:, None, None]
    )


def test_random_frequencies_of_the_noise_have_a_deviation_of_sixteen():
    torch.manual_seed(0)
    made = NoiseEmbedding(8000, "fourier")
    assert made.frequencies.std().item() == pytest.approx(16, rel=0.05)
    angle = 2 * math.pi * 0.3 * made.frequencies
    torch.testing.assert_close(
        made(torch.tensor([0.3])), torch.cat([angle.cos(), angle.sin()])[None], atol=1e-4, rtol=0
    )


def test_the_vit_reads_pixels_with_places_and_scales_its_mlps_by_the_embedding():
    blocks = [ViTBlock(8, 2, embedding_width=6, dropout=0.5) for _ in range(2)]
    blocks[1].cross_attention = CrossAttention(8, 2, token_width=5)
    network = shaken(ViT(4, 6, 8, blocks))
    h, embedding, tokens = torch.randn(2, 4, 3, 2), torch.randn(2, 6), torch.randn(2, 3, 5)
    for index, made in enumerate(network(h, embedding, tokens)):
        x = affine(network.inputs, pixels(h[index])) + network.positions
        for block in network.blocks:
            x = x + self_attention(block.attention, layer_norm(block.norm_attention, x))
            scale, shift = affine(block.film, embedding[index]).chunk(2)
            inner = (1 + scale) * layer_norm(block.norm_mlp, x) + shift
            x = x + affine(block.mlp[3], gelu(affine(block.mlp[0], inner)))
            if block.cross_attention is not None:
                x = pixels(cross_attention(block.cross_attention, x.T[:, None], tokens[index]))
        wanted = affine(network.outputs, layer_norm(network.norm, x)).T.view(4, 3, 2)
        torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_vit_layer_and_the_vit_start_without_effect():
    block, embedding = ViTBlock(8, 2, embedding_width=6, dropout=0.0), torch.randn(2, 6)
    x, h = torch.randn(2, 5, 8), torch.randn(2, 4, 3, 2)
    assert torch.equal(block(x, embedding, None), x)
    assert not ViT(4, 6, 8, [shaken(block)])(h, embedding, None).any()
    network, h, embedding = build(UViT, NARROW), torch.randn(2, 16, 8, 8), torch.randn(2, 64)
    assert torch.equal(network._bottom(h, embedding, None), network.down(h, embedding))


@torch.no_grad()
def test_classes_enter_the_embedding_where_the_family_has_them_and_latents_before_its_last_nonlinearity():
    for network, config in FAMILIES:
        made = shake(build(network, config | {"num_classes": 3}, **LATENTS, latent_film=True))
        _, sigma, _ = inputs(made)
        tokens, label = made._tokens(codes(made), 3, None), torch.eye(3)
        noise, classes, bias = made.noise_embedding(sigma), made.map_class.weight.T, made.map_class.bias
        if network is SongUNet:  # of unit mean square, in front of the two layers
            wanted = affine(made.map_out, silu(affine(made.map_in, noise + label @ classes * math.sqrt(3) + bias)))
        else:
            wanted = affine(made.map_out, silu(affine(made.map_in, noise))) + label @ classes
        wanted = silu(wanted + affine(made.map_latents, tokens.flatten(1)))
        torch.testing.assert_close(made._embed(sigma, label, tokens, None), wanted, atol=1e-5, rtol=1e-4)


def features(c_noise):
    """An eighth of a period to four periods for a change of 1, in sixteen equal ratios."""
    periods = [0.125 * 32 ** (index / 15) for index in range(16)]
    waves = [wave(2 * math.pi * one * c_noise) for wave in (math.cos, math.sin) for one in periods]
    return math.sqrt(2) * torch.tensor(waves)


@torch.no_grad()
def test_the_residual_mlp_with_classes_latents_and_a_gain():
    torch.manual_seed(0)
    sizes = {"width": 6, "depth": 2, "embedding_width": 5, "latent_width": 4, "num_latents": 2, "codebook_size": 3}
    network = MLPDenoiser((3,), layer_norm=True, input_gain=True, sigma_data=0.7, num_classes=4, **sizes)
    shaken(network, 0.2)
    x, sigma = torch.randn(2, 3), torch.tensor([0.3, 5.0])
    labels, z = torch.tensor([1, 3]), torch.tensor([[0, 2], [1, 1]])
    made = network(x, sigma, labels, z)
    torch.testing.assert_close(NoiseFeatures()(torch.tensor([0.4]))[0], features(0.4))
    for index in range(2):
        level = float(sigma[index])
        scaled = x[index] / math.hypot(level, 0.7)
        e = affine(network.embed_noise, features(math.log(level) / 4))
        e = e + 2 * network.embed_class.weight[:, labels[index]]  # a one-hot of four, of unit mean square
        tokens = [network.latent_embedding[0].maps.weight[slot, z[index, slot]] for slot in range(2)]
        e = silu(e + network.embed_latents.weight @ torch.cat(tokens))
        h, film = affine(network.body.inputs, scaled), affine(network.body.film, e).view(2, 2, 6)
        for block in range(2):
            inner = affine(network.body.first[block], h)
            h = h + affine(network.body.second[block], silu(inner * (1 + film[block, 0]) + film[block, 1]))
        f = affine(network.body.outputs, silu(layer_norm(None, h))) + affine(network.gain, e) * scaled
        wanted = 0.49 / (level**2 + 0.49) * x[index] + 0.7 * level / math.hypot(level, 0.7) * f
        torch.testing.assert_close(made[index], wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_toy_network_adds_an_mlp_that_does_not_see_z():
    torch.manual_seed(0)
    network = ToyScoreDenoiser(width=6, depth=3, component_std=0.4, sigma_data=1.5, num_latents=2, codebook_size=3)
    x, t, z = torch.randn(2, 2), torch.tensor([0.3, 5.0]), torch.tensor([[0, 2], [1, 1]])
    made, (first, second, third) = network(x, t, latents=z), network.body[::2]
    for index in range(2):
        level = float(t[index])
        scaled = x[index] / math.hypot(level, 1.5)
        h = affine(first, torch.cat([scaled, features(math.log(level) / 4)]))
        h = affine(third, silu(affine(second, silu(h))))
        centre = sum(network.latent_embedding[0].maps.weight[slot, z[index, slot]] for slot in range(2))
        component = x[index] + level**2 * (centre - x[index]) / (level**2 + 0.4**2)
        wanted = component + level * 1.5 / math.hypot(level, 1.5) * h
        torch.testing.assert_close(made[index], wanted, atol=1e-5, rtol=1e-4)


def test_attention_to_latents_has_as_many_heads_as_attention_to_pixels():
    network = build(*FAMILIES[0], **LATENTS)  # heads of 8 channels
    heads = [one.num_heads * 8 for one in network.modules() if isinstance(one, CrossAttention)]
    assert heads == [one.out.in_features for one in network.modules() if isinstance(one, CrossAttention)]
    assert {8, 16} <= set(heads)


def test_labels_are_dropped_sample_by_sample():
    network = build(FAMILIES[0][0], FAMILIES[0][1], label_dropout=0.3).train()
    torch.manual_seed(0)
    kept = network._drop_labels(torch.ones(2000, 3), 2000)
    assert set(kept.sum(1).tolist()) == {0, 3} and kept.mean().item() == pytest.approx(0.7, abs=0.04)
