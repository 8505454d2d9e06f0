"""Independent condition guidance and time-step guidance (Sadat et al. 2025, "No Training, No Problem").

ICG guides any conditional model without a null condition, TSG any model at all; both cost two network calls a step,
as classifier-free guidance does, and three together. In ordinary pipelines, with their own guidance switched off:

    import torch
    from diffusers import DiTPipeline
    from toolkit.icg import IndependentConditionGuidance, guided

    pipe = DiTPipeline.from_pretrained("facebook/DiT-XL-2-256")
    guider = IndependentConditionGuidance.preset("dit-xl-2")
    with guided(pipe, guider):
        images = pipe([3, 7], guidance_scale=1.0, generator=torch.manual_seed(0), num_inference_steps=4).images

Stable Diffusion draws its independent prompts from a bank of random tokens:

    from diffusers import StableDiffusionPipeline
    from toolkit.icg import IndependentConditionGuidance, guided, random_token_bank

    pipe = StableDiffusionPipeline.from_pretrained("stabilityai/stable-diffusion-2-1")
    guider = IndependentConditionGuidance.preset("stable-diffusion")
    guider.set_condition_bank(random_token_bank(pipe, num_rows=64))
    with guided(pipe, guider):
        images = pipe("a cat", guidance_scale=1.0, num_inference_steps=4).images

An unconditional model takes TSG:

    from diffusers import DDPMPipeline
    from toolkit.icg import TimeStepGuidance, guided

    pipe = DDPMPipeline.from_pretrained("google/ddpm-cat-256")
    with guided(pipe, TimeStepGuidance(tsg_scale=3.0, noise_scale=1.25)):
        images = pipe(num_inference_steps=4).images

Both together, and in Modular Diffusers, where a guider is a component:

    from diffusers import ModularPipeline
    from toolkit.icg import CombinedGuidance, IndependentConditionGuidance, TimeStepGuidance

    pipe = ModularPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
    pipe.load_components()
    guider = CombinedGuidance([IndependentConditionGuidance(2.0), TimeStepGuidance(2.0)])
    pipe.update_components(guider=guider)
    images = pipe(prompt="a cat", num_inference_steps=4, output="images")

On exact scores ICG is not classifier-free guidance: its pull does not fade at low noise and it overshoots. Take smaller
scales, and ``sigma_min`` to leave low noise alone. A model distilled for guidance (Flux-dev, LCM) wants scales near 1.

Importing this module loads no torch; the names below are loaded on first use.
"""

from toolkit.lazy import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "IndependentConditionGuidance": "toolkit.icg.guiders.independent_condition_guidance",
        "TimeStepGuidance": "toolkit.icg.guiders.time_step_guidance",
        "CombinedGuidance": "toolkit.icg.guiders.combined_guidance",
        "FrequencyDecoupledGuidance": "toolkit.icg.peers.frequency_decoupled_guidance",
        "SkipLayerGuidance": "toolkit.icg.peers.skip_layer_guidance",
        "SchedulerClock": "toolkit.icg.guiders.clock",
        "guided": "toolkit.icg.guiders.in_pipelines",
        "GuidedDenoiser": "toolkit.icg.guiders.in_denoisers",
        "guided_denoiser": "toolkit.icg.guiders.in_denoisers",
        "encode_prompts": "toolkit.icg.guiders.random_text",
        "random_token_bank": "toolkit.icg.guiders.random_text",
        "find_time_embeddings": "toolkit.icg.guiders.time_embeddings",
    },
)
