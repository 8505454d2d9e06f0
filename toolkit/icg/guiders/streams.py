"""Random numbers of a guider: its own, repeatable, and if asked one stream per sample.

Drawn on the CPU in float32 (or where the caller's generator lives) and moved, so that devices and half precision agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from toolkit.errors import UserError
from toolkit.runs import seeds
from toolkit.zoo.precision import widest_float

Seed = int | Sequence[int] | None


class Draws:
    """A stream of draws for one purpose.

    seed: an int reseeds at the start of every run, a list gives each sample of the batch a stream of its own (sample i
    is then the same alone and in a batch), None is seeded from the system once and never reseeded.
    """

    def __init__(self, seed: Seed, purpose: str) -> None:
        numbers = seed if isinstance(seed, (list, tuple)) else [seed]
        if any(isinstance(one, bool) or not isinstance(one, int) for one in numbers) and seed is not None:
            raise UserError(f"seed={seed!r}: must be an integer, a list of integers or null")
        self.seed, self.purpose = seed, purpose
        self.generators: list[Generator] = []
        self.foreign = self.per_sample = False
        self.restart()

    def restart(self) -> None:
        """Begin a run: the same draws again, unless the generators are the caller's."""
        if self.foreign:
            return
        if self.seed is None:
            if not self.generators:
                self.generators = [Generator()]
                self.generators[0].seed()
            return
        self.per_sample = not isinstance(self.seed, int)
        numbers = [self.seed] if isinstance(self.seed, int) else list(self.seed)
        self.generators = [seeds.generator(number, self.purpose) for number in numbers]

    def use(self, generator: Generator | Sequence[Generator] | None) -> None:
        """Draw from the caller's generator, or from one per sample; None returns to the seed."""
        self.foreign = generator is not None
        self.per_sample = not (generator is None or isinstance(generator, Generator))
        if generator is None:
            self.generators = []
            self.restart()
        else:
            self.generators = [generator] if isinstance(generator, Generator) else list(generator)

    def normal(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Standard normal float32 of ``shape`` (B, ...)."""
        return self._stack(shape, lambda size, one: torch.randn(size, generator=one, device=one.device)).to(device)

    def uniform(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Uniform float32 in [0, 1) of ``shape`` (B, ...)."""
        return self._stack(shape, lambda size, one: torch.rand(size, generator=one, device=one.device)).to(device)

    def integers(self, high: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """Uniform int64 in [0, high) of ``shape`` (B, ...)."""
        return self._stack(shape, lambda size, one: torch.randint(high, size, generator=one, device=one.device)).to(
            device
        )

    def choices(self, weights_BK: Tensor, num: int) -> Tensor:
        """int64 (B, num): indices drawn with replacement in proportion to each row's weights."""
        totals = weights_BK.to(widest_float(weights_BK.device)).cumsum(-1)
        points = self.uniform((len(weights_BK), num), weights_BK.device).to(totals.dtype) * totals[:, -1:]
        return torch.searchsorted(totals, points, right=True).clamp(max=weights_BK.shape[1] - 1)

    def _stack(self, shape: Sequence[int], draw: Callable[[tuple[int, ...], Generator], Tensor]) -> Tensor:
        if not self.per_sample:
            return draw(tuple(shape), self.generators[0])
        if len(self.generators) != shape[0]:
            raise UserError(f"seed: {len(self.generators)} generators for a batch of {shape[0]}: one per sample")
        return torch.cat([draw((1, *shape[1:]), one) for one in self.generators])
