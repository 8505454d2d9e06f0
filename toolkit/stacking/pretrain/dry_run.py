"""--dry-run of the testbed: who trains on how much, and what it costs; nothing is built beyond shapes."""

from __future__ import annotations

import math
from typing import Any

from toolkit.show.table import Table
from toolkit.stacking.checkpoints.open import find_network, open_checkpoint
from toolkit.stacking.config import GrowLLM
from toolkit.stacking.measure.curves import Spent
from toolkit.stacking.measure.flops import Cost
from toolkit.stacking.pretrain.networks import llama_config, planned, tokens_left, training_cost, with_map
from toolkit.stacking.pretrain.saving import history

BYTES_PER_PARAMETER = 16  # float32 weights, gradients and Adam's two moments


def plan_table(config: GrowLLM) -> Table:
    """Rows for the base, the target and what each arm trains on. Raises UserError as the run would."""
    rows = []
    for name, network, tokens in arms(config):
        times = f"{len(config.scratch_lrs())} x " if name == "scratch" and len(config.scratch_lrs()) > 1 else ""
        rows.append(_row(times + name, network, _cost(config, network), tokens))
    return _table(rows)


def arms(config: GrowLLM) -> list[tuple[str, Any, float]]:
    """What trains, its network's config, and on how many tokens: ``pretrain``, or the base and each arm.

    With ``model`` the base is there, with what it has cost. Raises UserError as the run would.
    """
    source = open_checkpoint(find_network(config.model, config.part)) if config.model else None
    base = source.config if source else llama_config(config.network, config.tokenize.vocab_size)
    budget, context = config.budget, config.network.context
    if config.stage == "pretrain":
        return [("pretrain", base, budget.tokens)]
    target = planned(base, config.growth(), config.seed).config
    small, large = _cost(config, base), _cost(config, target)
    spent = history(source) if source else Spent().after(small, math.ceil(budget.growth_tokens / context), context)
    begun = with_map(config, spent, large)
    found = {
        "grown": (target, budget.grown_tokens or tokens_left(config, large, large, begun)),
        "scratch": (target, budget.tokens),
    }
    if "continued" in config.arms:
        found["continued"] = (base, budget.continued_tokens or tokens_left(config, large, small, spent))
    first = [] if source else [("base", base, budget.growth_tokens)]
    return [*first, *((arm, *found[arm]) for arm in config.arms)]


def _cost(config: GrowLLM, network: Any) -> Cost:
    return training_cost(network, config.network.context)


def _row(name: str, network: Any, cost: Cost, tokens: float) -> list[Any]:
    flops, gib = (
        float(f"{value:.3g}")  # a row fits 80 columns
        for value in (cost.flops_total * tokens, cost.parameters * BYTES_PER_PARAMETER / 2**30)
    )
    return [name, network.num_hidden_layers, cost.parameters, cost.flops_total / 1e9, round(tokens), flops, gib]


def _table(rows: list[list[Any]]) -> Table:
    columns = ["arm", "layers", "parameters", "GFLOP/tok.", "tokens", "FLOPs", "GiB"]
    note = "FLOPs: 6 x all parameters; GiB: weights, gradients and Adam in float32; nothing was run"
    return Table("dry run", columns, rows, note)
