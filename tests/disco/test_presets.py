"""Every preset composes, says what it is, and means what it says; the paper's sizes are the paper's."""

import re

import pytest

from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.data.catalogue import CATALOGUE
from toolkit.paths import conf_dir, presets
from toolkit.zoo.config import ADMConfig, MLPConfig, UViTConfig

COMMAND = COMMANDS["train-disco"]
NAMES = [name for name, (owner, _) in presets().items() if owner == "train-disco"]


def preset(name: str, *overrides: str):
    return compose(COMMAND, [f"experiment={name}", *overrides])


@pytest.mark.parametrize("name", NAMES)
def test_preset_composes_and_names_known_data(name):
    config = preset(name)
    assert config.command == "train-disco"
    assert config.data.name in CATALOGUE
    # an unguided ODE spends an odd number of evaluations
    assert all(budget % 2 for budget in config.measure.evaluations)
    assert config.measure.sigmas == sorted(config.measure.sigmas)


@pytest.mark.parametrize("name", NAMES)
def test_preset_header_tells_what_it_is(name):
    first, second, *_ = (conf_dir() / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert first == "# @package _global_"
    assert re.match(r"# \S.{30,}", second)
    assert presets()[name][1] == second.lstrip("# ")


def test_the_default_is_the_digits_preset():
    default, named = compose(COMMAND, []), preset("disco_digits")
    for part in ("network", "latents", "optim", "prior", "sampling", "measure", "loss", "data", "baseline"):
        assert getattr(default, part) == getattr(named, part), part


def test_toy_presets_differ_in_what_their_names_say():
    toy, straight, grid = preset("disco_toy"), preset("disco_toy_st"), preset("disco_toy_grid25")
    assert (toy.latents.hard, toy.latents.temperature, toy.latents.codebook_size) == (False, 1.0, 8)
    assert straight.latents.hard
    straight.latents.hard = False
    assert straight == toy
    assert (grid.data.name, grid.latents.num_latents, grid.optim) == ("grid25", 2, toy.optim)


def test_imagenet64_has_the_papers_sizes():
    config = preset("disco_imagenet64")
    network, latents, prior = config.network, config.latents, config.prior
    assert isinstance(network, ADMConfig)
    assert (network.width, network.width_multipliers, network.num_blocks) == (192, [1, 2, 3, 4], 3)
    assert network.attention_resolutions == [32, 16, 8]
    assert (latents.num_latents, latents.codebook_size, latents.num_layers, latents.width) == (10, 100, 6, 192)
    assert (latents.hard, latents.temperature, latents.extraction_temperature, latents.drop) == (True, 1.0, 0.01, 0.1)
    encoder = latents.encoder
    assert (encoder.depth, encoder.width, encoder.num_heads, encoder.patch_size) == (12, 768, 12, 8)
    assert (prior.depth, prior.width, prior.num_heads) == (12, 512, 8)
    assert config.data.class_labels
    assert (config.optim.batch_size, config.optim.micro_batch_size) == (4096, 64)
    assert 2 * (2 * config.sampling.num_steps - 1) == 78


def test_imagenet128_has_the_papers_sizes():
    config = preset("disco_imagenet128")
    network = config.network
    assert isinstance(network, UViTConfig)
    assert (network.width, network.width_multipliers, network.depth) == (128, [1, 2, 4, 16], 36)
    assert config.latents.encoder.patch_size == 16
    assert (config.loss.weighting, round(config.loss.log_snr_shift, 3)) == ("edm_monotonic", -1.386)
    assert 2 * (2 * config.sampling.num_steps - 1) == 114


def test_mnist8_baseline_has_as_many_parameters():
    config = preset("disco_mnist8")
    assert isinstance(config.network, MLPConfig)
    assert (config.baseline, config.latents.num_latents, config.latents.codebook_size) == ("matched", 4, 16)
