"""``toolkit bench icg``: what the guiders cost, against diffusers' own classifier-free guidance in the same loop.

Contenders on a UNet2DConditionModel (in StableDiffusionPipeline), on a DiT (in DiTPipeline) and on an MMDiT
(SD3Transformer2DModel in StableDiffusion3Pipeline), random weights:
  ours          ICG by ``guided``, two calls a step
  native        the pipeline's own classifier-free guidance: one forward of twice the rows
  cfg           diffusers' ClassifierFreeGuidance by ``guided``: the same loop as ours, two calls a step
  tsg           TSG, two calls; icg_tsg both, three calls
  batched       ICG with one forward of twice the rows
  batched_tsg   TSG with one forward of twice the rows
  half          ICG within an interval that holds half of the steps: 1.5 calls a step
  none          no guidance: one call a step
Text is encoded and latents are decoded outside of what is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from toolkit.bench import BenchOptions, Contender, Makers, parse_options, run_bench
from toolkit.schema import choice, number
from toolkit.zoo.counting import count_parameters

CONTENDERS = ("ours", "native", "cfg", "tsg", "icg_tsg", "batched", "batched_tsg", "half", "none")
LENGTH, CROSS_WIDTH, NUM_CLASSES = 77, 64, 1000
NEGATIVES = {  # a network's input -> the pipeline's argument with its null condition
    "encoder_hidden_states": "negative_prompt_embeds",
    "pooled_projections": "negative_pooled_prompt_embeds",
}


@dataclass
class Options(BenchOptions):
    """key=value options of the benchmark."""

    network: str = choice("all", "all", "unet", "dit", "mmdit")
    size_px: int = number(16, least=8)
    width: int = number(32, least=32)
    depth: int = number(4, least=1)
    batch_size: int = number(4, least=1)
    num_steps: int = number(10, least=2)


def main(words: list[str]) -> int:
    """Time every contender and print the table; ``out=FILE`` also writes it as JSON. Returns the exit code."""
    options = parse_options(Options, words)
    note = f"latents {options.size_px}x{options.size_px}, batch {options.batch_size}, {options.num_steps} DDIM steps"
    return run_bench("icg", options, contenders(options), "images", note)


def contenders(options: Options) -> Makers:
    """Name -> function that builds it."""
    return {name: partial(build, options, name) for name in CONTENDERS}


def build(options: Options, name: str) -> Contender:
    """One contender with a task per network; each task draws one batch."""
    import logging

    logging.getLogger("diffusers.guiders.guider_utils").setLevel(logging.ERROR)
    makers = {"unet": unet_pipeline, "dit": dit_pipeline, "mmdit": mmdit_pipeline}
    chosen = makers if options.network == "all" else {options.network: makers[options.network]}
    tasks: dict[str, Callable[[], float]] = {}
    parameters = 0
    for network, make in chosen.items():
        pipe, arguments, null = make(options)
        tasks[network] = partial(
            sample, pipe, arguments | own_guidance(null, name), guidance(pipe, null, name), options
        )
        denoiser = getattr(pipe, "transformer", None) or pipe.unet
        parameters += count_parameters(denoiser)
    return Contender(tasks, parameters)


def sample(
    pipe: Any, arguments: dict[str, Any], context: Callable[[], AbstractContextManager[Any]], options: Options
) -> float:
    """Draw one batch; the number of images."""
    import torch

    generator = torch.Generator(options.device).manual_seed(0)
    with torch.no_grad(), context():
        pipe(**arguments, generator=generator, num_inference_steps=options.num_steps)
    return options.batch_size


def own_guidance(null: dict[str, Any], name: str) -> dict[str, Any]:
    """The pipeline's arguments that switch its own guidance on, for ``native``, or off."""
    if name != "native":
        return {"guidance_scale": 1.0}
    negative = {NEGATIVES[field]: value for field, value in null.items() if field in NEGATIVES}
    return {"guidance_scale": 3.0} | negative


def guidance(pipe: Any, null: dict[str, Any], name: str) -> Callable[[], AbstractContextManager[Any]]:
    """A function that makes a context within which the pipeline has the guidance of one contender."""
    from diffusers.guiders import ClassifierFreeGuidance

    from toolkit.icg import CombinedGuidance, IndependentConditionGuidance, TimeStepGuidance, guided

    if name in ("none", "native"):
        return nullcontext
    if name == "cfg":
        cfg = ClassifierFreeGuidance(3.0)
        return lambda: guided(pipe, cfg, null=null)
    icg, tsg = IndependentConditionGuidance(3.0), TimeStepGuidance(2.5)
    chosen = {"half": icg.new(start=0.5), "icg_tsg": CombinedGuidance([icg, tsg])}
    guider = chosen.get(name, tsg if name.endswith("tsg") else icg)
    return lambda: guided(pipe, guider, batched=name.startswith("batched"))


def unet_pipeline(options: Options) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """StableDiffusionPipeline around a UNet; its arguments; the null condition."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=options.size_px,
        block_out_channels=(options.width, 2 * options.width),
        layers_per_block=max(1, options.depth // 2),
        cross_attention_dim=CROSS_WIDTH,
        attention_head_dim=options.width // 8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    pipe = StableDiffusionPipeline(
        None, None, None, unet, scheduler, None, None, requires_safety_checker=False
    ).to(options.device)  # fmt: skip
    text, empty = torch.randn(2, options.batch_size, LENGTH, CROSS_WIDTH, device=options.device)
    side = options.size_px * pipe.vae_scale_factor
    arguments = {"prompt_embeds": text, "height": side, "width": side}
    return _quiet(pipe), arguments | {"output_type": "latent"}, {"encoder_hidden_states": empty}


def dit_pipeline(options: Options) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """DiTPipeline around a transformer, with a decoder that does nothing; its arguments; the null class."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        sample_size=options.size_px,
        num_layers=options.depth,
        num_attention_heads=4,
        attention_head_dim=options.width // 2,
        in_channels=4,
        out_channels=8,
        patch_size=2,
        num_embeds_ada_norm=NUM_CLASSES,
    ).eval()
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, layers_per_block=1)
    pipe = DiTPipeline(model, vae, DDIMScheduler(clip_sample=False)).to(options.device)
    labels = [number % NUM_CLASSES for number in range(options.batch_size)]
    return _quiet(pipe), {"class_labels": labels, "output_type": "np"}, {"class_labels": NUM_CLASSES}


def mmdit_pipeline(options: Options) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """StableDiffusion3Pipeline around a transformer of text and image tokens; its arguments; the null condition."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=options.size_px,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=options.depth,
        num_attention_heads=4,
        attention_head_dim=options.width // 2,
        joint_attention_dim=CROSS_WIDTH,
        caption_projection_dim=2 * options.width,
        pooled_projection_dim=CROSS_WIDTH,
        pos_embed_max_size=options.size_px,
    ).eval()
    pipe = StableDiffusion3Pipeline(
        model, FlowMatchEulerDiscreteScheduler(), None, *[None] * 6
    ).to(options.device)  # fmt: skip
    text, empty = torch.randn(2, options.batch_size, LENGTH, CROSS_WIDTH, device=options.device)
    pooled, empty_pooled = torch.randn(2, options.batch_size, CROSS_WIDTH, device=options.device)
    side = options.size_px * pipe.vae_scale_factor
    arguments = {"prompt_embeds": text, "pooled_prompt_embeds": pooled, "height": side, "width": side}
    null = {"encoder_hidden_states": empty, "pooled_projections": empty_pooled}
    return _quiet(pipe), arguments | {"output_type": "latent"}, null


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe
