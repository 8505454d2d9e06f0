"""``stage=train``, which the release does not have: a base (given, or trained first), then its control network.

He et al. 2024 section 4.1: v-prediction, mean squared error over all frames, AdamW on the control network while the
base stays frozen, 10 % of the texts dropped. ``optim.joint`` trains both together, which is how a small model without a
pretrained base is made.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from toolkit.data.video.clips import clip_paths
from toolkit.data.video.crops import ClipCrops, clip_crops
from toolkit.errors import UserError
from toolkit.runs.distributed import barrier, rank
from toolkit.runs.loop import Loop
from toolkit.runs.passes import accumulate, own_part, rows, scaler_of, update
from toolkit.runs.record import Run
from toolkit.runs.schedule import learning_rate_factor, share_of_batch
from toolkit.runs.seeds import seed_all
from toolkit.runs.states.sharding import check_sharding, gather, plain_copy, shard, spread_like
from toolkit.venhancer.build import build_base, build_pipeline, build_vae
from toolkit.venhancer.config import EnhanceVideo
from toolkit.venhancer.model.codec import Codec, as_codec
from toolkit.venhancer.pipeline import VideoEnhancePipeline
from toolkit.venhancer.train.batches import Batches
from toolkit.venhancer.train.config import Optim
from toolkit.venhancer.train.held_out import evaluate, held_out_clips
from toolkit.venhancer.train.objective import Denoising
from toolkit.zoo.checkpointing import checkpoint_activations
from toolkit.zoo.counting import count_parameters
from toolkit.zoo.edm.ema import EMA
from toolkit.zoo.video.unet import VideoUNet, layers_of

__all__ = ["evaluate", "train"]


def train(config: EnhanceVideo, run: Run, accelerator: Accelerator) -> None:
    """Train and save a ``VideoEnhancePipeline`` in ``run.path("model")``.

    Raises UserError for clips, networks or sizes that do not fit, before the first step.
    """
    check_sharding(config.optim.sharding, config.precision)
    if "evaluate" in config.stages():
        held_out_clips(config)  # refuse an unknown name now, not after training
    seed_all(config.seed, "base", "init")
    vae = build_vae(config)
    base = build_base(config, as_codec(vae).channels)
    check_crop(config, as_codec(vae), base)
    crops = load_crops(config)
    if config.trains_base:
        with run.stage("base"):
            base = _train_base(config, run, accelerator, base, vae, crops)
    seed_all(config.seed, "train", "init")
    pipeline = build_pipeline(config, base)
    _train_control(config, run, accelerator, pipeline, crops)


def load_crops(config: EnhanceVideo) -> ClipCrops:
    """The training clips, cut up. Raises UserError where there are none."""
    data = config.data
    paths = clip_paths(data.name, data.path)
    return clip_crops(paths, data.num_crops, data.num_frames, data.crop_px, data.rate_fps, config.seed)


def check_crop(config: EnhanceVideo, codec: Codec, base: VideoUNet) -> None:
    """Raises UserError for a crop that is no whole number of latents, or a size that the network does not take."""
    size = config.data.crop_px
    if size % codec.factor:
        raise UserError(f"data.crop_px={size}: must be a multiple of {codec.factor}, the codec's pixels per latent")
    try:
        base.check_size(size // codec.factor, size // codec.factor)
    except ValueError as error:
        which = f"init={config.init}: pads oddly, as the release does" if config.init else "network.asymmetric=true"
        raise UserError(f"data.crop_px={size}: {error} ({which}); crops are square: take a base without that") from None
    share_of_batch(config.optim.batch_size, item_bytes=config.data.num_frames * 3 * size**2 * 4)


def _train_base(
    config: EnhanceVideo, run: Run, accelerator: Accelerator, base: VideoUNet, vae: Any, crops: ClipCrops
) -> VideoUNet:
    """The generative prior: v of clean latents, no key frames. Residuals have none, so they need ``joint``."""
    if config.network.diffuses == "residuals":
        raise UserError("network.diffuses=residuals: what is diffused depends on the input; set optim.joint=true")
    pipeline = build_pipeline(config, base)
    denoising = Denoising(pipeline, controlled=False, step_weighting=config.optim.step_weighting)
    averaged = _optimise(config, run, accelerator, "base", denoising, pipeline.denoiser.unet, crops)
    pipeline.denoiser.unet.load_state_dict(averaged.state_dict())
    return pipeline.denoiser.unet


def _train_control(
    config: EnhanceVideo, run: Run, accelerator: Accelerator, pipeline: VideoEnhancePipeline, crops: ClipCrops
) -> None:
    denoiser = pipeline.denoiser
    denoiser.unet.requires_grad_(config.optim.joint)
    trained = denoiser if config.optim.joint else denoiser.controlnet
    denoising = Denoising(pipeline, controlled=True, step_weighting=config.optim.step_weighting)
    averaged = _optimise(config, run, accelerator, "train", denoising, trained, crops)
    denoiser = pipeline.denoiser
    (denoiser if config.optim.joint else denoiser.controlnet).load_state_dict(averaged.state_dict())
    run.record["parameters"] = {
        "base": count_parameters(denoiser.unet),
        "control": count_parameters(denoiser.controlnet),
    }
    if rank() == 0:
        pipeline.save_pretrained(run.path("model"))
    barrier()


def _optimise(
    config: EnhanceVideo,
    run: Run,
    accelerator: Accelerator,
    stage: str,
    denoising: Denoising,
    trained: nn.Module,
    crops: ClipCrops,
) -> nn.Module:
    """Train ``trained`` inside ``denoising``; returns its average.

    With ``optim.sharding`` the pipeline has another denoiser afterwards, in which nothing is spread.
    """
    optim, device = config.optim, accelerator.device
    pipeline = denoising.pipeline[0]
    for part in (denoising, pipeline.vae, pipeline.text_encoder):
        if part is not None:
            part.to(device)
    num_steps = optim.num_steps if stage == "train" else optim.base_num_steps
    ema = EMA(trained, optim.ema_half_life_images, ramp_up_ratio=0.2)
    plain = plain_copy(pipeline.denoiser, optim.sharding)
    batches = Batches(config, crops, pipeline, device)
    if optim.gradient_checkpointing:
        checkpoint_activations(pipeline.denoiser)
    if config.compile:
        pipeline.denoiser.compile()
    if optim.sharding == "fsdp":
        wrapped: Any = shard(denoising, layers_of(denoising))
        spread_like(ema.model, trained)
    else:
        wrapped = accelerator.prepare_model(denoising)
    optimizer = _optimizer(trained, optim)
    trained.train()
    state: dict[str, Any] = {"model": trained, "optimizer": optimizer, "ema": ema} | scaler_of(accelerator)
    loop = Loop(run, stage, num_steps, state)
    for step in loop:
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * learning_rate_factor(step, num_steps, optim.schedule, optim.warmup_steps)
        batch, text = batches(step)
        drawn = loop.alike(functools.partial(denoising.draw, batch, optim.batch_size))
        parts = (batch, text, rows(drawn, own_part(optim.batch_size)))
        terms = accumulate(wrapped, parts, optim.micro_batch_size, accelerator)
        norm = update(optimizer, trained.parameters(), optim.grad_clip, accelerator)
        ema.update(optim.batch_size)
        loop.log(**terms, grad_norm=norm)
    gather(ema.model)
    pipeline.register_modules(denoiser=plain.to(device))
    return ema.model


def _optimizer(trained: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    parameters = [one for one in trained.parameters() if one.requires_grad]
    return torch.optim.AdamW(
        parameters,
        lr=optim.lr,
        betas=(optim.betas[0], optim.betas[1]),
        weight_decay=optim.weight_decay,
        fused=parameters[0].device.type in ("cpu", "cuda"),
    )
