"""Networks from config: sizes, the fine-tune that starts as its base, the matched baseline, the paper's presets."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from tests.disco import tiny
from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.disco.build import build_denoiser, build_encoder, build_matched, build_prior
from toolkit.disco.stage1 import JointModel
from toolkit.errors import UserError
from toolkit.zoo.config import ADMConfig, MLPConfig, SongConfig, ToyScoreConfig
from toolkit.zoo.counting import count_parameters
from toolkit.zoo.edm.build import build_network


def test_matched_baseline_is_the_narrowest_with_enough_parameters():
    config, data = tiny.config(tiny.mlp()), tiny.images()
    wanted = count_parameters(build_denoiser(config, data), build_prior(config, data))
    matched = build_matched(config, data, wanted)
    narrower = dataclasses.replace(config, network=MLPConfig(width=matched.config["width"] - 4, depth=2))
    assert count_parameters(matched) >= wanted > count_parameters(build_denoiser(narrower, data, with_latents=False))
    assert matched.num_latents == 0


def test_matched_baseline_passes_over_impossible_widths():
    network = ADMConfig(width=128, width_multipliers=[1], num_blocks=1, attention_resolutions=[], channels_per_head=64)
    config, data = tiny.config(network), tiny.images()
    wanted = count_parameters(build_denoiser(config, data, with_latents=False)) + 1
    assert build_matched(config, data, wanted).config["model_channels"] == 160  # 136 to 152 are not of 32 groups
    impossible = dataclasses.replace(config, network=dataclasses.replace(network, width=136))
    with pytest.raises(UserError, match="136 channels"):
        build_matched(impossible, data, wanted)


def test_a_base_that_has_latents_or_is_no_denoiser_is_refused(tmp_path):
    config = tiny.config()
    build_denoiser(config, tiny.images()).save_pretrained(tmp_path / "latents")
    build_prior(config, tiny.images()).save_pretrained(tmp_path / "prior")
    for name, message in (
        ("latents", "has 2 latents already; give one without"),
        ("prior", "holds a .*Prior; exp"),
    ):
        other = dataclasses.replace(config, init=str(tmp_path / name))
        with pytest.raises(UserError, match=rf"^init={tmp_path / name}: {message}"):
            build_denoiser(other, tiny.images())


@pytest.mark.parametrize("network", [None, tiny.mlp()], ids=["unet", "mlp"])
def test_fine_tuning_starts_exactly_as_its_base(tmp_path, network):
    config, data = tiny.config(network), tiny.images()
    base = build_denoiser(config, data, with_latents=False).eval()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    base.save_pretrained(tmp_path / "base")
    config = dataclasses.replace(config, init=str(tmp_path / "base"))
    tuned = build_denoiser(config, data).eval()
    x, sigma, codes = torch.randn(3, 1, 8, 8), torch.rand(3) + 0.1, torch.randint(3, (3, 2))
    assert tuned.num_latents == 2
    assert torch.equal(tuned(x, sigma, latents=codes), base(x, sigma))


def test_a_base_for_other_data_is_refused(tmp_path):
    config = tiny.config()
    build_denoiser(config, tiny.images(), with_latents=False).save_pretrained(tmp_path / "base")
    config = dataclasses.replace(config, init=str(tmp_path / "base"))
    with pytest.raises(UserError, match=r"init=.*the data has \(1, 16, 16\)"):
        build_denoiser(config, tiny.images(size=16))


@pytest.mark.parametrize(
    "network",
    [
        SongConfig(width=8, width_multipliers=[1, 2], num_blocks=1, attention_resolutions=[4], dropout=0.0),
        SongConfig(
            width=8, width_multipliers=[1], num_blocks=1, attention_resolutions=[8], dropout=0.0, variant="ncsnpp"
        ),
        tiny.mlp(),
    ],
    ids=["ddpmpp", "ncsnpp", "mlp"],
)
def test_other_families_take_latents(network):
    config, data = tiny.config(network), tiny.images()
    denoiser = build_denoiser(config, data)
    y, _ = data.train.batch([0, 1])
    assert denoiser(y, 1.0, latents=torch.zeros(2, 2, dtype=torch.int64)).shape == y.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": ToyScoreConfig()}, None),
        ({"latents.encoder.patch_size": 3}, r"latents\.encoder\.patch_size=3: must divide the image size 8"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    config = tiny.config(changes.pop("network", None))
    if changes:
        config.latents.encoder.patch_size = 3
    if message:
        with pytest.raises(UserError, match=message):
            build_encoder(config, tiny.images())


def test_the_encoders_last_layer_is_scaled_and_random_codes_are_not_learnt():
    made = {}
    for scale in (1.0, 0.25):
        config = tiny.config()
        config.latents.encoder.init_scale = scale
        torch.manual_seed(0)
        made[scale] = build_encoder(config, tiny.images())
    whole, part = (one.state_dict() for one in made.values())
    for name, value in whole.items():
        torch.testing.assert_close(part[name], value * (0.25 if name.startswith("head.") else 1), msg=name)
    assert all(one.requires_grad for one in made[1.0].parameters())
    assert not any(one.requires_grad for one in build_encoder(tiny.config(kind="random"), tiny.images()).parameters())


def test_sigma_data_is_what_the_config_says_or_the_datas_own():
    config, data = tiny.config(tiny.mlp()), tiny.images()
    assert build_denoiser(config, data).sigma_data == data.sigma_data
    config.loss.sigma_data = data.sigma_data + 0.3
    assert build_denoiser(config, data).sigma_data == data.sigma_data + 0.3


@pytest.mark.parametrize(("key", "value"), [("num_groups", 2), ("film", "true"), ("null_kv", "true")])
def test_latents_keys_that_a_network_does_not_have_are_refused(key, value):
    words = ["network=mlp", "latents.num_latents=2"]
    compose(COMMANDS["train-disco"], words)
    with pytest.raises(UserError, match=rf"latents\.{key}=.*: is of networks with attention, not of network=mlp"):
        compose(COMMANDS["train-disco"], [*words, f"latents.{key}={value}"])


def paper_size(name, image_size):
    config = compose(COMMANDS["train-disco"], [f"experiment={name}", "data.path=unused"])
    data = tiny.images(num=4, channels=3, size=image_size, num_classes=1000)
    with torch.device("meta"):
        return config, data, build_denoiser(config, data), build_encoder(config, data), build_prior(config, data)


def test_imagenet64_preset_is_the_papers_network_and_steps_on_meta():
    config, _, denoiser, encoder, prior = paper_size("disco_imagenet64", 64)
    shared = count_parameters(denoiser) - count_parameters(
        *(m for n, m in denoiser.named_children() if "latent" in n or "cross" in n)
    )
    assert shared >= 295_899_267  # ADM, and what the latents add
    assert (denoiser.num_latents, denoiser.codebook_size) == (10, 100)
    assert (encoder.config["depth"], encoder.config["width"], prior.config["depth"]) == (12, 768, 12)
    joint = JointModel(denoiser, encoder, config).to("meta")
    y, labels = torch.empty(2, 3, 64, 64, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    loss, _ = joint(y, F.one_hot(labels, 1000).float().to("meta"))
    loss.backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_imagenet128_preset_builds_and_a_narrow_copy_steps():
    config, _, denoiser, encoder, _ = paper_size("disco_imagenet128", 128)
    assert denoiser.shape == (3, 128, 128) and encoder.config["patch_size"] == 16
    config.network = dataclasses.replace(config.network, width=8, width_multipliers=[1, 1, 2, 4], depth=3, num_blocks=1)
    config.latents.width, config.latents.num_layers, config.latents.num_heads = 16, 1, 2
    config.latents.encoder = dataclasses.replace(config.latents.encoder, width=16, depth=1, num_heads=2)
    data = tiny.images(num=2, channels=3, size=128, num_classes=4)
    narrow = JointModel(build_denoiser(config, data), build_encoder(config, data), config)
    y, labels = data.train.all()
    loss, _ = narrow(y, labels)
    loss.backward()
    assert torch.isfinite(loss)


def test_the_two_variants_of_song_unets_are_the_releases():
    """Karras et al. 2022, table 6: DDPM++ with positional embedding and a box, NCSN++ with the rest."""
    keys = ("embedding_type", "channel_mult_noise", "encoder_type", "decoder_type", "resample_filter")
    sizes = {"width": 8, "width_multipliers": [1, 2], "num_blocks": 1, "attention_resolutions": [8]}
    made = {one: build_network(SongConfig(variant=one, **sizes), (3, 16, 16), 0.5, 4) for one in ("ddpmpp", "ncsnpp")}
    found = {name: [one.config[key] for key in keys] for name, one in made.items()}
    assert [list(one[-1]) for one in found.values()] == [[1, 1], [1, 3, 3, 1]]
    assert found["ddpmpp"][:-1] == ["positional", 1, "standard", "standard"]
    assert found["ncsnpp"][:-1] == ["fourier", 2, "residual", "standard"]
    for one in made.values():
        assert (one.shape, one.num_classes, one.sigma_data) == ((3, 16, 16), 4, 0.5)
        assert [one.config[key] for key in ("model_channels", "num_blocks", "dropout")] == [8, 1, 0.13]
