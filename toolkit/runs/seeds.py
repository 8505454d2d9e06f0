"""Random numbers as a pure function of (seed, what for, step): a resumed run needs no generator state."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the purpose ``names``; equal inputs give equal seeds on every machine."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def seed_all(seed: int, *names: str | int) -> None:
    """Reseed torch's default generators (CPU and accelerator) for the purpose ``names``.

    Without an accelerator only the CPU's: torch.manual_seed would note the whole call stack at every step for a CUDA
    device that may appear, which takes longer than all else a small network's loop adds to a step.
    """
    seeded = torch if torch.accelerator.is_available() else torch.default_generator
    seeded.manual_seed(derive(seed, *names))


def generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own for the purpose ``names``."""
    return torch.Generator(device).manual_seed(derive(seed, *names))
