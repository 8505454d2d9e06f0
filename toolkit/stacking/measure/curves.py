"""Training curves: losses against tokens, compute in three accountings, and time; what is kept and how it is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.plain_files import read_object
from toolkit.runs.files import write_json
from toolkit.stacking.measure.flops import Cost

SMOOTHING = 20  # a point is smoothed with one neighbour on each side for every so many points of the curve
ROUNDING = 1e-9  # of a budget that is divided and multiplied again
ACCOUNTINGS = ("total", "non_embedding", "matmul")


@dataclass(frozen=True)
class Spent:
    """Tokens seen and FLOPs spent so far on a network, the base it grew from included (eq. 48's C1).

    sequences: how many training sequences it has read: where the next network goes on in the data.
    """

    tokens: int = 0
    sequences: int = 0
    flops: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ACCOUNTINGS, 0.0))
    time_s: float = 0.0

    def after(self, cost: Cost, sequences: int, context: int, time_s: float = 0.0) -> Spent:
        """After training a network of ``cost`` on that many more sequences."""
        tokens = sequences * context
        per_token = flops_per_token(cost)
        flops = {name: self.flops[name] + per_token[name] * tokens for name in ACCOUNTINGS}
        return Spent(self.tokens + tokens, self.sequences + sequences, flops, self.time_s + time_s)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def flops_per_token(cost: Cost) -> dict[str, float]:
    """FLOPs of training on one token, in each accounting."""
    return {name: float(getattr(cost, f"flops_{name}")) for name in ACCOUNTINGS}


@dataclass
class TrainingCurve:
    """Points of one network's training; ``state_dict`` and ``load_state_dict`` make it resume exactly.

    A point: tokens and sequences of this network alone, flops.* with what was spent before, time_s of its training
    steps, train_loss (mean since the point before, None at the first) and valid_loss.
    """

    points: list[dict[str, Any]] = field(default_factory=list)
    train_sum: Tensor | float = 0.0
    train_count: int = 0
    time_s: float = 0.0

    def note(self, loss: Tensor, seconds: float) -> None:
        """Count a training step."""
        self.train_sum = self.train_sum + loss.detach()
        self.train_count += 1
        self.time_s += seconds

    def add(self, step: int, spent: Spent, valid_loss: float) -> None:
        """A point after ``step`` steps."""
        mean = float(self.train_sum) / self.train_count if self.train_count else None
        self.points.append(
            {
                "step": step,
                "tokens": spent.tokens,
                **{f"flops.{name}": spent.flops[name] for name in ACCOUNTINGS},
                "time_s": round(spent.time_s + self.time_s, 3),
                "train_loss": mean,
                "valid_loss": valid_loss,
            }
        )
        self.train_sum, self.train_count = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "points": [dict(point) for point in self.points],
            "train_sum": torch.as_tensor(self.train_sum, dtype=torch.float32).cpu(),
            "train_count": self.train_count,
            "time_s": self.time_s,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points = [dict(point) for point in state["points"]]
        self.train_sum, self.train_count, self.time_s = state["train_sum"], state["train_count"], state["time_s"]


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


@dataclass(frozen=True)
class Arm:
    """A finished curve and what it is of. ``label``: grown, scratch, continued, base or pretrain.

    settings: what tells runs apart: seed, learning rate, operator, factor, growth_tokens, layers.
    """

    label: str
    settings: dict[str, Any]
    points: list[dict[str, Any]]

    def curve(self, accounting: str) -> Curve:
        """Held-out loss, smoothed, against FLOPs."""
        points = zip(self.points, self.smoothed(), strict=True)
        kept = [(point[f"flops.{accounting}"], loss) for point, loss in points if point[f"flops.{accounting}"] > 0]
        return Curve([flops for flops, _ in kept], [loss for _, loss in kept])

    def has_curve(self) -> bool:
        """Whether there is something to draw and read: two points after the first compute (an untrained base: none)."""
        return sum(point["flops.total"] > 0 for point in self.points) > 1

    def smoothed(self) -> list[float]:
        """Held-out losses, each on the line through its neighbours: at a constant rate weights swing on their way.

        The first one is left as it is: right after growth the loss jumps.
        """
        losses = [point["valid_loss"] for point in self.points]
        reaches = [min(i, len(losses) // SMOOTHING) for i in range(len(losses))]
        return [_line_at(reach, losses[i - reach : i + reach + 1]) for i, reach in enumerate(reaches)]

    @property
    def final_loss(self) -> float:
        """The last held-out loss, smoothed."""
        return self.smoothed()[-1]

    def save(self, path: Path) -> None:
        """As JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Arm:
        """Raises UserError where the file is not a curve."""
        try:
            return cls(**read_object(path))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: not a training curve ({error})") from None


def _line_at(x: float, ys: Sequence[float]) -> float:
    """The least-squares line through (0, ys[0]), (1, ys[1]), ... at x; at the middle of the window that is the mean."""
    middle, mean = (len(ys) - 1) / 2, sum(ys) / len(ys)
    spread = sum((i - middle) ** 2 for i in range(len(ys)))
    slope = sum((i - middle) * y for i, y in enumerate(ys)) / spread if spread else 0.0
    return mean + slope * (x - middle)


def load_arms(folder: Path) -> list[Arm]:
    """The curves of a run. Raises UserError where it has none."""
    paths = sorted((folder / "curves").glob("*.json"))
    if not paths:
        raise UserError(f"compare.runs: {folder} has no curves (curves/*.json); give runs of stage=all or pretrain")
    return [Arm.load(path) for path in paths]
