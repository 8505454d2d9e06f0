"""stage=advise: when to grow (d, in tokens) and by how much (g), by the paper's fits, with guard rails (eq. 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from toolkit.errors import UserError
from toolkit.runs.distributed import rank
from toolkit.runs.record import Run
from toolkit.show.table import Table
from toolkit.show.terminal import show
from toolkit.stacking.config import GrowLLM

FACTOR = 4  # the paper's recommendation; its optimum lies between 2 and 4
FITTED_PARAMS = (410e6, 3e9)  # the sizes eq. 2 was fitted on
TRUSTED_SHARE = 0.25  # of the whole compute that the base may take


@dataclass(frozen=True)
class Advice:
    """What to do, in tokens, parameters and FLOPs.

    base_share: share of ``total_flops`` = 6 N D that training the base of N / g parameters on d tokens takes.
    warnings: why the numbers should be doubted; empty inside the range the paper measured.
    """

    params: float
    tokens: float
    growth_tokens: float
    factor: int
    total_flops: float
    base_params: float
    base_share: float
    warnings: list[str] = field(default_factory=list)


def growth_tokens(params: float, total_flops: float) -> float:
    """d = 10^(0.88 log10 N + 163.27 / log10 C - 5.74) tokens, for N target parameters and C FLOPs (eq. 2)."""
    return 10 ** (0.88 * math.log10(params) + 163.27 / math.log10(total_flops) - 5.74)


def advise(params: float, tokens: float) -> Advice:
    """d and g for a target of ``params`` parameters to be trained on ``tokens`` tokens.

    C = 6 N D, which reproduces table 4. Appendix F's own fit of g is called unreliable there and is not offered.

    Raises UserError where the fit asks for a base that costs more than the whole budget: it was measured between 410M
    and 3B parameters, and far below that it is meaningless.
    """
    for name, value in (("params", params), ("tokens", tokens)):
        if not (math.isfinite(value) and value >= 1e3):
            raise UserError(f"{name}={value:g}: must be a number of at least 1000")
    total_flops = 6 * params * tokens
    d = growth_tokens(params, total_flops)
    share = 6 * (params / FACTOR) * d / total_flops
    if share >= 1:
        raise UserError(
            f"params={params:.3g} tokens={tokens:.3g}: the paper's fit gives d = {d:.2g} tokens, {share:.1f} times the "
            f"whole budget; it holds for 410M to 3B parameters, so choose d by a sweep at this size"
        )
    return Advice(params, tokens, d, FACTOR, total_flops, params / FACTOR, share, _warnings(params, share))


def _warnings(params: float, share: float) -> list[str]:
    found = []
    if share > TRUSTED_SHARE:
        found.append(f"training the base would take {share:.0%} of the compute; the paper's took a few per cent")
    if not FITTED_PARAMS[0] <= params <= FITTED_PARAMS[1]:
        found.append(f"the fit was made between 410M and 3B parameters; {params:.3g} extrapolates")
    return found


# -- the stage --------------------------------------------------------------------------------------------------------


def advise_user(config: GrowLLM, run: Run) -> None:
    """d and g for ``config.params`` and ``config.tokens``, on rank 0."""
    assert config.params is not None and config.tokens is not None
    if rank() != 0:
        return
    advice = advise(config.params, config.tokens)
    advice_table(advice).save(run.path("tables", "headline.json"))
    run.add_metrics("advise", {"growth_tokens": advice.growth_tokens, "factor": float(advice.factor)})


def advice_table(advice: Advice) -> Table:
    """What ``stage=advise`` prints."""
    rows = [
        ["target, parameters", advice.params],
        ["target, tokens", advice.tokens],
        ["growth factor g", advice.factor],
        ["growth timing d, tokens", advice.growth_tokens],
        ["base, parameters", advice.base_params],
        ["base's share of the compute", advice.base_share],
    ]
    return Table("When and by how much to grow", ["", "value"], rows, "; ".join(advice.warnings))


def dry_run(config: GrowLLM) -> None:
    """The same, printed only."""
    assert config.params is not None and config.tokens is not None
    show(advice_table(advise(config.params, config.tokens)))
