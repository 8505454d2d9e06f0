"""Parameters and training FLOPs per token in three accountings (total: the axes of the paper's figures)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from toolkit.stacking.operators.architecture import Architecture


@dataclass(frozen=True)
class Cost:
    """What a language model costs to train.

    parameters: all, a tied embedding once. non_embedding: without embedding and head. FLOPs of a mixture count the
    experts that one token meets.
    flops_total: 6 x all parameters per token, the accounting of the paper's figures. flops_non_embedding: 6 x those
    without embedding and head, in which g is exact. flops_matmul: three forwards of every matrix product, head and
    attention included, at ``context`` tokens (both triangles of the attention matrix, as FLOP counters do).
    """

    parameters: int
    non_embedding: int
    flops_total: int
    flops_non_embedding: int
    flops_matmul: int
    context: int

    def as_dict(self) -> dict[str, int]:
        """For reports."""
        return asdict(self)


def cost(architecture: Architecture, config: Any, context: int | None = None) -> Cost:
    """The cost of the network of ``config``; nothing is allocated. context: tokens, else the config's maximum."""
    context = context or architecture.context(config)
    shapes = architecture.shapes(config)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    kinds = {name: spec.kind for name in shapes if (spec := architecture.spec(name)) is not None}
    active = {name: round(size * architecture.active_share(config, name)) for name, size in sizes.items()}
    inner = [name for name, kind in kinds.items() if kind not in ("embedding", "head")]
    return Cost(
        parameters=sum(sizes.values()),
        non_embedding=sum(sizes[name] for name in inner),
        flops_total=6 * sum(active.values()),
        flops_non_embedding=6 * sum(active[name] for name in inner),
        flops_matmul=3 * _forward_flops(architecture, config, active, kinds, context),
        context=context,
    )


def _forward_flops(
    architecture: Architecture, config: Any, sizes: Mapping[str, int], kinds: Mapping[str, str], context: int
) -> int:
    linear = sum(size for name, size in sizes.items() if kinds[name] in ("linear", "head"))
    if architecture.tied(config):
        linear += sizes[architecture.embedding]  # a table of positions is looked up only
    attention = architecture.num_layers(config) * architecture.spaces(config).size("attended") * context
    return 2 * linear + 4 * attention
