"""From the config group ``guidance`` to guiders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toolkit.errors import UserError
from toolkit.icg.config import CFG, ICG, TSG, CFGAndTSG, Guidance, ICGAndTSG
from toolkit.icg.guiders.base import WeakBranchGuidance
from toolkit.icg.guiders.combined_guidance import CombinedGuidance
from toolkit.icg.guiders.independent_condition_guidance import IndependentConditionGuidance
from toolkit.icg.guiders.time_step_guidance import TimeStepGuidance

Seed = int | Sequence[int]


def make_guider(guidance: Guidance, scale: float, seed: Seed) -> WeakBranchGuidance:
    """The guider of one method at w = ``scale``; ``seed`` as the guiders take it.

    Classifier-free guidance is the second branch of TimeStepGuidance without its first, so that the interval's keys
    mean the same everywhere. Raises UserError for a method that is no guider (pag, sag, autoguidance).
    """
    if isinstance(guidance, ICGAndTSG):
        return CombinedGuidance(
            [_icg(guidance, scale, seed), _tsg(guidance.tsg, guidance.tsg.scales[0], seed)],
            guidance_rescale=guidance.rescale,
        )
    if isinstance(guidance, ICG):
        return _icg(guidance, scale, seed, guidance_rescale=guidance.rescale)
    if isinstance(guidance, TSG):
        return _tsg(guidance, scale, seed, guidance_rescale=guidance.rescale)
    if isinstance(guidance, CFGAndTSG):
        options = {"guidance_scale": float(scale), "guidance_rescale": guidance.rescale}
        return _tsg(guidance.tsg, guidance.tsg.scales[0], seed, **options, **_interval(guidance))
    if isinstance(guidance, CFG):
        options = {"guidance_scale": float(scale), "guidance_rescale": guidance.rescale}
        return TimeStepGuidance(tsg_scale=1.0, seed=seed, **options, **_interval(guidance))
    if guidance.method == "none":
        return TimeStepGuidance(tsg_scale=1.0, seed=seed)
    raise UserError(f"guidance={guidance.method}: is not made of a guider")


def _icg(guidance: ICG, scale: float, seed: Seed, **more: Any) -> IndependentConditionGuidance:
    return IndependentConditionGuidance(
        guidance_scale=float(scale),
        condition=guidance.condition,
        fields=guidance.fields,
        resample=guidance.resample,
        exclude_own=guidance.exclude_own,
        num_draws=guidance.num_draws,
        std=_std(guidance.std),
        cads_scale=guidance.cads_scale,
        cads_tau1=guidance.cads_tau1,
        cads_tau2=guidance.cads_tau2,
        seed=seed if guidance.condition != "shuffle" or isinstance(seed, int) else seed[0],
        **_interval(guidance),
        **more,
    )


def _tsg(guidance: TSG, scale: float, seed: Seed, **more: Any) -> TimeStepGuidance:
    settings = _interval(guidance) | more
    return TimeStepGuidance(
        tsg_scale=float(scale),
        noise_scale=guidance.noise_scale,
        alpha=guidance.alpha,
        std_scaling=guidance.std_scaling,
        max_layers=guidance.max_layers,
        time_embedding_modules=guidance.time_embedding_modules,
        seed=seed,
        **settings,
    )


def _interval(guidance: Guidance) -> dict[str, Any]:
    names = ("start", "stop", "t_min", "t_max", "sigma_min", "sigma_max")
    return {name: getattr(guidance, name) for name in names}


def _std(value: str) -> str | float:
    """``tensor``, ``sample`` or a number."""
    try:
        return float(value)
    except ValueError:
        return value
