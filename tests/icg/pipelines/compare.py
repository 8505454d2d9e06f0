"""One pipeline under ``guided``, beside the guidance written once more; what came out as one row of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tests.icg import tiny
from tests.icg.pipelines import oracle
from tests.icg.pipelines.parts import CASES, Case
from toolkit.errors import UserError
from toolkit.icg import IndependentConditionGuidance, TimeStepGuidance, guided, random_token_bank


@dataclass
class Outcome:
    """Of one guider on one pipeline.

    refused: the line, empty where it was accepted. off, after: equal to the bit with scale 1, and when all is over.
    calls: of the network, over those without guidance. error: the largest difference from the oracle, relative, and
    allowed: what it may be.
    """

    refused: str = ""
    off: bool = False
    calls: float = 0.0
    error: float = 0.0
    allowed: float = 0.0
    effect: float = 0.0
    after: bool = False

    @property
    def exact(self) -> bool:
        right = self.off and self.after and self.calls == 2 and self.error <= self.allowed
        return not self.refused and right and self.effect > 0

    @property
    def said(self) -> str:
        """For the record: ``exact``, the line that refuses, or what is not as it should be."""
        return "exact" if self.exact else self.refused or f"not exact: {asdict(self)}"


def compare(name: str) -> dict[str, Outcome]:
    """ICG and TSG on the pipeline of this name; without a condition TSG alone."""
    found = {}
    case = CASES[name]()
    with torch.no_grad():
        if case.drawn:
            found["icg"] = _compare(case, _icg(case, 1.0), _icg(case, oracle.SCALE), "icg")
        found["tsg"] = _compare(case, TimeStepGuidance(1.0), _tsg(), "tsg")
    return found


def bank(name: str) -> str | None:
    """Random text for this pipeline: ``made``, or the line that refuses; None where its call has no prompt."""
    case = CASES[name]()
    rest = {key: value for key, value in case.call.items() if key != "prompt"}
    if not isinstance(case.call.get("prompt"), str):
        return None
    try:
        rows = random_token_bank(case.pipe, 3, **rest)
    except UserError as error:
        return str(error)
    given = {"encoder_hidden_states": "prompt_embeds", "text_embeds": "pooled_prompt_embeds"}
    assert set(rows) == {given.get(one, one) for one in case.drawn} and {len(one) for one in rows.values()} == {3}
    return "made"


def _icg(case: Case, scale: float) -> Any:
    def draw(real: Mapping[str, Tensor], draws: Any) -> dict[str, Tensor]:
        return {name: oracle.other(name, value, case.num_classes) for name, value in real.items()}

    guider = IndependentConditionGuidance(scale)
    guider.set_condition_sampler(draw)
    return guider


def _tsg() -> Any:
    guider = TimeStepGuidance(oracle.SCALE, noise_scale=oracle.SIZE)
    guider.set_generator(torch.Generator().manual_seed(oracle.SEED))
    return guider


def _compare(case: Case, off: Any, on: Any, kind: str) -> Outcome:
    with tiny.Calls(case.network) as plain_calls:
        plain = case.run()
    try:
        with guided(case.pipe, off):
            with_off = case.run()
        with guided(case.pipe, on), tiny.Calls(case.network) as calls:
            ours = case.run()
    except UserError as error:
        return Outcome(refused=str(error), after=torch.equal(case.run(), plain))
    weak = oracle.independent_condition(case) if kind == "icg" else oracle.noisy_time(case, plain_calls.count)
    with oracle.replaced(case, weak):
        theirs = case.run()
    size = float(theirs.abs().max())
    return Outcome(
        off=torch.equal(with_off, plain),
        calls=calls.count / plain_calls.count,
        error=float((ours - theirs).abs().max()) / size,
        allowed=1e-6 if kind == "tsg" and oracle.by_noise_level(case.pipe.scheduler) else 0.0,
        effect=float((ours - plain).abs().max()) / size,
        after=torch.equal(case.run(), plain) and not case.network._forward_hooks,
    )
