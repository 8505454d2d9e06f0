"""Every preset composes, says what it is, and means what it says; the paper's sizes are the paper's."""

import re

import pytest

from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.data.catalogue import CATALOGUE
from toolkit.disco.config import EncoderConfig, Latents, Loss, Optim, PriorConfig, Sampling, TrainDisco
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


def test_what_is_not_said_is_what_the_paper_and_edm_say():
    """Xu et al. 2024, section 3 and appendix D; Karras et al. 2022, table 1 and the training of ImageNet-64."""
    latents, loss, optim, sampling, prior = Latents(), Loss(), Optim(), Sampling(), PriorConfig()
    assert (latents.kind, latents.num_latents, latents.codebook_size, latents.hard) == ("discrete", 10, 100, True)
    assert (latents.temperature, latents.extraction_temperature, latents.drop) == (1.0, 0.01, 0.1)
    assert (latents.usage_bonus, latents.restart_dead_codes, latents.kl_weight) == (0.0, False, 0.1)
    assert (latents.width, latents.num_layers, latents.num_heads, latents.num_groups) == (192, 6, 8, 1)
    assert latents.encoder == EncoderConfig("vit", 768, 12, 12, 8, 1.0) and not (latents.film or latents.null_kv)
    assert (loss.p_mean, loss.p_std, loss.weighting, loss.log_snr_shift, loss.label_drop) == (
        -1.2,
        1.2,
        "edm",
        0.0,
        0.0,
    )
    assert (optim.betas, optim.weight_decay, optim.schedule, optim.warmup_steps) == ([0.9, 0.999], 0.0, "constant", 0.0)
    assert (optim.ema_half_life_images, optim.ema_ramp_up, optim.ema_sigma_rels) == (50_000_000, 0.05, [])
    assert (sampling.solver, sampling.sigma_min, sampling.sigma_max, sampling.rho) == ("heun", 0.002, 80.0, 7.0)
    assert (sampling.latents, sampling.temperature, sampling.cfg_scale, sampling.cfg_interval) == (
        "prior",
        1.0,
        0.0,
        None,
    )
    assert (sampling.latents_off_below, sampling.null_model, sampling.ema_sigma_rel) == (0.0, None, None)
    assert (prior.kind, prior.width, prior.depth, prior.num_heads, prior.dropout) == ("autoregressive", 512, 12, 8, 0.1)
    assert preset("disco_smoke").baseline == TrainDisco(network=MLPConfig()).baseline == "same_width"


@pytest.mark.parametrize(
    ("words", "stages"),
    [
        (["stage=all"], ["denoiser", "baseline", "prior", "sample", "measure"]),
        (["stage=prior"], ["denoiser", "baseline", "prior"]),
        (["stage=baseline"], ["denoiser", "baseline"]),
        (["stage=sample", "baseline=none"], ["denoiser", "prior", "sample"]),
        (["model=mnist28"], ["sample", "measure"]),
        (["model=mnist28", "stage=sample"], ["sample"]),
    ],
)
def test_a_stage_is_run_with_all_before_it_and_a_given_model_is_not_trained(words, stages):
    named = dict(word.split("=") for word in words)
    assert TrainDisco(network=MLPConfig(), **named).stages() == stages


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
