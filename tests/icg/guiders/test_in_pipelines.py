"""The guiders in nine ordinary pipelines through ``guided`` (invariants U1 to U6, U11, U16 of the method)."""

import copy

import diffusers
import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance

from tests.icg import tiny
from tests.icg.tiny import run
from toolkit.errors import UserError
from toolkit.icg import CombinedGuidance, IndependentConditionGuidance, TimeStepGuidance, guided, random_token_bank
from toolkit.icg.guiders.random_text import null_inputs, text_inputs

ICG, TSG = IndependentConditionGuidance, TimeStepGuidance


@pytest.mark.parametrize("kind", tiny.FAMILIES)
def test_tsg_in_every_family(kind):
    plain = tiny.sample(kind)
    off, calls = run(kind, TSG(tsg_scale=1.0))
    assert torch.equal(off, plain) and calls == 4
    noiseless, calls = run(kind, TSG(tsg_scale=3.0, noise_scale=0.0))
    assert torch.equal(noiseless, plain) and calls == 8
    outside, calls = run(kind, TSG(tsg_scale=3.0, t_min=1.2, t_max=1.3))
    assert torch.equal(outside, plain) and calls == 4
    guider = TSG(tsg_scale=3.0, noise_scale=2.0)
    on, calls = run(kind, guider)
    assert calls == 8 and torch.isfinite(on).all() and not torch.equal(on, plain)
    assert torch.equal(run(kind, guider)[0], on), "a second run with the same seed"
    assert not torch.equal(run(kind, guider.new(seed=1))[0], on)
    assert torch.equal(tiny.sample(kind), plain), "nothing is left on the pipeline"


@pytest.mark.parametrize("kind", tiny.CONDITIONAL)
def test_icg_in_every_conditional_family(kind):
    plain = tiny.sample(kind)
    off, calls = run(kind, ICG(1.0))
    assert torch.equal(off, plain) and calls == 4
    outside, calls = run(kind, ICG(3.0, sigma_max=1e-9))
    assert torch.equal(outside, plain) and calls == 4
    guider = ICG(3.0)
    on, calls = run(kind, guider)
    assert calls == 8 and torch.isfinite(on).all() and not torch.equal(on, plain)
    assert torch.equal(run(kind, guider)[0], on)
    assert not torch.equal(run(kind, guider.new(seed=1))[0], on)
    assert run(kind, ICG(3.0, num_draws=3))[1] == 16
    assert torch.equal(tiny.sample(kind), plain)


@pytest.mark.parametrize("kind", tiny.CONDITIONAL)
def test_icg_with_tsg_takes_three_calls(kind):
    both = CombinedGuidance([ICG(2.0), TSG(2.0)])
    images, calls = run(kind, both)
    assert calls == 12 and torch.isfinite(images).all()
    assert torch.equal(run(kind, CombinedGuidance([ICG(2.0), TSG(1.0)]))[0], run(kind, ICG(2.0))[0])
    assert torch.equal(run(kind, CombinedGuidance([ICG(1.0), TSG(2.0)]))[0], run(kind, TSG(2.0))[0])


@pytest.mark.parametrize("kind", tiny.FAMILIES)
def test_batched_calls_agree_with_single_ones(kind):
    guider = CombinedGuidance([ICG(2.0), TSG(2.0)]) if kind in tiny.CONDITIONAL else TSG(2.0)
    single, _ = run(kind, guider)
    together, calls = run(kind, guider, batched=True)
    assert calls == 4
    torch.testing.assert_close(together, single, rtol=2e-3, atol=2e-3 * float(single.abs().max()))


@pytest.mark.parametrize("kind", ["stable_diffusion", "sdxl", "sd3", "flux", "sana"])
def test_null_bank_is_classifier_free_guidance(kind):
    """U2: exact, with the same network calls in the same order."""
    null = {"encoder_hidden_states": tiny.embeds(1, width=16 if kind == "sdxl" else 8, seed=8)}
    pooled = {"sdxl": "text_embeds", "sd3": "pooled_projections", "flux": "pooled_projections"}.get(kind)
    if pooled:
        null[pooled] = tiny.embeds(1, seed=9)[:, 0]
    guider = ICG(4.0)
    guider.set_condition_bank(null)
    icg, calls = run(kind, guider)
    rows = {name: one.repeat_interleave(2, 0) for name, one in null.items()}  # laid out as drawn: the same kernels
    cfg, calls_cfg = run(kind, ClassifierFreeGuidance(4.0), null=rows)
    assert torch.equal(icg, cfg) and calls == calls_cfg == 8


def test_classifier_free_guidance_of_dit_matches_a_null_label():
    null = {"class_labels": torch.tensor([tiny.NUM_CLASSES])}
    guider = ICG(4.0)
    guider.set_condition_bank(null)
    assert torch.equal(run("dit", guider)[0], run("dit", ClassifierFreeGuidance(4.0), null={"class_labels": 12})[0])


def test_native_guidance_of_stable_diffusion_is_matched():
    """Our loop around one call agrees with the pipeline's own doubled batch."""
    null = tiny.embeds(1, seed=8)
    native = tiny.sample("stable_diffusion", guidance_scale=4.0, negative_prompt_embeds=null.expand(2, -1, -1))
    guider = ICG(4.0)
    guider.set_condition_bank({"prompt_embeds": null})
    for batched in (False, True):
        images, _ = run("stable_diffusion", guider, batched=batched)
        torch.testing.assert_close(images, native, rtol=1e-4, atol=1e-4 * float(native.abs().max()))


@pytest.mark.parametrize("kind", tiny.CONDITIONAL)
def test_own_condition_is_no_guidance(kind):
    """U3: a draw that returns the condition itself leaves every prediction as it was, at any scale."""
    guider = ICG(7.0)
    guider.set_condition_sampler(lambda real, draws: dict(real))
    images, calls = run(kind, guider)
    assert torch.equal(images, tiny.sample(kind)) and calls == 8


def test_learned_variances_are_the_conditional_branch():
    """U16: DiT puts out twice the channels; only the first half is guided."""
    model, outputs = tiny.network("dit"), []
    x, t, y = torch.randn(2, 4, 4, 4), torch.tensor([500, 500]), torch.tensor([3, 7])
    with torch.no_grad():
        plain = model(x, t, y).sample
    with guided(tiny.dit(), ICG(3.0)):
        handle = model.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
        tiny.dit().scheduler.set_timesteps(2)
        with torch.no_grad():
            guided_output = model(x, timestep=t + 1, class_labels=y).sample
        handle.remove()
    assert guided_output.shape == plain.shape and not torch.equal(guided_output[:, :4], plain[:, :4])
    torch.testing.assert_close(guided_output[:, 4:], model(x, t + 1, y).sample[:, 4:], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["dit", "stable_diffusion", "ddpm"])
def test_exception_in_any_step_leaves_nothing(kind):
    """U11: the pipeline then answers as before, to the bit."""
    plain, pipe, model = tiny.sample(kind), getattr(tiny, kind)(), tiny.network(kind)
    guider = TSG(2.0) if kind == "ddpm" else CombinedGuidance([ICG(2.0), TSG(2.0)])
    part = dict(model.named_modules())["norm_out" if kind == "dit" else "conv_norm_out"]
    expected = run(kind, guider)[0]
    for fatal in (1, 2, 4):
        count = [0]

        def fail(*_, count=count, fatal=fatal):
            count[0] += 1
            if count[0] == fatal:
                raise RuntimeError("broken step")

        handle = part.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="broken step"), guided(pipe, guider):
            tiny.sample(kind)
        handle.remove()
        assert torch.equal(tiny.sample(kind), plain)
        assert not any(module._forward_hooks for name, module in model.named_modules() if name)
        assert "step" not in vars(pipe.scheduler) and "set_timesteps" not in vars(pipe.scheduler)
    assert torch.equal(run(kind, guider)[0], expected)


def test_pipeline_generator_is_untouched():
    """U6: the noise of an ancestral sampler is the same with and without guidance."""
    one, two = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    tiny.ddpm()(generator=one, num_inference_steps=4, output_type="np")
    before = torch.get_rng_state()
    with guided(tiny.ddpm(), TSG(2.0)):
        tiny.ddpm()(generator=two, num_inference_steps=4, output_type="np")
    assert torch.equal(one.get_state(), two.get_state()) and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", ["dit", "stable_diffusion"])
def test_a_sample_is_the_same_alone_and_in_a_batch(kind):
    """U7: with one seed per sample, draws and noise do not depend on the rest of the batch."""
    together = []
    for seeds, rows in (([11, 12], slice(0, 2)), ([12], slice(1, 2))):
        guider = CombinedGuidance([ICG(2.0, seed=seeds, std="sample"), TSG(2.0, seed=seeds)])
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))[rows]
        changes = {"prompt_embeds": tiny.embeds(2)[rows], "latents": noise}
        if kind == "dit":  # the pipeline takes no latents; one generator per sample does the same
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            changes = {"class_labels": [3, 7][rows], "generator": generators}
        with guided(getattr(tiny, kind)(), guider):
            together.append(tiny.sample(kind, **changes))
    torch.testing.assert_close(together[0][1], together[1][0], rtol=1e-4, atol=1e-4)


def test_interval_in_steps_time_and_noise():
    """Half the steps guided cost 6 calls of 8; the three ways to say so agree."""
    scheduler = tiny.dit().scheduler
    scheduler.set_timesteps(4)  # 751, 501, 251, 1
    by_steps, calls = run("dit", ICG(3.0, start=0.5))
    assert calls == 6
    by_time, calls = run("dit", ICG(3.0, t_max=300))
    sigma = float(((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()[300])
    by_noise, calls_noise = run("dit", ICG(3.0, sigma_max=sigma))
    assert calls == calls_noise == 6
    assert torch.equal(by_time, by_noise) and torch.equal(by_steps, by_time)
    early, calls = run("dit", ICG(3.0, stop=0.5))
    assert calls == 6 and not torch.equal(early, by_steps)


def test_flow_time_of_flux_sd3_and_sana_is_read_right():
    """The interval [0, 0] never holds, [0, 1000] always, in whatever unit the network is told the time."""
    for kind in ("flux", "sd3", "sana"):
        assert run(kind, ICG(2.0, t_min=999.5))[1] in (4, 5)
        assert run(kind, ICG(2.0, t_min=1.0, t_max=1000.0))[1] == 8


@pytest.mark.parametrize("kind", ["stable_diffusion", "sdxl"])
def test_bank_of_random_tokens(kind):
    pipe = getattr(tiny, kind)()
    bank = random_token_bank(pipe, num_rows=6, seed=1)
    assert {name: tuple(rows.shape) for name, rows in bank.items()} == (
        {"prompt_embeds": (6, 7, 8)}
        if kind == "stable_diffusion"
        else {"prompt_embeds": (6, 7, 16), "pooled_prompt_embeds": (6, 8)}
    )
    assert torch.equal(bank["prompt_embeds"], random_token_bank(pipe, 6, 1)["prompt_embeds"])
    assert len(bank["prompt_embeds"].unique(dim=0)) == 6 and type(pipe.tokenizer).__name__ == "CLIPTokenizer"
    guider = ICG.preset("stable-diffusion")
    guider.set_condition_bank(bank)
    call = {"guidance_scale": 1.0, "num_inference_steps": 2, "output_type": "latent", "height": 8, "width": 8}
    with guided(pipe, guider):
        assert torch.isfinite(pipe(["a cat", "dogs"], generator=torch.Generator().manual_seed(0), **call).images).all()
    with guided(pipe, guider):  # text that is not padded, five tokens of it
        assert torch.isfinite(tiny.sample(kind)).all()
    guider.set_condition_bank({name: rows[:, :4] for name, rows in bank.items()})
    with pytest.raises(UserError, match="needed"), guided(pipe, guider):
        tiny.sample(kind)


def test_bank_of_the_other_families():
    """SD3 (its T5 left out), Flux and Sana with tiny real encoders, all with the CLIP tokenizer."""
    from transformers import (
        CLIPTextModel,
        CLIPTextModelWithProjection,
        Gemma2Config,
        Gemma2Model,
        T5Config,
        T5EncoderModel,
    )

    tokenizer, encoder = tiny.clip(CLIPTextModelWithProjection, 8)
    parts = tiny.sd3().components | {"text_encoder": encoder, "text_encoder_2": encoder}
    sd3 = diffusers.StableDiffusion3Pipeline(**parts | {"tokenizer": tokenizer, "tokenizer_2": tokenizer})
    sd3.transformer = tiny.build(
        diffusers.SD3Transformer2DModel, **sd3.transformer.config | {"joint_attention_dim": 16}
    )
    bank = random_token_bank(sd3, 3)
    assert bank["prompt_embeds"].shape == (3, 7 + 256, 16) and bank["pooled_prompt_embeds"].shape == (3, 16)

    tokenizer, encoder = tiny.clip(CLIPTextModel, 8)
    t5 = T5EncoderModel(T5Config(vocab_size=60, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).eval()
    parts = tiny.flux().components | {"text_encoder": encoder, "tokenizer": tokenizer}
    bank = random_token_bank(diffusers.FluxPipeline(**parts | {"text_encoder_2": t5, "tokenizer_2": tokenizer}), 3)
    assert bank["prompt_embeds"].shape == (3, 512, 8) and bank["pooled_prompt_embeds"].shape == (3, 8)

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4}
    gemma = Gemma2Model(Gemma2Config(vocab_size=60, num_key_value_heads=2, **sizes)).eval()
    sana = diffusers.SanaPipeline(**tiny.sana().components | {"tokenizer": tokenizer, "text_encoder": gemma})
    size = {"height": 128, "width": 128, "use_resolution_binning": False}
    assert random_token_bank(sana, 3, **size)["prompt_embeds"].shape == (3, 300, 8)
    with pytest.raises(UserError, match=r"cannot be called with a prompt alone \(Invalid sample size\)"):
        random_token_bank(sana, 3)
    with pytest.raises(UserError, match="takes no prompt"):
        random_token_bank(tiny.dit())


def test_bank_of_pipelines_that_also_take_a_picture():
    """Seventeen rows in two calls, the pipeline's hooks off again; all rows equal where nothing tokenises."""
    parts = tiny.stable_diffusion().components | {"safety_checker": None, "feature_extractor": None}
    parts.pop("image_encoder", None)
    parts["unet"] = tiny.unet_condition(in_channels=8)
    pipe = tiny.quiet(diffusers.StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False))
    bank = random_token_bank(pipe, 17, image=torch.rand(1, 3, 8, 8))
    assert bank["prompt_embeds"].shape == (17, 7, 8) and len(bank["prompt_embeds"].unique(dim=0)) == 17
    assert not pipe.unet._forward_pre_hooks
    with pytest.raises(UserError, match="give the rest of its call by name"):
        random_token_bank(pipe, 2)
    fixed = tiny.stable_diffusion().components["tokenizer"]
    pipe.text_tokenizer, pipe.tokenizer = fixed, lambda texts, **options: fixed([""] * len(texts), **options)
    pipe.encode_prompt = lambda *args, **kwargs: tiny.embeds(1).expand(2, -1, -1)
    pipe._encode_prompt = pipe.encode_prompt
    with pytest.raises(UserError, match="the same for all random texts"):
        random_token_bank(pipe, 2, image=torch.rand(1, 3, 8, 8))


def test_cfg_beside_tsg_and_cads():
    """TSG with classifier-free guidance takes three calls; CADS acts where DiT embeds its labels."""
    plain = tiny.sample("dit")
    images, calls = run("dit", TSG(2.0, guidance_scale=1.5), null={"class_labels": tiny.NUM_CLASSES})
    assert calls == 12 and not torch.equal(images, plain)
    with pytest.raises(UserError, match="null condition"):
        run("dit", TSG(2.0, guidance_scale=1.5))
    annealed, calls = run("dit", ICG(1.0, cads_scale=0.5))
    assert calls == 4 and not torch.equal(annealed, plain)
    both, calls = run("dit", CombinedGuidance([ICG(2.0, cads_scale=0.15), TSG(2.0)]))
    assert calls == 12 and torch.isfinite(both).all()
    text, _ = run("stable_diffusion", ICG(1.0, cads_scale=0.5))
    assert not torch.equal(text, tiny.sample("stable_diffusion"))
    late, _ = run("dit", ICG(1.0, cads_scale=0.5, cads_tau1=0.8, cads_tau2=0.9))
    assert torch.equal(late, plain) and torch.equal(tiny.sample("dit"), plain), "clean at and below tau1"
    with pytest.raises(UserError, match="takes no timestep"):
        run("stable_diffusion", ICG(1.0), denoiser="vae")


def test_two_runs_in_one_block_are_alike():
    with guided(tiny.dit(), CombinedGuidance([ICG(2.0), TSG(2.0)])):
        assert torch.equal(tiny.sample("dit"), tiny.sample("dit"))


def test_half_precision():
    parts = {name: part for name, part in tiny.stable_diffusion().components.items() if name != "unet"}
    parts["text_encoder"] = None
    for dtype in (torch.bfloat16, torch.float16):
        model = tiny.unet_condition().to(dtype)
        pipe = tiny.quiet(diffusers.StableDiffusionPipeline(**parts, unet=model, requires_safety_checker=False))
        with guided(pipe, CombinedGuidance([ICG(2.0), TSG(2.0)])):
            images = tiny.sample("stable_diffusion", pipe=pipe, prompt_embeds=tiny.embeds(2).to(dtype))
        assert images.dtype == dtype and torch.isfinite(images).all()
    parts = tiny.flux().components | {"transformer": copy.deepcopy(tiny.network("flux")).bfloat16()}
    flux = tiny.quiet(diffusers.FluxPipeline(**parts))  # bfloat16 rounds the time that the network is told
    call = {name: tiny.arguments("flux")[name].bfloat16() for name in ("prompt_embeds", "pooled_prompt_embeds")}
    with guided(flux, CombinedGuidance([ICG(2.0, start=0.5), TSG(2.0)])):
        assert torch.isfinite(tiny.sample("flux", pipe=flux, **call)).all()


def test_image_to_image_counts_its_own_steps():
    parts = tiny.stable_diffusion().components
    pipe = tiny.quiet(diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False))
    call = {
        "prompt_embeds": tiny.embeds(1),
        "guidance_scale": 1.0,
        "output_type": "latent",
        "image": torch.zeros(1, 3, 8, 8),
    }
    with guided(pipe, ICG(2.0, start=0.5)), tiny.Calls(pipe.unet) as calls:
        pipe(**call, num_inference_steps=8, strength=0.5)
    assert calls.count == 6  # 4 steps are left of 8, the last 2 of them guided


def test_the_null_condition_of_several_prompts_is_the_empty_text_or_the_negative_prompt_of_each():
    """Stable Diffusion's own guidance is one call of twice the rows: the half that is not the prompts'."""
    pipe, prompts = tiny.stable_diffusion(), ["a cat", "a dog", "a cow"]
    for negative, text in ((None, ""), ("a hen", "a hen")):
        found, wanted = null_inputs(pipe, prompts, negative), text_inputs(pipe, [text] * 3)
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)
    with pytest.raises(UserError, match="has no guidance of its own"):
        null_inputs(pipe, ["", "", ""])
