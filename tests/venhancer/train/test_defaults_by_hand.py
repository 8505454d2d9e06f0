"""Defaults that the paper or its release states, as the configs have them."""

import numpy as np
import pytest

from tests.venhancer.networks import tiny_pipeline
from toolkit.disco.config import Latents, Loss, PriorConfig, Sampling
from toolkit.venhancer import config, footprint
from toolkit.venhancer.config import EnhanceVideo, Windows
from toolkit.venhancer.keys.networks import NetworkUpscaler
from toolkit.venhancer.train.config import WEIGHTINGS, Augment, VideoUNetConfig


def test_venhancers_sampler_windows_and_augmentation_are_the_releases():
    """Section 3.3: factors 1 to 8 in proportion to their size, noise up to step 300, a tenth of the texts dropped."""
    augment, sampling = Augment(), config.Sampling()
    assert (augment.max_frame_factor, augment.max_scale, augment.max_noise_level, augment.text_drop) == (8, 8, 300, 0.1)
    assert augment.frame_factor_weighting == augment.scale_weighting == "proportional"
    assert WEIGHTINGS == {"proportional": 1, "uniform": 0, "inverse": -1}
    assert (sampling.solver, sampling.guidance_scale, sampling.guidance_rescale) == ("dpmpp_2m_sde", 7.5, 0.2)
    assert sampling.strength is None  # 0.9 of latents, 1 of residuals
    assert (Windows().num_frames, Windows().overlap) == (32, 0.5)
    network = VideoUNetConfig()
    assert network.block_out_channels == [320, 640, 1280, 1280] and network.cross_attention_dim == 1024
    assert (network.attention_levels, network.layers_per_block, network.attention_head_dim) == (3, 2, 64)
    assert (EnhanceVideo().noise, config.MOST_NOISE_LEVEL) == (150, 300)


def test_discos_latents_and_loss_are_the_papers():
    """Appendix D: ten latents of a hundred codes, a tenth dropped; EDM's noise of mean -1.2 and deviation 1.2."""
    latents = Latents()
    assert (latents.num_latents, latents.codebook_size, latents.drop) == (10, 100, 0.1)
    assert (latents.temperature, latents.extraction_temperature, latents.hard) == (1.0, 0.01, True)
    assert (Loss().p_mean, Loss().p_std) == (-1.2, 1.2)
    assert (PriorConfig().depth, PriorConfig().width, PriorConfig().num_heads) == (12, 512, 8)
    assert (Sampling().sigma_min, Sampling().sigma_max, Sampling().rho) == (0.002, 80, 7)


def test_white_is_one_to_the_network_that_enlarges():
    seen = []

    class Network:
        factor = 1

        def float(self):
            return self

        def __call__(self, x):
            seen.append(x)
            return x / 2

    pixels = np.full((2, 3, 3), 255, np.uint8)
    pixels[0, 0] = 0
    made = NetworkUpscaler(Network(), "cpu").enlarge(pixels)
    assert seen[0].max() == 1 and seen[0].min() == 0 and made[1, 2].tolist() == [128] * 3  # 127.5, to even


def test_what_a_stage_costs_is_of_the_networks_that_it_trains(monkeypatch):
    """The base without its control; the control on a frozen base, or both where they are trained together."""
    asked = []
    monkeypatch.setattr(footprint, "Denoising", lambda pipeline, **keys: asked.append(keys["controlled"]))
    monkeypatch.setattr(footprint, "build_pipeline", lambda *_, **__: tiny_pipeline())
    monkeypatch.setattr(footprint, "_vae", lambda config: None)
    given = EnhanceVideo()
    found = {}
    for name, joint in (("base", False), ("train", False), ("train", True)):
        given.optim.joint = joint
        made = footprint._networks(given, name)
        assert all(one.requires_grad for one in made.trained.parameters())
        found[name, joint] = type(made.trained).__name__, [type(one).__name__ for one in made.frozen]
        assert not any(one.requires_grad for part in made.frozen[1:] for one in part.parameters())
    codec = "PixelUnshuffleCodec"
    assert found == {
        ("base", False): ("VideoUNet", [codec]),
        ("train", False): ("VideoControlNetModel", [codec, "VideoUNet"]),
        ("train", True): ("ControlledVideoUNet", [codec]),
    }
    assert asked == [False, True, True]


@pytest.mark.parametrize(
    "changes, names",
    [({}, ["base", "train"]), ({"init": "given"}, ["train"]), ({"joint": True}, ["train"])],
)
def test_a_base_that_is_given_is_not_planned(changes, names):
    """Nor one that is trained together with its control network."""
    made = config.EnhanceVideo(stage="train", init=changes.pop("init", None))
    made.network.asymmetric, made.optim.joint, made.optim.base_num_steps = False, changes.pop("joint", False), 7
    assert [(stage.name, stage.num_steps) for stage in footprint.stages(made)] == [
        (name, {"base": 7, "train": 2000}[name]) for name in names
    ]
