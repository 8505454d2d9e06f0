"""``toolkit bench disco``: our training step and sampler against peers, side by side in one process.

Contenders at equal parameters, same shapes, same threads:
  ours       the ADM denoiser without latents, trained by job.train_step (loss, AdamW, EMA, logging, checkpoint loop)
  bare       the same network's forward, backward and fused AdamW alone: the limit of any loop
  convolutions  its convolutions alone, forward and backward: the limit of anything that leaves these to torch
  disco      ours with encoder and latents, for what they cost
  diffusers  UNet2DModel trained as diffusers' unconditional example does it: DDPM noise, MSE, AdamW, clipping, EMA
  edm        the official network and loss, from a checkout of NVlabs/edm that the user names (edm=PATH)
  edm_fp32   the same in float32, as its code is written, where precision=bf16 has all others in bfloat16
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from toolkit.bench import Contender, Makers, endless_loop, parse_options, run_bench
from toolkit.disco.bench.shared import Options, contender, dataset, disco_config, images
from toolkit.disco.bench.shared import accelerator as make_accelerator
from toolkit.zoo.counting import count_parameters


def main(words: list[str]) -> int:
    """Time every contender and print the table; ``out=FILE`` also writes it as JSON. Returns the exit code."""
    options = parse_options(Options, words)
    shape = f"{options.channels}x{options.size_px}x{options.size_px}, batch {options.batch_size}"
    return run_bench("disco", options, contenders(options), "images", f"{options.num_steps} steps a round; {shape}")


def contenders(options: Options) -> Makers:
    """Name -> function that builds it."""
    from toolkit.disco.bench import peers as bench_peers

    makers: dict[str, Callable[[], Contender]] = {
        "ours": lambda: _ours(options, "none"),
        "bare": lambda: _bare(options),
        "convolutions": lambda: _convolutions(options),
        "disco": lambda: _ours(options, "discrete"),
        "diffusers": lambda: bench_peers.diffusers(options),
    }
    if options.edm:
        makers["edm"] = lambda: bench_peers.edm(options)
        if options.precision != "fp32":
            makers["edm_fp32"] = lambda: bench_peers.edm(dataclasses.replace(options, precision="fp32"))
    return makers


def _ours(options: Options, latents: str) -> Contender:
    """The job's own pieces: the stream, JointModel, train_step and the Loop with its logging."""
    from toolkit.disco.build import build_denoiser, build_encoder
    from toolkit.disco.job import device_batches, make_optimizer, train_step
    from toolkit.disco.stage1 import JointModel
    from toolkit.zoo.edm.ema import EMA

    config, data = disco_config(options, latents), dataset(options)
    accelerator = make_accelerator(options)
    denoiser = build_denoiser(config, data, latents != "none")
    joint = JointModel(denoiser, build_encoder(config, data), config).to(options.device)
    ema, optimizer = EMA(denoiser, 50e6), make_optimizer(joint, config)
    loop, steps = endless_loop(config, "denoiser", {"optimizer": optimizer})
    trained, batches = accelerator.prepare_model(joint), device_batches(data, config, accelerator)

    def train(num_steps: int) -> None:
        for _ in range(num_steps):
            step = next(steps)
            train_step(step, trained, joint, optimizer, ema, batches(step), loop, config, accelerator)

    return contender(options, count_parameters(denoiser), train, _our_sampler(options, config, denoiser))


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

    from toolkit.disco.build import build_denoiser

    config = disco_config(options, "none")
    denoiser = build_denoiser(config, dataset(options), with_latents=False).to(options.device)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-3, fused=options.device in ("cpu", "cuda"))
    y = images(options)
    sigma = torch.ones(len(y), device=y.device)
    autocast = make_accelerator(options).autocast

    def train(num_steps: int) -> None:
        for _ in range(num_steps):
            with autocast():
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

    return contender(options, count_parameters(denoiser), train, sample)


def _convolutions(options: Options) -> Contender:
    """The calls that one training step of the bare network makes, on the same tensors."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from toolkit.disco.build import build_denoiser

    kinds = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)
    calls: list[tuple[Any, tuple[Any, ...]]] = []

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in kinds:
                calls.append((function, args))
            return function(*args, **(kwargs or {}))

    denoiser = build_denoiser(disco_config(options, "none"), dataset(options), with_latents=False).to(options.device)
    y = images(options)
    with Note(), make_accelerator(options).autocast():
        denoiser(y, torch.ones(len(y), device=y.device)).square().mean().backward()

    @torch.no_grad()
    def work() -> int:
        for _ in range(options.num_steps):
            for function, args in calls:
                function(*args)
        return options.num_steps * options.batch_size

    return Contender({"train": work}, count_parameters(denoiser))
