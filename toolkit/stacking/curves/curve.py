"""Speedup at equal loss (eq. 48): how much more compute scratch needs than the grown run, its base included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.errors import UserError

ROUNDING = 1e-9  # of a budget that is divided and multiplied again


@dataclass(frozen=True)
class Curve:
    """Loss (nats per token) against compute (FLOPs, all that was spent so far), in the order of training.

    Raises UserError unless the compute rises and there are two points.
    """

    flops: Sequence[float]
    losses: Sequence[float]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.flops, self.flops[1:], strict=False))
        if len(self.flops) != len(self.losses) or len(self.flops) < 2 or not rising or self.flops[0] <= 0:
            raise UserError("a loss curve needs at least two points of rising, positive compute")

    def shifted(self, flops: float) -> Curve:
        """The same losses after ``flops`` spent before, as on a base: C = 6 P_base d + 6 P t (eq. 48's C1 + C2)."""
        return Curve([flops + spent for spent in self.flops], self.losses)

    def smoothed(self, weight: float) -> Curve:
        """Running mean with ``weight`` on the past, in [0, 1), started without bias towards the first value."""
        mean, total, smooth = 0.0, 0.0, []
        for loss in self.losses:
            mean, total = weight * mean + (1 - weight) * loss, weight * total + 1 - weight
            smooth.append(mean / total)
        return Curve(self.flops, smooth)

    def compute_to(self, loss: float) -> float:
        """FLOPs at which the curve first falls to ``loss``, linear in log FLOPs between points.

        Raises UserError where the curve starts below ``loss`` or never reaches it.
        """
        if self.losses[0] < loss or min(self.losses) > loss:
            reached = f"{min(self.losses):.4g} to {self.losses[0]:.4g}"
            raise UserError(f"loss={loss:g}: outside of the curve, which goes from {reached}; no speedup is read there")
        end = next(i for i, value in enumerate(self.losses) if value <= loss)
        if end == 0:
            return self.flops[0]
        before, after = self.losses[end - 1], self.losses[end]
        share = (before - loss) / (before - after)
        return math.exp((1 - share) * math.log(self.flops[end - 1]) + share * math.log(self.flops[end]))

    def loss_at(self, flops: float) -> float:
        """The loss at ``flops``, linear in log FLOPs between points. Raises UserError outside of the curve."""
        first, last = self.flops[0], self.flops[-1]
        if not first * (1 - ROUNDING) <= flops <= last * (1 + ROUNDING):
            raise UserError(f"flops={flops:.3g}: outside of the curve, which goes from {first:.3g} to {last:.3g}")
        end = next((i for i, value in enumerate(self.flops) if value >= flops), len(self.flops) - 1)
        if end == 0:
            return self.losses[0]
        low, high = self.flops[end - 1], self.flops[end]
        share = min(1.0, math.log(flops / low) / math.log(high / low))
        return (1 - share) * self.losses[end - 1] + share * self.losses[end]


def speedup(scratch: Curve, grown: Curve, loss: float) -> float:
    """C_scratch(loss) / C_grown(loss) - 1 (eq. 48). ``grown`` counts its base (``Curve.shifted``).

    The paper reads it off smoothed training losses, at a loss that should be fixed before the runs. Raises UserError
    where either curve does not reach ``loss``.
    """
    return scratch.compute_to(loss) / grown.compute_to(loss) - 1
