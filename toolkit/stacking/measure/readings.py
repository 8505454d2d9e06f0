"""What is read off training curves: speedups at equal loss, crossings, spikes, bands over seeds, isoFLOP valleys."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from toolkit.errors import UserError
from toolkit.metrics.stats import Summary, summary
from toolkit.stacking.measure.curves import Arm, Curve

GRID = 60  # points of a band
SLICES = (0.5, 0.75, 1.0)  # of the compute that all variants reach: where valleys are cut
KINDS = {"direction": "direction", "noise": "noise", "growth_tokens": "d", "base_layers": "base layers", "lr": "lr"}


@dataclass(frozen=True)
class Reading:
    """Compute of scratch and of the grown network at one loss; ``speedup`` is eq. 48."""

    loss: float
    scratch_flops: float
    grown_flops: float

    @property
    def speedup(self) -> float:
        """C_scratch / C_grown - 1."""
        return self.scratch_flops / self.grown_flops - 1


def first_to(arms: Sequence[Arm], loss: float, accounting: str) -> float | None:
    """Least compute at which one of ``arms`` falls to ``loss``; None where none does or one begins below it."""
    found = [flops for arm in arms if (flops := _reach(arm.curve(accounting), loss)) is not None]
    return min(found, default=None)


def _reach(curve: Curve, loss: float) -> float | None:
    try:
        return curve.compute_to(loss)
    except UserError:
        return None


def reading(scratch: Sequence[Arm], grown: Arm, loss: float, accounting: str) -> Reading | None:
    """Compute at ``loss``, of scratch at whichever learning rate gets there first; None where a curve does not."""
    slow, fast = first_to(scratch, loss, accounting), first_to([grown], loss, accounting)
    return None if slow is None or fast is None else Reading(loss, slow, fast)


def final_loss(scratch: Sequence[Arm], grown: Arm) -> float:
    """The reading point fixed before any run: the last loss of scratch at its best rate, or of the grown network.

    The higher of the two, which both reach.
    """
    return max(min(arm.final_loss for arm in scratch), grown.final_loss)


def crossing(first: Curve, second: Curve) -> float | None:
    """Compute from which on ``first`` stays below ``second``, at the points of ``first``; None where it ends above."""
    last = min(first.flops[-1], second.flops[-1])
    shared = [(f, loss) for f, loss in zip(first.flops, first.losses, strict=True) if second.flops[0] <= f <= last]
    found = None
    for flops, loss in reversed(shared):
        if loss >= second.loss_at(flops):
            break
        found = flops
    return found


def recovery_tokens(base_loss: float, grown: Arm) -> float:
    """Tokens until the grown network, which growth set back, is as good as its base was; infinite where it never is."""
    found = next((point for point in grown.points if point["valid_loss"] <= base_loss), None)
    return math.inf if found is None else float(found["tokens"] - grown.points[0]["tokens"])


# -- several runs ------------------------------------------------------------------------------------------------------


def variants(arms: Sequence[Arm]) -> dict[str, list[Arm]]:
    """Arms that differ in nothing but the seed, under a name that says what tells them from the others."""
    names = {id(arm): _names(arm, arms) for arm in arms}
    found: dict[str, list[Arm]] = {}
    for arm in arms:
        found.setdefault(names[id(arm)], []).append(arm)
    return found


def _names(arm: Arm, arms: Sequence[Arm]) -> str:
    alike = [other for other in arms if other.label == arm.label]
    words = [arm.label]
    if arm.label == "grown" and len({other.settings.get("operator") for other in alike}) > 1:
        words.append(str(arm.settings["operator"]))
    for key, word in KINDS.items():
        values = {str(other.settings.get(key)) for other in alike}
        if len(values) > 1 and key in arm.settings:
            value = arm.settings[key]
            words.append(str(value) if key == "direction" else f"{word} {value:g}")
    return " ".join(words)


def band(curves: Sequence[Curve]) -> tuple[list[float], list[float], list[float], list[float]] | None:
    """Compute, mean loss and its 95 % interval over seeds, on the compute that all share; None where there is none."""
    low, high = max(curve.flops[0] for curve in curves), min(curve.flops[-1] for curve in curves)
    if low >= high:
        return None
    grid = [math.exp(math.log(low) + i / (GRID - 1) * math.log(high / low)) for i in range(GRID)]
    return (grid, *_intervals(lambda flops: [curve.loss_at(flops) for curve in curves], grid))


def _intervals(
    values: Callable[[float], Sequence[float]], grid: Sequence[float]
) -> tuple[list[float], list[float], list[float]]:
    found: list[Summary] = [summary(values(x)) for x in grid]
    bounded = [one if math.isfinite(one.low) else Summary(one.mean, 0.0, 1, one.mean, one.mean) for one in found]
    return [one.mean for one in bounded], [one.low for one in bounded], [one.high for one in bounded]


def valley(arms: Sequence[Arm], key: str, accounting: str) -> dict[float, dict[float, list[float]]]:
    """``{compute: {value of key: losses of the seeds}}`` of grown arms that differ in ``growth_tokens`` or ``factor``.

    Cut at shares of the compute that every arm reaches (the paper's figures 8 and 10).
    """
    curves = [(float(arm.settings[key]), arm.curve(accounting)) for arm in arms]
    low, high = max(curve.flops[0] for _, curve in curves), min(curve.flops[-1] for _, curve in curves)
    found: dict[float, dict[float, list[float]]] = {}
    for flops in (share * high for share in SLICES):
        for value, curve in curves:
            if flops >= low:
                found.setdefault(flops, {}).setdefault(value, []).append(curve.loss_at(flops))
    return found
