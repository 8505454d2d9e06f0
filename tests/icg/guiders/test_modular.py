"""The guiders as components of Modular Diffusers' SDXL pipeline, with tiny real parts."""

import warnings

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

from tests.icg import tiny
from toolkit.errors import UserError
from toolkit.icg import (
    CombinedGuidance,
    IndependentConditionGuidance,
    SchedulerClock,
    TimeStepGuidance,
    guided,
    random_token_bank,
)

ICG, TSG = IndependentConditionGuidance, TimeStepGuidance


@pytest.fixture(scope="module")
def pipe():
    modular = StableDiffusionXLAutoBlocks().init_pipeline()
    modular.update_components(**tiny.sdxl_parts(), force_zeros_for_empty_prompt=True)
    modular.set_progress_bar_config(disable=True)
    return modular


def run(pipe, guider, **changes):
    """(latents, network calls)."""
    pipe.update_components(guider=guider)
    call = {"prompt": ["a cat", "two dogs"], "num_inference_steps": 4, "height": 8, "width": 8, "output": "latents"}
    with tiny.Calls(pipe.unet) as calls:
        latents = pipe(**(call | {"generator": torch.Generator().manual_seed(0)} | changes))
    return latents, calls.count


@pytest.fixture(scope="module")
def plain(pipe):
    latents, calls = run(pipe, ClassifierFreeGuidance(1.0))
    assert calls == 4
    return latents


def test_off_is_the_unguided_loop(pipe, plain):
    for guider in (ICG(1.0), TSG(1.0), ICG(3.0, sigma_max=1e-6), TSG(3.0, t_min=1.1, t_max=1.2), TSG(stop=0.0)):
        guider.set_clock(SchedulerClock(pipe.scheduler))
        latents, calls = run(pipe, guider)
        assert torch.equal(latents, plain) and calls == 4
    noiseless, calls = run(pipe, TSG(3.0, noise_scale=0.0))
    assert torch.equal(noiseless, plain) and calls == 8


@pytest.mark.parametrize(
    ("guider", "calls"),
    [(ICG(3.0), 8), (TSG(3.0), 8), (CombinedGuidance([ICG(2.0), TSG(2.0)]), 12), (ICG(2.0, num_draws=3), 16)],
)
def test_calls_and_repeatability(pipe, plain, guider, calls):
    latents, counted = run(pipe, guider)
    assert counted == calls and torch.isfinite(latents).all() and not torch.equal(latents, plain)
    assert torch.equal(run(pipe, guider)[0], latents)
    assert torch.equal(run(pipe, ICG(1.0))[0], plain)


def test_consecutive_runs_with_an_interval(pipe, plain):
    """A guider stopped half-way does not confuse the next run's text encoding (diffusers' own does)."""
    guider = TSG(2.0, guidance_scale=3.0, stop=0.5)
    first, calls = run(pipe, guider)
    assert calls == 3 + 3 + 1 + 1
    assert torch.equal(run(pipe, guider)[0], first)
    guider = ICG(3.0, start=0.5)
    first, calls = run(pipe, guider)
    assert calls == 1 + 1 + 2 + 2 and torch.equal(run(pipe, guider)[0], first)


def test_same_result_as_the_ordinary_pipeline(pipe):
    for guider in (ICG(3.0), TSG(3.0), CombinedGuidance([ICG(2.0), TSG(2.0)])):
        latents, _ = run(pipe, guider)
        call = {"num_inference_steps": 4, "height": 8, "width": 8, "output_type": "latent", "guidance_scale": 1.0}
        with guided(tiny.sdxl(), guider):
            ordinary = tiny.sdxl()(["a cat", "two dogs"], generator=torch.Generator().manual_seed(0), **call).images
        torch.testing.assert_close(latents, ordinary, rtol=1e-4, atol=1e-3)


def test_null_bank_is_classifier_free_guidance(pipe):
    """U2, exact: SDXL's empty prompt is all zeros; other fields (sizes) stay the conditional ones."""
    guider = ICG(5.0)
    guider.set_condition_bank({"prompt_embeds": torch.zeros(1, 7, 16), "pooled_prompt_embeds": torch.zeros(1, 8)})
    assert torch.equal(run(pipe, guider)[0], run(pipe, ClassifierFreeGuidance(5.0))[0])


def test_prompt_and_pooled_are_of_one_row(pipe):
    """U15: every drawn pair is a pair of the bank."""
    bank = random_token_bank(tiny.sdxl(), num_rows=5)
    guider, drawn = ICG(2.0), []
    guider.set_condition_bank(bank)
    guider.set_state(0, 4, torch.tensor(999))
    data = {"prompt_embeds": (torch.zeros(40, 7, 16), None), "text_embeds": (torch.zeros(40, 8), None)}
    states = guider.prepare_inputs(
        data | {"time_ids": (torch.ones(40, 6), torch.zeros(40, 6)), "image_embeds": (None, None)}
    )
    for prompt, pooled in zip(states[1].prompt_embeds, states[1].text_embeds, strict=True):
        row = int((bank["prompt_embeds"] - prompt).abs().sum((1, 2)).argmin())
        assert torch.equal(bank["prompt_embeds"][row], prompt) and torch.equal(
            bank["pooled_prompt_embeds"][row], pooled
        )
        drawn.append(row)
    assert set(drawn) == set(range(5))
    assert torch.equal(states[1].time_ids, torch.ones(40, 6)) and states[1].image_embeds is None


def test_exception_in_a_step_leaves_nothing(pipe, plain):
    """U11: there is no try/finally around the loop's hooks; the guider's own come off all the same."""
    for guider in (CombinedGuidance([ICG(2.0), TSG(2.0)]), TSG(2.0)):
        for fatal in (1, 2, 3, 5):
            count = [0]

            def fail(*_, count=count, fatal=fatal):
                count[0] += 1
                if count[0] == fatal:
                    raise RuntimeError("broken step")

            handle = pipe.unet.conv_out.register_forward_pre_hook(fail)
            with pytest.raises(RuntimeError, match="broken step"):
                run(pipe, guider)
            handle.remove()
            assert not pipe.unet.time_embedding._forward_hooks and not pipe.unet._forward_hooks
            assert torch.equal(run(pipe, ICG(1.0))[0], plain)
        guider.end_run()
        assert run(pipe, guider)[1] in (8, 12)


def test_sdxl_size_embedding_is_left_alone(pipe):
    """U12: add_embedding is a TimestepEmbedding too, but of sizes."""
    guider, hooked = TSG(2.0), []

    def look(module, args):
        hooked.append((len(pipe.unet.time_embedding._forward_hooks), len(pipe.unet.add_embedding._forward_hooks)))

    handle = pipe.unet.register_forward_pre_hook(look)
    run(pipe, guider, num_inference_steps=2)
    handle.remove()
    assert hooked == [(0, 0), (1, 0)] * 2


def test_negative_prompt_is_warned_of_only_when_given(pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run(pipe, ICG(2.0))
    negative = {"negative_prompt_embeds": tiny.embeds(2, 7, 16), "negative_pooled_prompt_embeds": tiny.embeds(2)[:, 0]}
    prompt = {"prompt_embeds": tiny.embeds(2, 7, 16, seed=1), "pooled_prompt_embeds": tiny.embeds(2, seed=2)[:, 0]}
    data = {"prompt_embeds": (prompt["prompt_embeds"], negative["negative_prompt_embeds"])}
    guider = ICG(2.0)
    guider.set_state(0, 4, torch.tensor(999))
    with pytest.warns(UserWarning, match="negative prompt is ignored"):
        guider.prepare_inputs(data)


def test_sigma_interval_needs_a_clock(pipe):
    with pytest.raises(UserError, match="set_clock"):
        run(pipe, ICG(2.0, sigma_min=0.5))
    with pytest.raises(UserError, match="modular"), guided(pipe, ICG(2.0)):
        pass


def test_contract_of_block_states(pipe):
    """``prepare_inputs_from_block_state`` reads the same values by attribute name."""
    from diffusers.modular_pipelines.modular_pipeline import BlockState

    block = BlockState(embeds=tiny.embeds(2), negative=tiny.embeds(2, seed=1), mask=torch.ones(2, 5))
    guider = TSG(2.0, guidance_scale=2.0)
    guider.set_state(0, 4, torch.tensor(999))
    states = guider.prepare_inputs_from_block_state(
        block, {"encoder_hidden_states": ("embeds", "negative"), "mask": "mask"}
    )
    names = [state.__guidance_identifier__ for state in states]
    assert names == ["pred_cond", "pred_cond_tsg", "pred_uncond"]
    assert torch.equal(states[1].encoder_hidden_states, block.embeds)
    assert torch.equal(states[2].encoder_hidden_states, block.negative) and torch.equal(states[2].mask, block.mask)
