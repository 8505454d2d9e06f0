"""One growth operator applied to a network's config and tensors. Nothing is read until a tensor is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.errors import UserError
from toolkit.schema import check
from toolkit.stacking.config import Growth
from toolkit.stacking.operators.architecture import Architecture, Spaces
from toolkit.stacking.operators.depth import Deeper
from toolkit.stacking.operators.learn import GrowthMap, Mapped
from toolkit.stacking.operators.patterns import Layer, connection_rate, layer_plan
from toolkit.stacking.operators.tensors import Noisy, Tensors
from toolkit.stacking.operators.width import Wider, wider_spaces


@dataclass(frozen=True)
class Grown:
    """A grown network: its config, its tensors (read on demand) and where they come from.

    ``plan``: one entry per target layer. ``old``, ``new``: sizes before and after. ``growth_map``: G_learn's matrices.
    ``notes``: what else a reader of the report should know.
    """

    config: Any
    tensors: Tensors
    plan: Sequence[Layer]
    old: Spaces
    new: Spaces
    growth_map: GrowthMap | None = None
    notes: Sequence[str] = ()

    @property
    def sources(self) -> list[int | None]:
        """Source layer of every target layer; None for one with new weights."""
        return [None if layer.fresh else layer.source for layer in self.plan]

    @property
    def connection_rate(self) -> float:
        """R_c (eq. 51)."""
        return connection_rate(self.plan)


def grow(
    architecture: Architecture,
    config: Any,
    tensors: Tensors,
    growth: Growth,
    seed: int = 0,
    growth_map: GrowthMap | None = None,
) -> Grown:
    """The network of ``config`` and ``tensors``, grown.

    growth_map: a trained map for operator=learn (from an earlier ``Grown.growth_map``); without it, the initial one.
    Growing again is growing the result: ``grow(architecture, grown.config, grown.tensors, ...)``.

    Raises UserError where the operator does not fit the network (appendix A.3-A.6 say what each one does).
    """
    check(growth)
    plan, old = layer_plan(growth, architecture.num_layers(config)), architecture.spaces(config)
    wide = growth.direction == "width"
    if wide and growth.operator not in architecture.width_operators:
        raise UserError(f"direction=width operator={growth.operator}: such networks grow in depth only")
    new = wider_spaces(old, growth.factor or 1.0, growth.intermediate_size) if wide else old
    eps_factor = old.residual / new.residual if growth.operator == "zero" and growth.scale_eps else 1.0
    target = architecture.widened(config, new, eps_factor) if wide else architecture.deepened(config, plan)
    shapes = architecture.shapes(target)
    if growth.operator == "learn":
        growth_map = growth_map or GrowthMap(architecture, plan, old, new, list(tensors.infos), seed)
        grown: Tensors = Mapped(tensors, growth_map, shapes)
    elif wide:
        grown = Wider(
            tensors,
            architecture,
            growth.operator,
            old,
            new,
            shapes,
            tied=architecture.tied(config),
            num_layers=len(plan),
            split=growth.split,
            eps_factor=eps_factor,
            seed=seed,
        )
    else:
        grown = Deeper(tensors, architecture, plan, shapes, seed)
    if growth.noise:
        grown = Noisy(grown, architecture, growth.noise, len(plan), seed)
    return Grown(target, grown, plan, old, new, growth_map)
