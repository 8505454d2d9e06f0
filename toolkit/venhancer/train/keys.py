"""``stage=train_keys``: a network that enlarges key frames by 4, trained to give the picture they were made from.

Regression in pixels on single pictures: photographs, film frames and dead leaves, made smaller by antialiased bicubic
and rounded to 8 bits, as ``degrade.scale`` does it; a few of them blurred and compressed besides. The loss is
Charbonnier's (Lai et al. 2017), which is the absolute error but for the smallest errors.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageFilter
from torch import Tensor, nn

from toolkit import zoo
from toolkit.data.stills.crops import StillCrops, open_rgb, still_crops
from toolkit.data.stills.photographs import photographs
from toolkit.data.video.clips import clip_paths
from toolkit.errors import UserError
from toolkit.metrics.video import decibel, squared_error
from toolkit.runs.distributed import barrier, rank
from toolkit.runs.loop import Loop
from toolkit.runs.passes import accumulate, own_part, scaler_of, update
from toolkit.runs.record import Run
from toolkit.runs.schedule import learning_rate_factor, share_of_batch
from toolkit.runs.seeds import derive, seed_all
from toolkit.show.table import Table
from toolkit.venhancer.config import EnhanceVideo
from toolkit.venhancer.train.muon import Muon, split
from toolkit.zoo.checkpointing import checkpoint_activations
from toolkit.zoo.counting import count_parameters
from toolkit.zoo.edm.ema import EMA
from toolkit.zoo.video.upscaler import FrameUpscaler

FACTOR = 4
EPSILON = 0.05 / 255  # of the loss: errors above it count by their absolute value
BLUR_PX = (0.2, 0.7)  # standard deviation at the small size, of inputs that are treated as films are
QUALITY = (80, 95)  # of their JPEG compression
BORDER_PX, MOST_PX, REDUCE_ABOVE_PX = 8, 480, 700  # of the pictures held out: what is measured of them


def train(config: EnhanceVideo, run: Run, accelerator: Accelerator) -> None:
    """Train and save a ``FrameUpscaler`` in ``run.path("model")``.

    Raises UserError for crops that do not fit, pictures that cannot be had or an ``init`` of another form, before the
    first step.
    """
    optim, device = config.optim, accelerator.device
    network = first_network(config)
    if optim.gradient_checkpointing:
        checkpoint_activations(network)
    crops = load_crops(config)
    nn.Module.to(network, device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = EMA(network, optim.ema_half_life_images, ramp_up_ratio=0.2)
    optimizers = make_optimizers(config, network)
    if config.compile:
        network.compile()
    wrapped: Any = accelerator.prepare_model(Enlarging(network))
    batches = Batches(config, crops, device)
    network.train()
    state: dict[str, Any] = {"model": network, **optimizers, "ema": ema} | scaler_of(accelerator)
    loop = Loop(run, "train_keys", optim.num_steps, state)
    for step in loop:
        factor = learning_rate_factor(step, optim.num_steps, optim.schedule, optim.warmup_steps)
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * factor
        terms = accumulate(wrapped, batches(step), optim.micro_batch_size, accelerator)
        norm = update([*optimizers.values()], network.parameters(), optim.grad_clip, accelerator)
        ema.update(optim.batch_size)
        loop.log(**terms, grad_norm=norm)
    run.record["parameters"] = {"upscaler": count_parameters(network)}
    if rank() == 0:
        averaged: Any = ema.model
        averaged.save_pretrained(run.path("model"))
    barrier()


def make_optimizers(config: EnhanceVideo, network: FrameUpscaler) -> dict[str, torch.optim.Optimizer]:
    """Muon for kernels between the first and the last layer, if ``upscaler.muon_lr`` is set; AdamW for the rest."""
    optim, muon_lr = config.optim, config.upscaler.muon_lr
    kernels, rest = split(network, [network.blocks, network.exit] if muon_lr else [])
    betas = (optim.betas[0], optim.betas[1])
    found: dict[str, torch.optim.Optimizer] = {
        "optimizer": torch.optim.AdamW(rest, lr=optim.lr, betas=betas, weight_decay=optim.weight_decay)
    }
    return found | ({"muon": Muon(kernels, muon_lr)} if muon_lr else {})


def first_network(config: EnhanceVideo) -> FrameUpscaler:
    """The network before its first step: ``init``'s, or a new one. Raises UserError for an ``init`` of another form."""
    asked = {"factor": FACTOR, "channels": config.upscaler.channels, "num_blocks": config.upscaler.num_blocks}
    if config.init is None:
        seed_all(config.seed, "train_keys", "init")
        return FrameUpscaler(**asked)
    network = zoo.load(config.init).float()
    if not isinstance(network, FrameUpscaler):
        raise UserError(f"init={config.init}: holds a {type(network).__name__}; stage=train_keys goes on from its own")
    found = {key: network.config[key] for key in asked}
    if found != asked:
        raise UserError(f"init={config.init}: has {found}; upscaler.channels and upscaler.num_blocks must say the same")
    return network


class Enlarging(nn.Module):
    """A network and its loss in one module, so that it can be trained on several processes."""

    def __init__(self, network: FrameUpscaler) -> None:
        super().__init__()
        self.network = network

    def forward(self, small: Tensor, truth: Tensor) -> Tensor:
        """Charbonnier's loss of pictures (B, 3, h, w) and (B, 3, 4h, 4w) in [0, 1]."""
        return ((self.network(small) - truth).square() + EPSILON**2).sqrt().mean()


def load_crops(config: EnhanceVideo) -> StillCrops:
    """What is trained on. Raises UserError for a patch that does not fit."""
    data, size, patch = config.data, config.data.crop_px, config.upscaler.patch_px
    if patch % FACTOR or patch > size:
        fits = f"a multiple of {FACTOR}, by which the network enlarges, and at most data.crop_px={size}"
        raise UserError(f"upscaler.patch_px={patch}: must be {fits}")
    share_of_batch(config.optim.batch_size, item_bytes=2 * 3 * patch**2 * 4)
    pictures = photographs() if config.upscaler.photographs else []
    films = clip_paths(data.name, data.path) if config.upscaler.films else []
    drawn_share = config.upscaler.drawn_share
    return still_crops(pictures, films, config.upscaler.left_out_s, data.num_crops, size, drawn_share)


class Batches:
    """``batches(step)``: (small, truth), float32 (B, 3, h, w) and (B, 3, 4h, 4w) in [0, 1], this process's share.

    A function of the step alone, so that a resumed run sees what it would have seen.
    """

    def __init__(self, config: EnhanceVideo, crops: StillCrops, device: torch.device) -> None:
        self.config, self.crops, self.device = config, crops, device

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        size = self.config.optim.batch_size
        rng = np.random.default_rng(derive(self.config.seed, "stills", step))  # equal on every process
        wanted = rng.integers(0, len(self.crops), size)
        turns, swaps = rng.integers(0, 8, size), [rng.permutation(3) for _ in range(size)]
        as_film = rng.random(size) < self.config.upscaler.film_share
        blurs, qualities = rng.uniform(*BLUR_PX, size), rng.integers(QUALITY[0], QUALITY[1] + 1, size)
        patch, part = self.config.upscaler.patch_px, own_part(size)
        corners = rng.integers(0, self.config.data.crop_px - patch + 1, (size, 2))
        mine = range(part.start, part.stop)
        crops = self.crops.read([int(wanted[index]) for index in mine])
        truth = torch.empty((len(mine), 3, patch, patch), dtype=torch.uint8)
        for place, index in enumerate(mine):
            top, left = corners[index]
            one = crops[place][swaps[index].tolist(), top : top + patch, left : left + patch]
            truth[place] = turned(one, int(turns[index]))
        small = reduce(truth)
        for place, index in enumerate(mine):
            if as_film[index]:
                small[place] = _as_film(small[place], float(blurs[index]), int(qualities[index]))
        layout = torch.channels_last
        return tuple(one.to(self.device).float().div(255).contiguous(memory_format=layout) for one in (small, truth))  # type: ignore[return-value]


def reduce(pictures: Tensor, factor: int = FACTOR) -> Tensor:
    """uint8 (B, 3, H, W) made ``factor`` times smaller by antialiased bicubic, rounded to uint8."""
    size = (pictures.shape[-2] // factor, pictures.shape[-1] // factor)
    small = nn.functional.interpolate(pictures.float(), size=size, mode="bicubic", antialias=True)
    return small.round_().clamp_(0, 255).to(torch.uint8)


def turned(picture: Tensor, number: int) -> Tensor:
    """One of the eight ways in which a picture (..., H, W) can lie: from 4 on mirrored, then turned by quarters."""
    picture = picture.flip(-1) if number & 4 else picture
    return torch.rot90(picture, number & 3, (-2, -1))


def _as_film(small: Tensor, blur_px: float, quality: int) -> Tensor:
    """uint8 (3, h, w), blurred and compressed."""
    image = Image.fromarray(small.permute(1, 2, 0).contiguous().numpy()).filter(ImageFilter.GaussianBlur(blur_px))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)


def evaluate(config: EnhanceVideo, run: Run, accelerator: Accelerator) -> None:
    """PSNR on photographs that training never saw, beside bicubic's: ``held_out.*`` in the metrics, and a table."""
    if rank() == 0:
        network = zoo.load(run.dir, device=accelerator.device)
        rows = [[path.name, *_scores(network, path)] for path in photographs(held_out=True)]
        ours, bicubic = (float(np.mean([row[column] for row in rows])) for column in (1, 2))
        run.add_metrics("held_out", {"psnr": ours, "psnr_bicubic": bicubic, "gain": ours - bicubic})
        note = f"PSNR of RGB in dB, 4 times, {BORDER_PX} pixels of border left out"
        Table("held-out photographs", ["picture", "network", "bicubic"], rows, note).save(
            run.path("tables", "held_out.json")
        )
    barrier()


@torch.no_grad()
def _scores(network: FrameUpscaler, path: Any) -> tuple[float, float]:
    """PSNR of the network and of bicubic enlargement on the middle of one picture."""
    image = open_rgb(path)
    image = open_rgb(path, 640) if max(image.size) > REDUCE_ABOVE_PX else image
    width, height = (min(MOST_PX, side) // FACTOR * FACTOR for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.array(image.crop((left, top, left + width, top + height)))
    truth = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    small = reduce(truth).float().div(255).to(next(network.parameters()).device)
    plain = nn.functional.interpolate(small, scale_factor=FACTOR, mode="bicubic", align_corners=False)
    return inner_psnr(network(small), truth), inner_psnr(plain, truth)


def inner_psnr(enlarged: Tensor, truth: Tensor) -> float:
    """PSNR in dB of ``enlarged`` (1, 3, H, W) in [0, 1], rounded to 8 bits, without its border; ``truth`` is uint8."""
    inner = (..., slice(BORDER_PX, -BORDER_PX), slice(BORDER_PX, -BORDER_PX))
    rounded = enlarged.mul(255).round().clamp(0, 255).cpu()
    return decibel(squared_error(rounded[inner], truth[inner].float()))
