"""``toolkit bench disco``: our training step and sampler against peers, side by side in one process.

Contenders at equal parameters, same shapes, same threads:
  ours       the ADM denoiser without latents, trained by job.train_step (loss, AdamW, EMA, logging, checkpoint loop)
  bare       the same network's forward, backward and fused AdamW alone: the limit of any loop
  disco      ours with encoder and latents, for what they cost
  diffusers  UNet2DModel trained as diffusers' unconditional example does it: DDPM noise, MSE, AdamW, clipping, EMA
  edm        the official network and loss, from a checkout of NVlabs/edm that the user names (edm=PATH)
Runs are interleaved (one round of every contender, then the next), and medians over rounds are reported.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.schema import UserError, check, choice, did_you_mean, number


@dataclass
class Options:
    """key=value options of the benchmark."""

    size_px: int = number(16, least=8)
    channels: int = number(3, least=1)
    width: int = number(32, least=16)
    num_blocks: int = number(1, least=1)
    batch_size: int = number(64, least=1)
    num_steps: int = number(5, least=1)
    num_rounds: int = number(7, least=1)
    sampling_steps: int = number(9, least=1)
    threads: int | None = number(None, least=1)
    device: str = choice("cpu", "cpu", "cuda")
    allocator: str = choice("tuned", "tuned", "default")
    edm: str | None = None
    out: str | None = None
    only: str | None = None


def main(words: list[str]) -> int:
    """Time every contender and print the table; ``out=FILE`` also writes it as JSON. Returns the exit code."""
    options = parse(words)
    if options.only:  # the child process that measures one contender's peak memory
        print(json.dumps(_peak_memory(options)))
        return 0
    from rich.console import Console

    results = run(options)
    Console().print(_table(options, results).to_rich())
    if options.out:
        from toolkit.runs.files import write_json

        write_json(options.out, {"options": dataclasses.asdict(options), "results": results})
    return 0


def parse(words: list[str]) -> Options:
    """Options from ``key=value`` words. Raises UserError naming the key."""
    options = Options()
    kinds = {item.name: item.type for item in dataclasses.fields(Options)}
    for word in words:
        key, _, value = word.partition("=")
        if key not in kinds or not value:
            raise UserError(f"{word}: {did_you_mean(key, kinds)}options are {', '.join(f'{k}=' for k in kinds)}")
        try:
            setattr(options, key, int(value) if str(kinds[key]).startswith("int") else value)
        except ValueError:
            raise UserError(f"{word}: must be a whole number") from None
    check(options)
    if options.edm and not (Path(options.edm) / "training" / "networks.py").exists():
        raise UserError(f"edm={options.edm}: no checkout of NVlabs/edm there (training/networks.py is missing)")
    return options


def run(options: Options) -> dict[str, Any]:
    """Median images per second of training and sampling, parameters and peak memory of each contender."""
    _prepare(options)
    contenders = {name: make(options) for name, make in _contenders(options).items()}
    train: dict[str, list[float]] = {name: [] for name in contenders}
    sample: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():  # warm-up
        contender.train(1)
        contender.sample()
    for _ in range(options.num_rounds):
        for name, contender in contenders.items():
            train[name].append(options.batch_size * options.num_steps / _timed(contender.train, options.num_steps))
        for name, contender in contenders.items():
            sample[name].append(options.batch_size / _timed(contender.sample))
    return {
        name: {
            "parameters": contender.parameters,
            "train_images_per_s": statistics.median(train[name]),
            "train_ratio_to_ours": statistics.median(a / b for a, b in zip(train["ours"], train[name], strict=True)),
            "sample_images_per_s": statistics.median(sample[name]),
            "sample_ratio_to_ours": statistics.median(a / b for a, b in zip(sample["ours"], sample[name], strict=True)),
            "peak_memory_mib": _child_memory(options, name),
        }
        for name, contender in contenders.items()
    }


def _prepare(options: Options) -> None:
    """Threads and allocator, for every contender alike: train-disco tunes glibc's, which helps its peers too."""
    import torch

    from toolkit.runs.device import keep_freed_memory

    if options.threads:
        torch.set_num_threads(options.threads)
    if options.allocator == "tuned":
        keep_freed_memory()


@dataclass
class Contender:
    """``train(n)`` does n optimiser steps, ``sample()`` one batch of samples with 2 sampling_steps - 1 evaluations."""

    parameters: int
    train: Callable[[int], None]
    sample: Callable[[], None]


def _contenders(options: Options) -> dict[str, Callable[[Options], Contender]]:
    found: dict[str, Callable[[Options], Contender]] = {
        "ours": lambda o: _ours(o, "none"),
        "bare": _bare,
        "disco": lambda o: _ours(o, "discrete"),
        "diffusers": _diffusers,
    }
    return found | ({"edm": _edm} if options.edm else {})


def _config(options: Options, latents: str) -> Any:
    from toolkit.disco.config import ADM, Encoder, Latents, Measure, Optim, TrainDisco

    size = options.size_px // 2
    network = ADM(
        width=options.width,
        width_multipliers=[1, 2],
        num_blocks=options.num_blocks,
        attention_resolutions=[size],
        channels_per_head=64,
        dropout=0.0,
    )
    encoder = Encoder(width=64, depth=2, num_heads=4, patch_size=max(2, options.size_px // 4))
    return TrainDisco(
        network=network,
        latents=Latents(
            kind=latents, num_latents=4, codebook_size=8, width=32, num_layers=0, num_heads=4, encoder=encoder
        ),
        optim=Optim(batch_size=options.batch_size, num_steps=10**9),
        measure=Measure(),
        checkpoint_every_steps=10**9,
        log_every_steps=50,
    )


def _batch(options: Options) -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (options.batch_size, options.channels, options.size_px, options.size_px)
    return (torch.rand(shape, generator=generator) * 2 - 1).to(options.device)


def _dataset(options: Options) -> Any:
    """Random images: speed does not depend on what they show."""
    import numpy as np
    import torch

    from toolkit.data.sets import Dataset, MemorySplit

    shape = (4 * options.batch_size, options.channels, options.size_px, options.size_px)
    values = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    split = MemorySplit(values)
    return Dataset("random", split, split, split, 0, (), "generated", "generated")


def _ours(options: Options, latents: str) -> Contender:
    """The job's own pieces: the stream, JointModel, train_step and the Loop with its logging."""
    import tempfile

    from accelerate import Accelerator

    from toolkit.disco.build import build_denoiser, build_encoder, count
    from toolkit.disco.job import device_batches, make_optimizer, train_step
    from toolkit.disco.stage1 import JointModel
    from toolkit.runs.loop import Loop
    from toolkit.runs.record import Run
    from toolkit.zoo.ema import EMA

    config, dataset = _config(options, latents), _dataset(options)
    accelerator = Accelerator(cpu=options.device == "cpu")
    denoiser = build_denoiser(config, dataset, latents != "none")
    joint = JointModel(denoiser, build_encoder(config, dataset), config).to(options.device)
    ema, optimizer = EMA(denoiser, 50e6), make_optimizer(joint, config)
    run = Run(tempfile.mkdtemp(prefix="bench-"), config)
    run.record = {"stages": {"denoiser": {}}}
    loop = Loop(run, "denoiser", 10**9, state={})
    trained, batches = accelerator.prepare_model(joint), device_batches(dataset, config, accelerator)
    steps = iter(loop)

    def train(num_steps: int) -> None:
        for _ in range(num_steps):
            step = next(steps)
            train_step(step, trained, joint, optimizer, ema, batches(step), loop, config, accelerator)

    return Contender(count(denoiser), train, _our_sampler(options, config, denoiser))


def _our_sampler(options: Options, config: Any, denoiser: Any) -> Callable[[], None]:
    import torch

    from toolkit.disco.sampling import draw_samples

    config.sampling.batch_size, config.sampling.num_steps = options.batch_size, options.sampling_steps
    latents = None
    if denoiser.num_latents:
        latents = torch.zeros(options.batch_size, denoiser.num_latents, dtype=torch.int64, device=options.device)

    def sample() -> None:
        generator = torch.Generator(options.device).manual_seed(0)
        denoiser.eval()
        draw_samples(denoiser, latents, options.batch_size, config.sampling, generator)
        denoiser.train()

    return sample


def _bare(options: Options) -> Contender:
    """Forward, backward and optimiser of our network on a fixed batch; sampling: as many bare forwards."""
    import torch

    from toolkit.disco.build import build_denoiser, count

    config = _config(options, "none")
    denoiser = build_denoiser(config, _dataset(options), with_latents=False).to(options.device)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-3, fused=options.device in ("cpu", "cuda"))
    y = _batch(options)
    sigma = torch.ones(len(y), device=y.device)

    def train(num_steps: int) -> None:
        for _ in range(num_steps):
            loss = (denoiser(y, sigma) - y).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def sample() -> None:
        denoiser.eval()
        for _ in range(2 * options.sampling_steps - 1):
            denoiser(y, sigma[0])
        denoiser.train()

    return Contender(count(denoiser), train, sample)


def _diffusers(options: Options) -> Contender:
    """UNet2DModel at equal parameters, trained and sampled with diffusers' own parts."""
    import torch
    from accelerate import Accelerator
    from diffusers import DDIMScheduler, DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    from toolkit.disco.build import build_denoiser, count

    target = count(build_denoiser(_config(options, "none"), _dataset(options), with_latents=False))
    accelerator = Accelerator(cpu=options.device == "cpu")
    model = _equal_unet2d(options, target).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=10**6)
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    ema.to(options.device)
    noising = DDPMScheduler(num_train_timesteps=1000)
    trained, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    split = _dataset(options).train

    def train(num_steps: int) -> None:
        trained.train()
        for index in range(num_steps):
            start = index % 4 * options.batch_size
            y = split.batch(torch.arange(start, start + options.batch_size))[0].to(options.device)
            noise = torch.randn_like(y)
            timesteps = torch.randint(0, 1000, (len(y),), device=y.device).long()
            output = trained(noising.add_noise(y, noise, timesteps), timesteps).sample
            accelerator.backward(torch.nn.functional.mse_loss(output.float(), noise.float()))
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
        x = torch.randn(_batch(options).shape, device=options.device)
        for timestep in scheduler.timesteps:
            x = scheduler.step(model(x, timestep).sample, timestep, x).prev_sample

    return Contender(count(model), train, sample)


def _equal_unet2d(options: Options, target: int) -> Any:
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
            return abs(sum(p.numel() for p in build(width).parameters()) - target)

    return build(min(range(8, 4 * options.width, 4), key=distance))


def _edm(options: Options) -> Contender:
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
    loss_fn, ema = losses.EDMLoss(), copy.deepcopy(network).eval().requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    split = _dataset(options).train

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
        from toolkit.zoo import samplers

        x = _batch(options) * 80
        levels = samplers.edm_sigmas(options.sampling_steps)
        samplers.heun(lambda x, sigma: network(x, torch.tensor(sigma, device=x.device)), x, levels)

    return Contender(sum(p.numel() for p in network.parameters()), train, sample)


def _timed(action: Callable[..., None], *arguments: Any) -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    action(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _child_memory(options: Options, name: str) -> float:
    """Peak memory of one contender alone, in a process of its own, above what importing it takes."""
    asked = dataclasses.replace(options, only=name, out=None)
    words = [f"{key}={value}" for key, value in dataclasses.asdict(asked).items() if value is not None]
    done = subprocess.run(
        [sys.executable, "-m", "toolkit.cli", "bench", "disco", *words], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])["mib"]


def _peak_memory(options: Options) -> dict[str, float]:
    """How far five training steps raise the memory above what the contender took before its first one."""
    import torch

    _prepare(options)
    contender = _contenders(options)[str(options.only)](options)
    if options.device == "cuda":
        contender.train(5)
        return {"mib": torch.cuda.max_memory_allocated() / 2**20}
    before, peak, done = _resident_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    contender.train(5)
    done.set()
    watcher.join()
    return {"mib": (peak - before) / 2**20}


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _table(options: Options, results: dict[str, Any]) -> Any:
    from toolkit.runs.table import Table

    columns = ["contender", "parameters", "train", "ours / it", "sample", "ours / it", "MiB"]
    note = (
        f"images per second, medians of {options.num_rounds} rounds of {options.num_steps} steps; "
        f"{options.channels}x{options.size_px}x{options.size_px}, batch {options.batch_size}, "
        f"{options.allocator} allocator; MiB: growth in training"
    )
    return Table("bench disco", columns, [[name, *row.values()] for name, row in results.items()], note)
