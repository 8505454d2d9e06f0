"""What several contenders of the benchmark use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.bench import BenchOptions, Contender
from toolkit.errors import UserError
from toolkit.schema import choice, number


@dataclass
class Options(BenchOptions):
    """key=value options of the benchmark."""

    size_px: int = number(16, least=8)
    channels: int = number(3, least=1)
    width: int = number(32, least=16)
    num_blocks: int = number(1, least=1)
    batch_size: int = number(64, least=1)
    num_steps: int = number(5, least=1)
    sampling_steps: int = number(9, least=1)
    precision: str = choice("fp32", "fp32", "bf16")  # of training; samples are drawn in float32
    edm: str | None = None

    def check(self) -> None:
        """``edm`` is a checkout."""
        if self.edm and not (Path(self.edm) / "training" / "networks.py").exists():
            raise UserError(f"edm={self.edm}: no checkout of NVlabs/edm there (training/networks.py is missing)")


def contender(options: Any, parameters: int, train: Callable[[int], None], sample: Callable[[], None]) -> Contender:
    """``train(n)`` does n optimiser steps, ``sample()`` one batch of samples with 2 sampling_steps - 1 evaluations."""

    def train_images() -> int:
        train(options.num_steps)
        return options.num_steps * options.batch_size

    def sample_images() -> int:
        sample()
        return options.batch_size

    return Contender({"train": train_images, "sample": sample_images}, parameters)


def accelerator(options: Options) -> Any:
    """Of the device and precision asked for."""
    from accelerate import Accelerator

    return Accelerator(cpu=options.device == "cpu", mixed_precision="bf16" if options.precision == "bf16" else "no")


def disco_config(options: Options, latents: str) -> Any:
    from toolkit.disco.config import EncoderConfig, Latents, Measure, Optim, TrainDisco
    from toolkit.zoo.config import ADMConfig

    size = options.size_px // 2
    network = ADMConfig(
        width=options.width,
        width_multipliers=[1, 2],
        num_blocks=options.num_blocks,
        attention_resolutions=[size],
        channels_per_head=64,
        dropout=0.0,
    )
    encoder = EncoderConfig(width=64, depth=2, num_heads=4, patch_size=max(2, options.size_px // 4))
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


def images(options: Options) -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (options.batch_size, options.channels, options.size_px, options.size_px)
    return (torch.rand(shape, generator=generator) * 2 - 1).to(options.device)


def dataset(options: Options) -> Any:
    """Random images: speed does not depend on what they show."""
    import numpy as np
    import torch

    from toolkit.data.sets import Dataset, MemorySplit

    shape = (4 * options.batch_size, options.channels, options.size_px, options.size_px)
    values = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    split = MemorySplit(values)
    return Dataset("random", split, split, split, 0, (), "generated", "generated")
