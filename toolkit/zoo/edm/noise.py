"""Random numbers that belong to a sample, so that neither the size of a batch nor who draws it changes any sample.

Every number is a pure function of (seed, sample, draw, place): the counter-based generator Philox4x32-10 (Salmon et al.
2011), written in tensor operations, so that one call serves a whole batch on any device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85  # what the two words of the key grow by from round to round
NUM_ROUNDS = 10
MASK = 0xFFFFFFFF


class SampleNoise:
    """Numbers for the samples ``index`` int64 (n,) of the set that ``seed`` names.

    Each call of ``normal`` or ``uniform`` is the next draw, with numbers of its own. ``noise[part]``, a slice, gives
    those samples what ``noise`` would give them from here on.
    """

    def __init__(self, seed: int, index: Tensor | range, device: torch.device | str = "cpu") -> None:
        self.seed, self.num_draws, self.device = seed, 0, torch.device(device)
        words = "cpu" if self.device.type == "mps" else self.device  # MPS lacks 64-bit arithmetic
        self.index = torch.as_tensor(index, dtype=torch.int64, device=words)

    @classmethod
    def of_generator(cls, generator: torch.Generator, num: int) -> SampleNoise:
        """For ``num`` samples, with a seed drawn from ``generator``."""
        seed = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
        return cls(int(seed), range(num), generator.device)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, part: slice) -> SampleNoise:
        own = SampleNoise(self.seed, self.index[part], self.device)
        own.num_draws = self.num_draws
        return own

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 (n, ...), by the transform of Box and Muller."""
        first, second = self._words(math.prod(shape[1:])).chunk(2, dim=1)
        radius = (first + 1).float().mul_(2**-32).log_().mul_(-2).clamp_(min=0).sqrt_()  # a number in (0, 1] each
        angle = second.float().mul_(math.tau * 2**-32)
        return self._shaped(torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1), shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Float32 (n, ...) in steps of 2^-23, off 0 and 1 by half a step."""
        words = self._words(math.prod(shape[1:]))
        return self._shaped((words >> 9).float().add_(0.5).mul_(2**-23), shape)

    def _shaped(self, numbers: Tensor, shape: Sequence[int]) -> Tensor:
        return numbers[:, : math.prod(shape[1:])].reshape(tuple(shape)).to(self.device)

    def _words(self, num: int) -> Tensor:
        """``num`` or a few more 32-bit words for each sample, int64 (n, 4 * ceil(num / 4)); the next draw."""
        block = torch.arange(-(-num // 4), device=self.index.device)
        counter = torch.broadcast_tensors(
            block, block.new_tensor(self.num_draws), self.index[:, None] & MASK, self.index[:, None] >> 32
        )
        self.num_draws += 1
        return torch.cat(philox(counter, (self.seed & MASK, self.seed >> 32 & MASK)), dim=1)


Source = torch.Generator | SampleNoise | None
"""Where random numbers come from: one stream for the whole batch (None: torch's own), or one for each sample."""


def normal(shape: Sequence[int], source: Source, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers (n, ...) from ``source``."""
    if isinstance(source, SampleNoise):
        return source.normal(shape).to(dtype)
    return torch.randn(tuple(shape), dtype=dtype, device=device, generator=source)


def uniform(shape: Sequence[int], source: Source, device: torch.device) -> Tensor:
    """Float32 (n, ...) from ``source``, in [0, 1)."""
    if isinstance(source, SampleNoise):
        return source.uniform(shape)
    return torch.rand(tuple(shape), device=device, generator=source)


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al. 2011, section 3.3): four 32-bit words, in int64, from each counter of four words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(NUM_ROUNDS):
        # the product wraps in int64, but its 64 bits are those of the unsigned product
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = (product1 >> 32).bitwise_and_(MASK).bitwise_xor_(c1).bitwise_xor_(k0)
        c2 = (product0 >> 32).bitwise_and_(MASK).bitwise_xor_(c3).bitwise_xor_(k1)
        c1, c3 = product1.bitwise_and_(MASK), product0.bitwise_and_(MASK)
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3
