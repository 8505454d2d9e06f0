"""Which step the network is told, and which frames are key frames, with plain numbers."""

from __future__ import annotations

import math
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder

from tests.venhancer.networks import tiny_pipeline
from toolkit.venhancer.model.codec import as_codec
from toolkit.venhancer.model.conditioning import key_frame_index
from toolkit.venhancer.model.parts import EnhanceParts
from toolkit.venhancer.model.samplers import plan_evaluations
from toolkit.venhancer.model.schedule import VideoNoiseSchedule, log_snr_sigmas


@pytest.mark.parametrize("solver", ["dpmpp_2m_sde", "heun", "ddim"])
def test_the_network_is_told_the_nearest_whole_step(solver):
    schedule = VideoNoiseSchedule()
    times = [899.0, 699.6, 454.5, 408.9, 135.64, 90.1]
    nearest = [899, 700, 454, 409, 136, 90]  # a half goes to the even one, as in the released sampler
    if solver == "heun":  # whose corrector is at the time that follows
        nearest = [899, 700, 700, 454, 454, 409, 409, 136, 136, 90, 90]
    evaluations = plan_evaluations(schedule, solver, times)
    assert [one.step for one in evaluations] == nearest
    for one, step in zip(evaluations, nearest, strict=True):
        assert (one.alpha, one.sigma) == (schedule.alphas[step].item(), schedule.sigmas[step].item())


def test_every_kth_frame_of_a_window_is_a_key_frame_and_the_others_have_none():
    assert key_frame_index(0, 7, 3).tolist() == [[0, -1, -1, 1, -1, -1, 2]]
    assert key_frame_index(4, 9, 2).tolist() == [[0, -1, 1, -1, 2]]  # counted from the window's own first
    assert key_frame_index(5, 8, 1).tolist() == [[0, 1, 2]]


def test_noise_levels_are_a_cosine_shifted_from_a_half_to_a_quarter_of_the_size_and_end_at_pure_noise():
    """log(alpha^2 / sigma^2) = -2 log tan(t) + 2 log(1 / scale), the scale's logarithm on a line from 2 to 4."""
    found, top = log_snr_sigmas(11, 2.0, 4.0), math.atan(math.exp(7.5))
    levels = []
    for step in range(11):
        share = step / 10
        turn = share * top + (1 - share) * math.atan(math.exp(-7.5))
        ratio = -2 * math.log(math.tan(turn)) - 2 * ((1 - share) * math.log(2) + share * math.log(4))
        levels.append((1 + math.exp(ratio)) ** -0.5)
    stretched = [levels[0] + (one - levels[0]) * (1 - levels[0]) / (levels[-1] - levels[0]) for one in levels]
    assert found.tolist() == pytest.approx(stretched, rel=1e-5) and found[-1] == 1


def test_a_temporal_decoder_sees_all_its_frames_at_once_and_others_one_by_one():
    for kind, group, context, seen in (
        (AutoencoderKLTemporalDecoder, 5, 1, [(3, 3)]),
        (AutoencoderKL, 1, 0, 3 * [(1, None)]),
    ):
        vae, given = MagicMock(spec=kind), []
        vae.config = {"latent_channels": 4, "block_out_channels": [1, 1, 1], "scaling_factor": 0.25}
        vae.dtype = torch.float32

        def decode(z, num_frames=None, given=given):
            given.append((len(z), num_frames))
            return SimpleNamespace(sample=z)

        vae.decode = decode
        codec = as_codec(vae)
        assert (codec.group, codec.context, codec.factor, codec.channels) == (group, context, 4, 4)
        latents = torch.arange(12.0).view(3, 4, 1, 1)
        assert torch.equal(codec.decode(latents), latents * 4) and given == seen


def test_parts_rest_in_evaluation_and_an_autoencoder_that_asks_for_it_in_full_precision():
    pipeline = tiny_pipeline()
    pipeline.denoiser.train()
    pipeline.place(torch.bfloat16, torch.device("cpu"), offload=True)  # to which there is nowhere to go from
    assert not pipeline.denoiser.training and pipeline.denoiser.dtype == torch.bfloat16
    assert pipeline.vae.dtype == torch.float32 and pipeline.denoiser.device.type == "cpu"
    placed = []
    for asks in (True, False):
        vae = torch.nn.Linear(1, 1)
        vae.config = {"force_upcast": asks}
        parts = SimpleNamespace(denoiser=torch.nn.Linear(1, 1), vae=vae, text_encoder=None, to=placed.append)
        EnhanceParts.place(parts, torch.bfloat16, torch.device("cpu"), offload=True)
        assert vae.weight.dtype == (torch.float32 if asks else torch.bfloat16) and len(placed) == 1 + (not asks)
