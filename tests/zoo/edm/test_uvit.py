"""The U-ViT: a narrow copy runs, trains and takes latents without effect at first; the paper's size on meta."""

from __future__ import annotations

import pytest
import torch

from tests.zoo.edm.test_unet import LATENTS, build, codes, inputs, shake
from toolkit import zoo
from toolkit.errors import UserError
from toolkit.zoo.edm.blocks import CrossAttention
from toolkit.zoo.edm.denoiser import Denoiser
from toolkit.zoo.edm.uvit import UViT

NARROW = {
    "image_size": 16,
    "num_classes": 3,
    "model_channels": 8,
    "channel_mult": (1, 2, 4),
    "num_blocks": 1,
    "depth": 4,
    "channels_per_head": 16,
}


def test_paper_size():
    network = zoo.build_on_meta("disco_imagenet128")
    with torch.device("meta"):
        base = UViT(num_classes=1000)
    assert zoo.count_parameters(base) == 2_039_574_019  # "2 billion" in simple diffusion's table
    assert network.vit.positions.shape == (16 * 16, 128 * 16) and len(network.vit.blocks) == 36
    attended = [name for name, module in network.named_modules() if isinstance(module, CrossAttention)]
    every_third = [f"vit.blocks.{index}.cross_attention" for index in range(2, 36, 3)]
    assert [name for name in attended if name.startswith("vit.")] == every_third
    assert sorted(name for name in attended if not name.startswith("vit.")) == [
        "decoder.0.up.cross_attention",
        "decoder.1.up.cross_attention",
        "down.cross_attention",
        "encoder.1.entry.cross_attention",
        "encoder.2.entry.cross_attention",
    ]


@pytest.mark.parametrize("more", [{}, {"latent_film": True, "null_kv": True, "latent_layers": 1}])
@torch.no_grad()
def test_latents_have_no_effect_before_training(more):
    for base in (build(UViT, NARROW), shake(build(UViT, NARROW))):
        with_latents = Denoiser.from_base(base, **LATENTS, **more)
        x, sigma, labels = inputs(base)
        assert torch.equal(base(x, sigma, labels), with_latents(x, sigma, labels, codes(with_latents)))
    assert not any("latent" in name or "cross" in name for name in base.state_dict())


def test_every_parameter_is_trained():
    denoiser = shake(build(UViT, NARROW, **LATENTS, latent_film=True))
    x, sigma, labels = inputs(denoiser)
    z, drop = codes(denoiser), torch.tensor([True, False, False])
    denoised = denoiser(x, sigma, labels, z, drop)
    assert denoised.shape == x.shape and not torch.equal(denoised, denoiser(x, sigma, labels))
    denoised.square().mean().backward()
    assert [name for name, parameter in denoiser.named_parameters() if parameter.grad is None] == []


def test_a_training_step_lowers_the_loss():
    denoiser = build(UViT, NARROW, dropout=0.0).train()
    x, sigma, labels = inputs(denoiser)
    clean = torch.zeros_like(x)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = (denoiser(clean + x, sigma, labels) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_save_and_load(tmp_path):
    denoiser = shake(build(UViT, NARROW, **LATENTS))
    denoiser.save_pretrained(tmp_path)
    x, sigma, labels = inputs(denoiser)
    with torch.no_grad():
        z = codes(denoiser)
        assert torch.equal(denoiser(x, sigma, labels, z), zoo.load(tmp_path)(x, sigma, labels, z))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"channel_mult": (1,)}, "at least two levels"),
        ({"image_size": 18}, "image_size=18: must be divisible by 4"),
        ({**LATENTS, "latent_groups": 2}, "latent_groups=2: must be 1"),
    ],
)
def test_wrong_configs(config, message):
    with pytest.raises(ValueError, match=message):
        UViT(**{**NARROW, **config})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_mult": (1, 2, 5)}, "num_heads=3: must divide width=40"),
        ({"channel_mult": (1, 7, 4), "num_latents": 2, "codebook_size": 3}, "num_heads=3: must divide the 56 channels"),
    ],
)
def test_a_width_that_heads_do_not_divide_is_named(changes, message):
    """Of cross-attention too, which failed in the first step."""
    with pytest.raises(UserError, match=message):
        UViT(**{**NARROW, "channels_per_head": {5: 13, 4: 17}[changes["channel_mult"][2]]} | changes)
