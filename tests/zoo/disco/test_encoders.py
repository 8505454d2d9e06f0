"""Encoders: shapes, float32 logits, slots of their own, paper size, saved copies."""

import pytest
import torch

from tests.zoo.edm.test_networks_by_hand import affine, gelu, layer_norm, self_attention, shaken, silu
from toolkit.zoo.disco.encoders import MLPEncoder, ViTEncoder


def vit():
    return ViTEncoder(
        image_size=8, in_channels=1, patch_size=4, num_latents=3, codebook_size=5, width=16, depth=2, num_heads=2
    )


@pytest.fixture(params=["points", "images", "vit"])
def encoder(request):
    torch.manual_seed(0)
    if request.param == "vit":
        return vit()
    shape = (2,) if request.param == "points" else (1, 8, 8)
    return MLPEncoder(sample_shape=shape, num_latents=3, codebook_size=5, width=32)


def test_logits_are_float32_under_autocast_too(encoder):
    y = torch.randn(4, *encoder.shape)
    assert encoder(y).shape == (4, 3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = encoder(y)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, encoder(y), atol=0.1, rtol=0.1)


def test_logits_start_with_unit_variance_and_depend_on_the_sample(encoder):
    logits = encoder(torch.randn(500, *encoder.shape))
    assert 0.5 < logits.std().item() < 2
    assert logits.std(dim=0).mean().item() > 0.1


def test_every_parameter_is_trained(encoder):
    encoder(torch.randn(4, *encoder.shape)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_saved_encoders_come_back_the_same(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    y = torch.randn(2, *encoder.shape)
    assert torch.equal(type(encoder).from_pretrained(tmp_path)(y), encoder.eval()(y))


def test_the_scale_of_the_data_can_be_taken_out():
    torch.manual_seed(0)
    plain = MLPEncoder(sample_shape=(2,))
    torch.manual_seed(0)
    scaled = MLPEncoder(sample_shape=(2,), sigma_data=4.0)
    y = torch.randn(3, 2)
    torch.testing.assert_close(plain(y), scaled(4 * y))


def test_paper_size_on_the_meta_device():
    """ViT-B has 85.8 million weights without its class token and head; both paper resolutions have 64 patches."""
    with torch.device("meta"):
        small, large = ViTEncoder(), ViTEncoder(image_size=128, patch_size=16)
        assert small(torch.zeros(2, 3, 64, 64)).shape == large(torch.zeros(2, 3, 128, 128)).shape == (2, 10, 100)
    blocks = sum(p.numel() for p in small.body.blocks.parameters())
    assert blocks == 12 * (12 * 768**2 + 13 * 768)
    assert small.position.shape == large.position.shape == (64, 768)


def test_other_shapes_are_refused(encoder):
    with pytest.raises(ValueError, match="samples of shape"):
        encoder(torch.randn(4, *encoder.shape[:-1], 3))
    with pytest.raises(ValueError, match="patch_size"):
        ViTEncoder(image_size=10, patch_size=4)


@torch.no_grad()
def test_the_vit_reads_patches_with_places_and_a_token_per_slot():
    encoder, y = shaken(vit()), torch.randn(2, 1, 8, 8)
    for sample, logits in zip(y, encoder(y), strict=True):
        corners = [(row, column) for row in (0, 4) for column in (0, 4)]
        patches = torch.stack([sample[0, row : row + 4, column : column + 4].flatten() for row, column in corners])
        x = patches @ encoder.patches.weight.flatten(1).T + encoder.patches.bias + encoder.position
        x = torch.cat([x, encoder.class_tokens])
        for block in encoder.body.blocks:
            x = x + self_attention(block.attention, layer_norm(block.norm_attention, x))
            x = x + affine(block.mlp[2], gelu(affine(block.mlp[0], layer_norm(block.norm_mlp, x))))
        x = layer_norm(encoder.body.norm, x)[4:]
        wanted = [x[slot] @ encoder.head.weight[slot] + encoder.head.bias[slot] for slot in range(3)]
        torch.testing.assert_close(logits, torch.stack(wanted), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_mlp_has_a_part_of_its_last_layer_for_each_slot():
    encoder = shaken(MLPEncoder(sample_shape=(1, 2, 2), num_latents=2, codebook_size=3, width=6, sigma_data=0.5))
    y = torch.randn(4, 1, 2, 2)
    h = y.flatten(1) * 2
    assert len(encoder.body[::2]) == 2
    for layer in encoder.body[::2]:
        h = silu(affine(layer, h))
    torch.testing.assert_close(encoder(y), affine(encoder.head, h).view(4, 2, 3), atol=1e-5, rtol=1e-4)
