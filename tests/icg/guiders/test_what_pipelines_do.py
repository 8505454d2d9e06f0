"""What real pipelines do to their network's arguments, its time, its experts and its caches."""

import re

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, schedulers
from torch import nn

from tests.icg import tiny
from toolkit.errors import UserError
from toolkit.icg import CombinedGuidance, IndependentConditionGuidance, TimeStepGuidance, guided
from toolkit.icg.guiders.pipeline_loop import how_to_switch_off

ICG, TSG = IndependentConditionGuidance, TimeStepGuidance


class Seen(ICG):
    """Remembers the time of every step."""

    def set_state(self, step, num_inference_steps, timestep):
        self.times = [*getattr(self, "times", []), float(timestep)]
        super().set_state(step, num_inference_steps, timestep)


class Texts(nn.Module):
    """A denoiser told of one text per frame or sample, and of a second one: as a tensor, or in a list."""

    def __init__(self, channels_in, channels_out):
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(channels_in, channels_out)
        self.text, self.text_2 = nn.Linear(8, channels_out), nn.Linear(8, channels_out)
        self.seen = []

    def forward(self, sample, timestep, encoder_hidden_states=None, encoder_hidden_states_2=None):
        second = encoder_hidden_states_2
        second = second[0] if isinstance(second, list) else second
        self.seen.append((encoder_hidden_states, second))
        made = self.mix(sample.movedim(1, -1)).movedim(-1, 1)
        for layer, text in ((self.text, encoder_hidden_states), (self.text_2, second)):
            if text is not None:
                told = layer(text.mean(1)).unflatten(0, (len(sample), -1)).movedim(1, 2)  # (B, C, frames)
                made = made + (told[..., None, None] if made.dim() == 5 else told[..., None])
        return (made,)


class Pipe(DiffusionPipeline):
    """A loop of three steps around ``Texts``."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, shape, latents, **conditions):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        self.scheduler.set_timesteps(3)
        for t in self.scheduler.timesteps:
            given = x if latents is None else torch.cat([x, latents], 1)
            prediction = self.unet(given, t, **conditions)[0]
            x = self.scheduler.step(prediction, t, x, generator=torch.Generator().manual_seed(2)).prev_sample
        return x


def test_lists_that_the_network_empties_are_there_for_the_second_call():
    parts = tiny.stable_diffusion().components | {"safety_checker": None, "feature_extractor": None}
    parts.pop("image_encoder", None)
    torch.manual_seed(0)
    adapter = diffusers.T2IAdapter(in_channels=3, channels=[8, 8], num_res_blocks=1, downscale_factor=1)
    pipe = tiny.quiet(
        diffusers.StableDiffusionAdapterPipeline(**parts, adapter=adapter.eval(), requires_safety_checker=False)
    )
    call = tiny.arguments("stable_diffusion", 1) | {"image": torch.ones(1, 3, 8, 8), "num_inference_steps": 2}
    call |= {"negative_prompt_embeds": torch.zeros_like(call["prompt_embeds"])}
    images = []
    for batched in (False, True):
        with guided(pipe, ICG(3.0), batched=batched):
            images.append(pipe(**call | {"generator": torch.Generator().manual_seed(7)}).images)
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-4)


def test_the_time_is_the_schedulers_where_the_network_sees_another():
    """AuraFlow's network sees t / 1000: its first time, 1.0, is also the schedule's last one."""
    torch.manual_seed(0)
    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
        attention_head_dim=8, num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=8,
        pos_embed_max_size=64,
    )  # fmt: skip
    pipe = tiny.quiet(
        diffusers.AuraFlowPipeline(None, None, tiny.vae(), model.eval(), schedulers.FlowMatchEulerDiscreteScheduler())
    )
    guider = Seen(2.0, t_min=300.0)
    call = {"prompt_embeds": tiny.embeds(1), "prompt_attention_mask": torch.ones(1, 5), "guidance_scale": 1.0}
    with guided(pipe, guider), tiny.Calls(model) as calls:
        pipe(**call, height=8, width=8, num_inference_steps=3, output_type="latent")
    assert guider.times == pytest.approx([1000.0, 500.5, 1.0])
    assert calls.count == 5  # the last step lies below t_min


def wan():
    torch.manual_seed(0)
    sizes = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16,
        "out_channels": 16, "text_dim": 8, "freq_dim": 16, "ffn_dim": 16, "num_layers": 1, "rope_max_seq_len": 32,
    }  # fmt: skip
    experts = [diffusers.WanTransformer3DModel(**sizes).eval() for _ in range(2)]
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    scheduler = schedulers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.WanPipeline(None, None, vae, scheduler, experts[0], experts[1], boundary_ratio=0.8)
    return tiny.quiet(pipe), experts


def test_two_experts_that_share_the_steps_are_both_guided():
    pipe, experts = wan()
    call = {"prompt_embeds": tiny.embeds(1), "guidance_scale": 1.0, "num_inference_steps": 6, "output_type": "latent"}
    guider = Seen(3.0)
    with guided(pipe, guider), tiny.Calls(experts[0]) as high, tiny.Calls(experts[1]) as low:
        pipe(**call, height=16, width=16, num_frames=5)
    assert high.count + low.count == 12 and high.count >= 2 and low.count >= 2
    assert guider.times == pytest.approx(pipe.scheduler.timesteps.tolist())
    with pytest.raises(UserError, match="share the steps"), guided(pipe, guider, denoiser="transformer"):
        pass


def test_a_pipe_is_guided_once():
    pipe = tiny.dit()
    second = pytest.raises(UserError, match="guided already: give both guiders to CombinedGuidance")
    with guided(pipe, ICG(2.0)), second, guided(pipe, TSG(2.0)):
        pass
    with guided(pipe, TSG(2.0)):
        pass


def test_every_stream_of_text_is_drawn():
    pipe = tiny.quiet(Pipe(Texts(4, 4), DDIMScheduler()))
    texts = {"encoder_hidden_states": tiny.embeds(2), "encoder_hidden_states_2": tiny.embeds(2, seed=6)}
    with guided(pipe, ICG(3.0)):
        pipe((2, 4, 4, 4), None, **texts)
    own, drawn = pipe.unet.seen[:2]
    assert torch.equal(own[0], texts["encoder_hidden_states"]) and torch.equal(own[1], texts["encoder_hidden_states_2"])
    assert not torch.equal(drawn[0], own[0]) and not torch.equal(drawn[1], own[1])
    bank = ICG(3.0)
    bank.set_condition_bank({"prompt_embeds": tiny.embeds(6, seed=9)})
    with pytest.raises(UserError, match="no rows for encoder_hidden_states_2"), guided(pipe, bank):
        pipe((2, 4, 4, 4), None, **texts)


@pytest.mark.parametrize("guider", [ICG(3.0), CombinedGuidance([ICG(3.0), TSG(1.0)])], ids=["icg", "combined"])
def test_text_in_a_list_is_refused_unless_the_fields_are_named(guider):
    pipe = tiny.quiet(Pipe(Texts(4, 4), DDIMScheduler()))
    texts = {"encoder_hidden_states": tiny.embeds(2), "encoder_hidden_states_2": [tiny.embeds(2, seed=6)]}
    with pytest.raises(UserError, match="encoder_hidden_states_2: a list of embeddings"), guided(pipe, guider):
        pipe((2, 4, 4, 4), None, **texts)
    with guided(pipe, ICG(3.0, fields=["encoder_hidden_states"])):
        assert torch.isfinite(pipe((2, 4, 4, 4), None, **texts)).all()


def test_a_learned_variance_is_left_alone_where_the_network_also_takes_twice_the_channels():
    """IF's upscaler: six channels in (sample and picture), six out (prediction and variance)."""
    network, scheduler = Texts(6, 6), DDPMScheduler(variance_type="learned_range")
    pipe, made = tiny.quiet(Pipe(network, scheduler)), []
    step = scheduler.step
    scheduler.step = lambda prediction, *args, **kwargs: made.append(prediction) or step(prediction, *args, **kwargs)
    call = {"latents": torch.ones(2, 3, 4, 4), "encoder_hidden_states": tiny.embeds(2)}
    with guided(pipe, ICG(3.0, resample="run")):
        pipe((2, 3, 4, 4), **call)
    with torch.no_grad():
        x = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(1))
        given, (own, drawn) = torch.cat([x, call["latents"]], 1), (one[0] for one in network.seen[:2])
        real, weak = (network(given, 0, text)[0] for text in (own, drawn))
    torch.testing.assert_close(made[0][:, 3:], real[:, 3:])
    torch.testing.assert_close(made[0][:, :3], weak[:, :3] + 3 * (real[:, :3] - weak[:, :3]))


@pytest.mark.parametrize("seed", [0, [1, 2]])
def test_the_frames_of_a_video_get_one_random_text(seed):
    pipe = tiny.quiet(Pipe(Texts(4, 4), DDIMScheduler()))
    with guided(pipe, ICG(3.0, seed=seed)):
        pipe((2, 4, 5, 4, 4), None, encoder_hidden_states=tiny.embeds(2).repeat_interleave(5, 0))
    drawn = pipe.unet.seen[1][0].unflatten(0, (2, 5))
    assert torch.equal(drawn, drawn[:, :1].expand_as(drawn)) and not torch.equal(drawn[0], drawn[1])


def test_a_cache_of_blocks_keeps_the_branches_apart():
    """One step: every branch computes all of its blocks, as without a cache."""
    pipe, model = tiny.flux(), tiny.network("flux")
    with guided(pipe, ICG(3.0, resample="run")):
        plain = tiny.sample("flux", num_inference_steps=1)
    model.enable_cache(diffusers.FirstBlockCacheConfig(threshold=10.0))
    try:
        with guided(pipe, ICG(3.0, resample="run")):
            assert torch.equal(tiny.sample("flux", num_inference_steps=1), plain)
    finally:
        model.disable_cache()


class TimedTokens(nn.Module):
    """A denoiser that embeds a time per token (B, tokens), the first of them the clean one's."""

    def __init__(self):
        super().__init__()
        self.time_embedding, self.seen = nn.Linear(1, 8), []

    def forward(self, sample, timestep):
        told = self.time_embedding(timestep.flatten()[:, None]).view(len(sample), -1, 8)
        self.seen.append(told)
        return (sample + told.mean(),)


class TokenPipe(DiffusionPipeline):
    """Two samples of three tokens."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self):
        x = torch.zeros(2, 4, 3)
        self.scheduler.set_timesteps(2)
        for t in self.scheduler.timesteps:
            times = torch.tensor([0.0, t, t]).expand(2, 3)
            x = self.scheduler.step(self.unet(x, times)[0], t, x).prev_sample


@pytest.mark.parametrize("seed", [0, [1, 2]])
@pytest.mark.parametrize("batched", [False, True])
def test_all_tokens_of_a_sample_get_one_noise_on_their_times(seed, batched):
    pipe = tiny.quiet(TokenPipe(TimedTokens(), DDIMScheduler(clip_sample=False)))
    with guided(pipe, TSG(3.0, alpha=0.0, std_scaling=False, seed=seed), batched=batched):
        pipe()
    seen = torch.cat(pipe.unet.seen)  # (2 steps x 2 branches x 2 samples x 3 tokens, 8)
    clean, noisy = seen.view(2, 2, 2, 3, 8).unbind(1)
    noise = noisy - clean
    torch.testing.assert_close(noise, noise[:, :, :1].expand_as(noise), atol=1e-3, rtol=0)
    assert noise.abs().amin() > 0 and not torch.allclose(noise[:, 0], noise[:, 1])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        ("StableVideoDiffusionPipeline", r"min_guidance_scale=1\.0, max_guidance_scale=1\.0"),
        ("Krea2Pipeline", r"guidance_scale=0\.0"),
        ("ZImagePipeline", r"guidance_scale=0\.0"),
        ("StableDiffusionPipeline", r"guidance_scale=1\.0"),
        ("FluxPipeline", r"true_cfg_scale=1\.0"),
        ("HunyuanVideo15Pipeline", r"pipe\.guider = guider"),
    ],
)
def test_what_switches_the_own_guidance_off_is_said_of_each_pipeline(build, words):
    pipe = object.__new__(getattr(diffusers, build))
    pipe.guider = object() if build.startswith("Hunyuan") else None
    pipe.unet = torch.nn.Module()
    pipe.unet.config = diffusers.configuration_utils.FrozenDict(time_cond_proj_dim=None)
    assert re.search(words, how_to_switch_off(pipe))
