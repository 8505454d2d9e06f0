"""What ``guided`` refuses, and what it warns of."""

import warnings

import diffusers
import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance

from tests.icg import tiny
from tests.icg.tiny import run
from toolkit.errors import UserError
from toolkit.icg import CombinedGuidance, IndependentConditionGuidance, TimeStepGuidance, guided

ICG, TSG = IndependentConditionGuidance, TimeStepGuidance


@pytest.mark.parametrize("kind", ["stable_diffusion", "sdxl", "sd3", "sana"])
def test_native_guidance_is_refused(kind):
    changes = {"guidance_scale": 4.0, "negative_prompt_embeds": tiny.embeds(2, width=16 if kind == "sdxl" else 8)}
    if kind in ("sdxl", "sd3"):
        changes["negative_pooled_prompt_embeds"] = tiny.embeds(2)[:, 0]
    if kind == "sana":
        changes["negative_prompt_attention_mask"] = torch.ones(2, 5, dtype=torch.long)
        changes["negative_prompt"] = None
    with pytest.raises(UserError, match=r"guidance_scale=1\.0"), guided(getattr(tiny, kind)(), ICG(2.0)):
        tiny.sample(kind, **changes)


def test_native_guidance_of_flux_and_dit_is_refused():
    negative = {"negative_prompt_embeds": tiny.embeds(2), "negative_pooled_prompt_embeds": tiny.embeds(2)[:, 0]}
    with pytest.raises(UserError, match="twice in a step"), guided(tiny.flux(), ICG(2.0)):
        tiny.sample("flux", true_cfg_scale=4.0, **negative)
    with pytest.raises(UserError, match="class_labels"), guided(tiny.dit(), ICG(2.0)):
        tiny.sample("dit", guidance_scale=4.0)


def test_a_doubled_batch_is_recognised_at_the_scheduler():
    """PixArt does not say that its own guidance is on; its scheduler sees half the rows of its network."""
    parts = dict.fromkeys(["tokenizer", "text_encoder"])
    pipe = diffusers.PixArtAlphaPipeline(
        **parts, vae=tiny.vae(), transformer=tiny.pixart(), scheduler=diffusers.DDIMScheduler(clip_sample=False)
    )
    masks = {"prompt_attention_mask": torch.ones(2, 5), "negative_prompt_attention_mask": torch.ones(2, 5)}
    embeds = {"prompt_embeds": tiny.embeds(2), "negative_prompt_embeds": tiny.embeds(2, seed=8)}
    call = {"height": 8, "width": 8, "use_resolution_binning": False, "num_inference_steps": 2, "output_type": "latent"}
    call |= embeds | masks | {"negative_prompt": None}
    with pytest.raises(UserError, match="doubles its batch"), guided(tiny.quiet(pipe), ICG(2.0)):
        pipe(**call, guidance_scale=4.0)
    with guided(pipe, CombinedGuidance([ICG(2.0), TSG(2.0)])):
        assert torch.isfinite(pipe(**call, guidance_scale=1.0).images).all()


def test_negative_prompt_is_warned_of():
    pipe = tiny.stable_diffusion()
    call = {"guidance_scale": 1.0, "num_inference_steps": 1, "output_type": "latent", "height": 8, "width": 8}
    with guided(pipe, ICG(2.0)):
        with pytest.warns(UserWarning, match="negative prompt is ignored"):
            pipe("a cat", negative_prompt="ugly", **call)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            pipe("a cat", **call)


def test_one_line_errors():
    with pytest.raises(UserError, match="unconditional model") as error, guided(tiny.ddpm(), ICG(2.0)):
        tiny.sample("ddpm")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="did not call its scheduler"), guided(tiny.dit(), ICG(2.0)):
        tiny.network("dit")(torch.zeros(1, 4, 4, 4), torch.tensor([5]), torch.tensor([5]))
    with pytest.raises(UserError, match="no scheduler"), guided(tiny.network("dit"), ICG(2.0)):
        pass
    with pytest.raises(UserError, match=r"null: 'classes'"):
        run("dit", ClassifierFreeGuidance(2.0), null={"classes": 1})
    with pytest.raises(UserError, match=r"class_labels: must be in \[0, 12\)"), guided(tiny.dit(), ICG(2.0)):
        tiny.sample("dit", class_labels=[3, 12])
    with pytest.raises(UserError, match="fields: no 'text'"):
        run("dit", ICG(2.0, fields=["text"]))


def test_caches_are_refused_unless_the_condition_is_kept():
    from diffusers import FirstBlockCacheConfig

    pipe, model = tiny.flux(), tiny.network("flux")
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    try:
        with pytest.raises(UserError, match="disable_cache"), guided(pipe, ICG(2.0)):
            tiny.sample("flux")
    finally:
        model.disable_cache()


@pytest.mark.slow
def test_compiled_networks():
    """A compiled network runs past the hooks inside it."""
    model = tiny.unet2d()
    compiled = torch.compile(model, backend="eager")
    pipe = tiny.quiet(diffusers.DDPMPipeline(compiled, diffusers.DDPMScheduler()))
    with pytest.raises(UserError, match="compiled form"), guided(pipe, TSG(2.0)):
        tiny.sample("ddpm", pipe=pipe)
    model.compile(backend="eager")
    pipe = diffusers.DDPMPipeline(model, diffusers.DDPMScheduler())
    with pytest.raises(UserError, match="compiled in place"), guided(pipe, TSG(2.0)):
        pass


def test_pipelines_of_two_networks_must_say_which():
    pipe = tiny.ddim()
    pipe.transformer_2 = tiny.network("ddpm")
    try:
        with pytest.raises(UserError, match="name one of unet"), guided(pipe, TSG(2.0)):
            pass
        with guided(pipe, TSG(2.0), denoiser="unet"):
            assert torch.isfinite(tiny.sample("ddim")).all()
    finally:
        del pipe.transformer_2
