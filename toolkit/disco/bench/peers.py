"""The peers of ``toolkit bench disco``: diffusers' UNet2DModel, and the official EDM network from a checkout."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from toolkit.bench import Contender
from toolkit.disco.bench.shared import accelerator as make_accelerator
from toolkit.disco.bench.shared import contender, dataset, disco_config, images
from toolkit.zoo.counting import count_parameters


def diffusers(options: Any) -> Contender:
    """UNet2DModel at equal parameters, trained and sampled with diffusers' own parts."""
    import torch
    from diffusers import DDIMScheduler, DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from torch.nn import functional as F

    from toolkit.disco.build import build_denoiser

    target = count_parameters(build_denoiser(disco_config(options, "none"), dataset(options), with_latents=False))
    accelerator = make_accelerator(options)
    model = _equal_unet2d(options, target).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=10**6)
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    ema.to(options.device)
    noising = DDPMScheduler(num_train_timesteps=1000)
    trained, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    split = dataset(options).train

    def train(num_steps: int) -> None:
        trained.train()
        for index in range(num_steps):
            start = index % 4 * options.batch_size
            y = split.batch(torch.arange(start, start + options.batch_size))[0].to(options.device)
            noise = torch.randn_like(y)
            timesteps = torch.randint(0, 1000, (len(y),), device=y.device).long()
            with accelerator.autocast():
                output = trained(noising.add_noise(y, noise, timesteps), timesteps).sample
            accelerator.backward(F.mse_loss(output.float(), noise.float()))
            accelerator.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            ema.step(trained.parameters())

    @torch.no_grad()
    def sample() -> None:
        """DDIM with as many network calls as our Heun sampler makes."""
        model.eval()
        scheduler = DDIMScheduler(num_train_timesteps=1000)
        scheduler.set_timesteps(2 * options.sampling_steps - 1)
        x = torch.randn(images(options).shape, device=options.device)
        for timestep in scheduler.timesteps:
            x = scheduler.step(model(x, timestep).sample, timestep, x).prev_sample

    return contender(options, count_parameters(model), train, sample)


def _equal_unet2d(options: Any, target: int) -> Any:
    """The UNet2DModel with our levels, blocks and attention whose width brings it nearest to ``target`` parameters."""
    import torch
    from diffusers import UNet2DModel

    def build(width: int) -> Any:
        return UNet2DModel(
            sample_size=options.size_px,
            in_channels=options.channels,
            out_channels=options.channels,
            layers_per_block=options.num_blocks,
            block_out_channels=(width, 2 * width),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=options.width,
        )

    def distance(width: int) -> int:
        with torch.device("meta"):
            return abs(count_parameters(build(width)) - target)

    return build(min(range(8, 4 * options.width, 4), key=distance))


def edm(options: Any) -> Contender:
    """The official ADM network, EDM loss, Adam and EMA, as its training loop does them."""
    import copy

    import torch

    sys.path.insert(0, str(options.edm))
    networks, losses = importlib.import_module("training.networks"), importlib.import_module("training.loss")
    network = networks.EDMPrecond(
        options.size_px,
        options.channels,
        model_type="DhariwalUNet",
        model_channels=options.width,
        channel_mult=[1, 2],
        num_blocks=options.num_blocks,
        attn_resolutions=[options.size_px // 2],
        dropout=0.0,
    ).to(options.device)
    if options.precision == "bf16":  # inside of its preconditioning, which asks for float32
        network.model.forward = _in_half(network.model.forward, make_accelerator(options))
    loss_fn, ema = losses.EDMLoss(), copy.deepcopy(network).eval().requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    split = dataset(options).train

    def train(num_steps: int) -> None:
        for index in range(num_steps):
            start = index % 4 * options.batch_size
            y = split.batch(torch.arange(start, start + options.batch_size))[0].to(options.device)
            optimizer.zero_grad(set_to_none=True)
            loss_fn(net=network, images=y, labels=None).sum().div(len(y)).backward()
            for parameter in network.parameters():
                if parameter.grad is not None:
                    torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
            optimizer.step()
            for averaged, parameter in zip(ema.parameters(), network.parameters(), strict=True):
                averaged.copy_(parameter.detach().lerp(averaged, 0.999))

    def sample() -> None:
        from toolkit.zoo.edm import samplers

        x = images(options) * 80
        levels = samplers.edm_sigmas(options.sampling_steps)
        samplers.heun(lambda x, sigma: network(x, torch.tensor(sigma, device=x.device)), x, levels)

    return contender(options, count_parameters(network), train, sample)


def _in_half(forward: Callable[..., Any], accelerator: Any) -> Callable[..., Any]:
    def run(*args: Any, **keys: Any) -> Any:
        with accelerator.autocast():
            return forward(*args, **keys).float()

    return run
