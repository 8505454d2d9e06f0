"""The UNets beside parity: sizes, latents that start without effect, routing of groups, precision, errors."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from toolkit import zoo
from toolkit.zoo.edm.denoiser import Denoiser
from toolkit.zoo.edm.unet import ADMUNet, SongUNet

LATENTS = {"num_latents": 6, "codebook_size": 4, "latent_width": 8}
ADM = {"image_size": 16, "model_channels": 8, "channel_mult": (1, 2, 2), "num_blocks": 1, "channels_per_head": 8}
SONG = {"image_size": 8, "in_channels": 1, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}
FAMILIES = [(ADMUNet, {**ADM, "attn_resolutions": (16, 8, 4), "num_classes": 3}), (SongUNet, SONG)]


def build(network, config, seed=0, **more) -> Denoiser:
    torch.manual_seed(seed)
    return network(**config, **more).eval()


def shake(denoiser: Denoiser) -> Denoiser:
    """Random weights everywhere, zero-initialised layers included."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return denoiser


def inputs(denoiser: Denoiser, batch_size: int = 3):
    generator = torch.Generator().manual_seed(1)
    sigma = torch.tensor([0.1, 1.0, 10.0])[:batch_size]
    x = torch.randn(batch_size, *denoiser.shape, generator=generator) * sigma[:, None, None, None]
    return x, sigma, torch.arange(batch_size) if denoiser.num_classes else None


def codes(denoiser: Denoiser, batch_size: int = 3, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(denoiser.codebook_size, (batch_size, denoiser.num_latents), generator=generator)


def test_parameters_at_paper_size():
    assert zoo.count_parameters(zoo.build_on_meta("edm_adm_imagenet64")) == 295_899_267
    assert zoo.count_parameters(zoo.build_on_meta("edm_ddpmpp_cifar10")) == 55_732_739


@pytest.mark.parametrize(("network", "config"), FAMILIES)
@pytest.mark.parametrize("more", [{}, {"latent_film": True}, {"null_kv": True}, {"latent_layers": 1}])
@torch.no_grad()
def test_latents_have_no_effect_before_training(network, config, more):
    plain = build(network, config)
    shaken = shake(build(network, config))
    x, sigma, labels = inputs(plain)
    for base in (plain, shaken):
        with_latents = Denoiser.from_base(base, **LATENTS, **more)
        assert torch.equal(base(x, sigma, labels), with_latents(x, sigma, labels, latents=codes(with_latents)))
        assert torch.equal(base(x, sigma, labels), with_latents(x, sigma, labels))
    assert torch.equal(plain(x, sigma, labels), build(network, config, **LATENTS, **more)(x, sigma, labels))


@pytest.mark.parametrize(("network", "config"), FAMILIES)
@torch.no_grad()
def test_the_same_outputs_in_training_mode(network, config):
    base = shake(build(network, config, dropout=0.0)).train()
    with_latents = Denoiser.from_base(base, **LATENTS)
    assert with_latents.training
    x, sigma, labels = inputs(base)
    assert torch.equal(base(x, sigma, labels), with_latents(x, sigma, labels, latents=codes(with_latents)))


@pytest.mark.parametrize(("network", "config"), FAMILIES)
def test_without_latents_there_is_not_one_more_parameter(network, config):
    plain, with_latents = build(network, config), build(network, config, **LATENTS)
    extra = set(with_latents.state_dict()) - set(plain.state_dict())
    assert extra and all("cross_attention" in name or "latent_embedding" in name for name in extra)
    assert set(plain.state_dict()) < set(with_latents.state_dict())


@pytest.mark.parametrize("more", [{}, {"latent_film": True}, {"null_kv": True}, {"latent_groups": 3}])
def test_every_parameter_is_trained(more):
    denoiser = shake(build(ADMUNet, FAMILIES[0][1], **LATENTS, **more))
    x, sigma, labels = inputs(denoiser)
    drop = torch.tensor([True, False, False])
    denoiser(x, sigma, labels, latents=codes(denoiser), drop=drop).square().mean().backward()
    assert [name for name, parameter in denoiser.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in denoiser.parameters())


@pytest.mark.parametrize(("network", "config"), FAMILIES)
@torch.no_grad()
def test_latents_matter_once_trained(network, config):
    denoiser = shake(build(network, config, **LATENTS))
    x, sigma, labels = inputs(denoiser)
    z = codes(denoiser)
    by_code = denoiser(x, sigma, labels, z)
    one_hot = F.one_hot(z, denoiser.codebook_size).float()
    assert torch.allclose(by_code, denoiser(x, sigma, labels, one_hot), atol=1e-5)
    assert not torch.allclose(by_code, denoiser(x, sigma, labels, codes(denoiser, seed=3)), atol=1e-3)
    dropped = denoiser(x, sigma, labels, z, drop=torch.tensor([False, True, False]))
    null = denoiser(x, sigma, labels)
    assert torch.allclose(dropped[1], null[1], atol=1e-5) and torch.allclose(dropped[0], by_code[0], atol=1e-5)


def test_gradient_reaches_relaxed_latents():
    denoiser = shake(build(ADMUNet, FAMILIES[0][1], **LATENTS))
    x, sigma, labels = inputs(denoiser)
    z = torch.rand(3, 6, 4).softmax(dim=-1).requires_grad_()
    denoiser(x, sigma, labels, z, drop=torch.tensor([False, True, False])).square().mean().backward()
    assert z.grad[0].abs().sum() > 0 and z.grad[1].abs().sum() == 0


@torch.no_grad()
def test_groups_go_to_resolutions_lowest_first():
    denoiser = shake(build(ADMUNet, FAMILIES[0][1], **LATENTS, latent_groups=3))
    sizes = {}
    for name, module in denoiser.named_modules():
        if name.endswith("cross_attention"):
            module.register_forward_hook(
                lambda module, args, output: sizes.setdefault(module.slots.start, set()).add(output.shape[-1])
            )
            assert name.startswith(("middle", "decoder"))
    x, sigma, labels = inputs(denoiser)
    z = codes(denoiser)
    denoiser(x, sigma, labels, z)
    assert sizes == {0: {4}, 2: {8}, 4: {16}}
    # The last group enters at the highest resolution only: what is computed below does not see it.
    seen = []
    denoiser.decoder[1].register_forward_hook(lambda module, args, output: seen.append(output[0]))
    other = z.clone()
    other[:, 4:] = (z[:, 4:] + 1) % 4
    outputs = [denoiser(x, sigma, labels, one) for one in (z, other)]
    assert torch.equal(*seen) and not torch.allclose(*outputs, atol=1e-3)


@torch.no_grad()
def test_output_is_float32_under_autocast_and_close():
    for network, config in FAMILIES:
        denoiser = shake(build(network, config, **LATENTS, latent_film=True))
        x, sigma, labels = inputs(denoiser)
        exact = denoiser(x, sigma, labels, codes(denoiser))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = denoiser(x.double(), sigma, labels, codes(denoiser))
        assert rounded.dtype == torch.float32
        assert ((rounded - exact).abs() / (1 + exact.abs())).max() < 0.1


@torch.no_grad()
def test_one_sigma_for_all_samples():
    denoiser = shake(build(*FAMILIES[0], **LATENTS, latent_film=True))
    x, _, labels = inputs(denoiser)
    z = codes(denoiser)
    each = denoiser(x, torch.full((3,), 0.7), labels, z)
    assert torch.allclose(each, denoiser(x, 0.7, labels, z), atol=1e-5)
    assert torch.allclose(each, denoiser(x, torch.tensor(0.7), labels, z), atol=1e-5)


@torch.no_grad()
def test_label_dropout_only_in_training():
    denoiser = shake(build(ADMUNet, FAMILIES[0][1], label_dropout=0.5, dropout=0.0))
    x, sigma, labels = inputs(denoiser)
    with_label, without = denoiser(x, sigma, labels), denoiser(x, sigma)
    denoiser.train()
    torch.manual_seed(0)
    for _ in range(8):
        trained = denoiser(x, sigma, labels)
        for one in range(3):
            near = [torch.allclose(trained[one], which[one], atol=1e-5) for which in (with_label, without)]
            assert sum(near) == 1
    assert torch.equal(denoiser.eval()(x, sigma, labels), with_label)


@torch.no_grad()
def test_preconditioning_at_the_ends():
    """At initialisation the ADM output layer is zero, so D = c_skip x: x for small sigma, 0 for large."""
    denoiser = build(ADMUNet, ADM)
    x = torch.randn(1, 3, 16, 16)
    for sigma in (1e-3, 0.5, 1e3):
        assert torch.allclose(denoiser(x, sigma), x * 0.25 / (sigma**2 + 0.25), atol=1e-6)


def test_save_and_load(tmp_path):
    denoiser = shake(build(*FAMILIES[0], **LATENTS, latent_layers=1, latent_groups=3, null_kv=True))
    denoiser.save_pretrained(tmp_path / "model" / "denoiser")
    loaded = zoo.load(tmp_path)
    x, sigma, labels = inputs(denoiser)
    with torch.no_grad():
        z = codes(denoiser)
        assert torch.equal(denoiser(x, sigma, labels, z), loaded(x, sigma, labels, z))
    assert not loaded.training and loaded.num_latents == 6 and loaded.shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_size": 18}, "image_size=18: must be divisible by 4"),
        ({"num_latents": 6, "codebook_size": 4, "latent_groups": 4}, "latent_groups=4: must divide num_latents=6"),
        ({"num_latents": 6, "codebook_size": 4, "latent_groups": 3}, "latent_groups=3: must be at most 1"),
        ({"num_latents": 6}, "must be at least 1"),
    ],
)
def test_wrong_configs(config, message):
    with pytest.raises(ValueError, match=message):
        ADMUNet(**{**ADM, "attn_resolutions": (), **config})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"embedding_type": "fourrier"}, "choose one of positional, fourier"),
        ({"encoder_type": "x"}, "encoder_type=x"),
        ({"decoder_type": "residual"}, "decoder_type=residual"),
        ({"resample_filter": (1, 2, 1)}, "even number of taps"),
    ],
)
def test_wrong_song_configs(config, message):
    with pytest.raises(ValueError, match=message):
        SongUNet(**SONG, **config)


def test_wrong_inputs():
    plain, with_latents = build(SongUNet, SONG), build(SongUNet, SONG, num_classes=3, **LATENTS)
    x, sigma, _ = inputs(plain)
    with pytest.raises(ValueError, match="num_latents=0"):
        plain(x, sigma, latents=torch.zeros(3, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match="num_classes=0"):
        plain(x, sigma, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="class_labels of shape"):
        with_latents(x, sigma, torch.zeros(3, 4))
    with pytest.raises(ValueError, match="latents of shape"):
        with_latents(x, sigma, latents=torch.zeros(3, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="already"):
        Denoiser.from_base(with_latents, **LATENTS)
    with pytest.raises(ValueError, match="num_latent: not a latent key"):
        Denoiser.from_base(plain, num_latent=6)
