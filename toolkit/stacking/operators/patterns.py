"""Which source layer each target layer comes from (algorithm 1, section 5.1, appendix H). No torch here."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.errors import UserError
from toolkit.stacking.config import Growth


@dataclass(frozen=True)
class Layer:
    """One target layer.

    source: the source layer, counted from 0; of a fresh layer the one whose per-layer settings it takes.
    new: not the first copy of its source.
    zeroed: its attention output and MLP output are zero, so that it passes its input on.
    fresh: its weights are drawn anew.
    """

    source: int
    new: bool = False
    zeroed: bool = False
    fresh: bool = False


def stack(source_layers: int, target_layers: int) -> list[int]:
    """G_stack: 0 1 2 0 1 2, i.e. i mod L (algorithm 1)."""
    return [i % source_layers for i in range(target_layers)]


def interleave(source_layers: int, target_layers: int) -> list[int]:
    """Interpolation: 0 0 1 1 2 2, i.e. floor(i / g) (appendix H.2)."""
    return [i * source_layers // target_layers for i in range(target_layers)]


def gradual(source_layers: int, target_layers: int) -> list[int]:
    """StackedBERT's stages in one list: until the size is reached, append copies of the last layers, at most doubling.

    Whole doublings give the list of ``stack``; what sets the method apart is the training between the stages.
    """
    layers = list(range(source_layers))
    while len(layers) < target_layers:
        missing = min(len(layers), target_layers - len(layers))
        layers += layers[len(layers) - missing :]
    return layers


def solar(source_layers: int, drop: int) -> list[int]:
    """SOLAR's depth up-scaling: layers 0 ... L-m-1, then m ... L-1 (2 (L - m) layers)."""
    if drop >= source_layers:
        raise UserError(f"drop={drop}: must be less than the source's {source_layers} layers")
    return [*range(source_layers - drop), *range(drop, source_layers)]


def parse_pattern(pattern: str, source_layers: int) -> list[int]:
    """Source layers of ``prefix-block*times-suffix`` (appendix H.3), each part a number of layers.

    The prefix is the first layers, the block those right after it, the suffix the last layers of the source (the block
    may reach into it). ``6-12*2-6`` of 24 layers is 0-5, twice 6-17, 18-23. Prefix and suffix may be missing: ``6*4``.

    Raises UserError: another form, more layers than the source has, or layers that no part covers.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)\*(\d+)(?:-(\d+))?", pattern.strip())
    if not match:
        raise UserError(f"pattern={pattern}: expected prefix-block*times-suffix in numbers of layers, as 6-12*2-6")
    prefix, block, times, suffix = (int(part or 0) for part in match.groups())
    if not block or not times or prefix + block > source_layers or suffix > source_layers:
        raise UserError(f"pattern={pattern}: does not fit a source of {source_layers} layers")
    if prefix + block + suffix < source_layers:
        left_out = f"{prefix + block}-{source_layers - suffix - 1}"
        raise UserError(f"pattern={pattern}: leaves out layers {left_out} of the source's {source_layers}")
    middle = list(range(prefix, prefix + block)) * times
    return [*range(prefix), *middle, *range(source_layers - suffix, source_layers)]


def connection_rate(plan: Sequence[Layer]) -> float:
    """R_c: the share of neighbours that were neighbours in the source too (eq. 51); 1 for a single layer."""
    pairs = list(itertools.pairwise(plan))
    kept = sum(b.source == a.source + 1 and not (a.fresh or b.fresh) for a, b in pairs)
    return kept / len(pairs) if pairs else 1.0


def layer_plan(growth: Growth, source_layers: int) -> list[Layer]:
    """The target's layers in order. Raises UserError where ``growth`` does not fit a source of that many layers."""
    if growth.direction == "width":
        return [Layer(i) for i in range(source_layers)]
    if growth.operator == "llama_pro":
        return _llama_pro(growth, source_layers)
    if growth.operator == "slices":
        raise UserError("operator=slices: its layers stand in a file; use grow_checkpoint(FILE, OUT, ...)")
    if growth.operator == "random":
        added = _target_layers(growth, source_layers) - source_layers
        fresh = [Layer(i % source_layers, new=True, fresh=True) for i in range(added)]
        return [Layer(i) for i in range(source_layers)] + fresh
    plan: list[Layer] = []
    for source in _sources(growth, source_layers):
        repeated = any(layer.source == source for layer in plan)
        plan.append(Layer(source, new=repeated, zeroed=repeated and growth.operator == "zero"))
    return plan


def _sources(growth: Growth, source_layers: int) -> list[int]:
    if growth.operator == "list":
        beyond = [layer for layer in growth.layers if layer >= source_layers]
        if beyond:
            raise UserError(f"layers: {beyond[0]} is not there; the source has layers 0 to {source_layers - 1}")
        return list(growth.layers)
    if growth.operator == "pattern":
        return parse_pattern(str(growth.pattern), source_layers)
    if growth.operator == "solar":
        return solar(source_layers, _solar_drop(growth, source_layers))
    target_layers = _target_layers(growth, source_layers)
    lists = {"interleave": interleave, "zero": interleave, "gradual": gradual}
    return lists.get(growth.operator, stack)(source_layers, target_layers)


def _target_layers(growth: Growth, source_layers: int) -> int:
    exact = source_layers * growth.factor if growth.factor is not None else growth.num_layers
    assert exact is not None, "Growth.check holds that the size is given"
    if exact != round(exact):
        raise UserError(f"factor={growth.factor:g}: {source_layers} layers times it is {exact:g}, not a whole number")
    if exact < source_layers:
        raise UserError(f"num_layers={round(exact)}: the source already has {source_layers} layers")
    return round(exact)


def _solar_drop(growth: Growth, source_layers: int) -> int:
    if growth.drop is not None:
        return growth.drop
    target_layers = _target_layers(growth, source_layers)
    if target_layers % 2 or target_layers > 2 * source_layers:
        even = f"an even number of at most {2 * source_layers}"
        raise UserError(f"operator=solar: {target_layers} target layers, but two copies less m each give {even}")
    return source_layers - target_layers // 2


def _llama_pro(growth: Growth, source_layers: int) -> list[Layer]:
    """After each of ``insert`` equal groups a copy of its last layer whose outputs are zero (Wu et al. 2024)."""
    groups = growth.insert if growth.insert is not None else _target_layers(growth, source_layers) - source_layers
    if groups < 1 or source_layers % groups:
        raise UserError(f"operator=llama_pro: {groups} groups do not divide the source's {source_layers} layers")
    size, plan = source_layers // groups, []
    for end in range(size, source_layers + 1, size):
        plan += [Layer(i) for i in range(end - size, end)] + [Layer(end - 1, new=True, zeroed=True)]
    return plan
