"""``stage=train``: what the release left out. A base (given, or trained first), then its control network.

He et al. 2024 section 4.1: v-prediction, mean squared error over all frames, AdamW on the control network while the
base stays frozen, 10 % of the texts dropped. ``optim.joint`` trains both together, which is how a small model without a
pretrained base is made.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from toolkit.data.clip_crops import ClipCrops, clip_crops
from toolkit.data.clips import clip_paths
from toolkit.runs.distributed import barrier, rank, world_size
from toolkit.runs.loop import Loop
from toolkit.runs.record import Run
from toolkit.runs.seeds import seed_all
from toolkit.schema import UserError
from toolkit.venhancer.augment import Degraded
from toolkit.venhancer.batches import Batches
from toolkit.venhancer.build import build_base, build_pipeline, build_vae
from toolkit.venhancer.codec import Codec, as_codec
from toolkit.venhancer.conditioning import key_frame_index
from toolkit.venhancer.config import EnhanceVideo, Optim
from toolkit.venhancer.pipeline import VideoEnhancePipeline
from toolkit.zoo.ema import EMA
from toolkit.zoo.registry import count_parameters
from toolkit.zoo.video_unet import VideoUNet


def train(config: EnhanceVideo, run: Run, accelerator: Accelerator) -> None:
    """Train and save a ``VideoEnhancePipeline`` in ``run.path("model")``.

    Raises UserError for clips, networks or sizes that do not fit, before the first step.
    """
    crops = load_crops(config)
    seed_all(config.seed, "base", "init")
    vae = build_vae(config)
    base = build_base(config, as_codec(vae).channels)
    check_crop(config, as_codec(vae), base)
    if not config.optim.base and not config.optim.joint and config.optim.base_num_steps:
        base = _train_base(config, run, accelerator, base, vae, crops)
    seed_all(config.seed, "control", "init")
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
        raise UserError(f"data.crop_px={size}: {error}; network.asymmetric=false takes any size") from None
    if config.optim.batch_size % world_size():
        raise UserError(f"optim.batch_size={config.optim.batch_size}: must be divisible by {world_size()} processes")


class Denoising(nn.Module):
    """The training loss of a network over degraded clips; ``controlled``: with key frames, or the base alone."""

    def __init__(self, pipeline: VideoEnhancePipeline, controlled: bool) -> None:
        super().__init__()
        self.denoiser = pipeline.denoiser
        self.pipeline, self.controlled = [pipeline], controlled  # in a list: no parameters of this module

    def forward(self, batch: Degraded, text: Tensor) -> Tensor:
        """Mean squared error of v at uniformly drawn steps."""
        pipeline = self.pipeline[0]
        x0, hint = latents_of(pipeline, batch)
        step = torch.randint(len(pipeline.scheduler), (len(x0),), device=x0.device)
        noise = torch.randn_like(x0)
        x, target = pipeline.scheduler.add_noise(x0, noise, step), pipeline.scheduler.velocity(x0, noise, step)
        if not self.controlled:
            return functional.mse_loss(self.denoiser.unet(x, step, text).float(), target)
        v = self.denoiser(x, step, text, **conditions(pipeline, batch, hint))
        return functional.mse_loss(v.float(), target)


@torch.no_grad()
def latents_of(pipeline: VideoEnhancePipeline, batch: Degraded) -> tuple[Tensor, Tensor]:
    """x_0 [B, C, F, h, w] of what the pipeline diffuses, and the clean latents of the key frames [B, C, K, h, w]."""
    clean, keys = _encode(pipeline.codec, batch.clean), _encode(pipeline.codec, batch.keys)
    if pipeline.config["diffuses"] == "residuals":
        clean = (clean - _encode(pipeline.codec, batch.fill)) * pipeline.config["residual_scale"]
    return clean, keys


def conditions(pipeline: VideoEnhancePipeline, batch: Degraded, hint: Tensor) -> dict[str, Any]:
    """The control network's arguments: the hint noised to each clip's level, the level and the scale."""
    level = batch.noise_level.to(hint.device)
    step = (level - 1).clamp(min=0)
    noised = pipeline.scheduler.add_noise(hint, torch.randn_like(hint), step)
    hint = torch.where((level > 0)[:, None, None, None, None], noised, hint)
    frames = batch.clean.shape[1]
    index = key_frame_index(0, frames, batch.frame_factor).expand(len(hint), -1).to(hint.device)
    return {"hint": hint, "t_hint": step, "up_scale": batch.scale.to(hint.device), "key_frame_index": index}


def _encode(codec: Codec, frames: Tensor) -> Tensor:
    """[B, F, 3, H, W] -> [B, C, F, h, w]."""
    latents = codec.encode(frames.flatten(0, 1))
    return latents.unflatten(0, frames.shape[:2]).transpose(1, 2)


def _train_base(
    config: EnhanceVideo, run: Run, accelerator: Accelerator, base: VideoUNet, vae: Any, crops: ClipCrops
) -> VideoUNet:
    """The generative prior: v of clean latents, no key frames. Residuals have none, so they need ``joint``."""
    if config.network.diffuses == "residuals":
        raise UserError("network.diffuses=residuals: what is diffused depends on the input; set optim.joint=true")
    pipeline = build_pipeline(config, base)
    denoising = Denoising(pipeline, controlled=False)
    averaged = _optimise(config, run, accelerator, "base", denoising, pipeline.denoiser.unet, crops)
    pipeline.denoiser.unet.load_state_dict(averaged.state_dict())
    return pipeline.denoiser.unet


def _train_control(
    config: EnhanceVideo, run: Run, accelerator: Accelerator, pipeline: VideoEnhancePipeline, crops: ClipCrops
) -> None:
    denoiser = pipeline.denoiser
    denoiser.unet.requires_grad_(config.optim.joint)
    trained = denoiser if config.optim.joint else denoiser.controlnet
    averaged = _optimise(config, run, accelerator, "control", Denoising(pipeline, controlled=True), trained, crops)
    trained.load_state_dict(averaged.state_dict())
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
    """Train ``trained`` inside ``denoising``; returns its average."""
    optim, device = config.optim, accelerator.device
    pipeline = denoising.pipeline[0]
    for part in (denoising, pipeline.vae, pipeline.text_encoder):
        if part is not None:
            part.to(device)
    num_steps = optim.num_steps if stage == "control" else optim.base_num_steps
    ema = EMA(trained, optim.ema_half_life_steps * optim.batch_size, ramp_up_ratio=0.2)
    optimizer = torch.optim.AdamW(
        [one for one in trained.parameters() if one.requires_grad],
        lr=optim.lr,
        betas=(optim.betas[0], optim.betas[1]),
        weight_decay=optim.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
    batches = Batches(config, crops, pipeline, device)
    wrapped: Any = accelerator.prepare_model(denoising)
    trained.train()
    loop = Loop(run, stage, num_steps, state={"model": trained, "optimizer": optimizer, "ema": ema})
    for step in loop:
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * learning_rate_factor(step, num_steps, optim)
        loss = wrapped(*batches(step))
        accelerator.backward(loss)
        norm = nn.utils.clip_grad_norm_(trained.parameters(), optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(optim.batch_size)
        loop.log(loss=loss, grad_norm=norm)
    return ema.model


def learning_rate_factor(step: int, num_steps: int, optim: Optim) -> float:
    """Linear warm-up, then constant or half a cosine down to nothing."""
    warm = min(1.0, (step + 1) / optim.warmup_steps) if optim.warmup_steps else 1.0
    return warm * (0.5 + 0.5 * math.cos(math.pi * step / num_steps)) if optim.decay == "cosine" else warm
