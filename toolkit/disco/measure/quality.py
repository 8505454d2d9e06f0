"""Scores of samples: at several budgets, by source of z, with guidance on z (Xu et al. 2024, figure 9); memorisation.

Images are clamped before they are scored; every table carries the score of as many real training items.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from toolkit.disco.measure.setting import Setting, evaluations_key, ratio, scale_key
from toolkit.disco.stage2 import Latents, evaluate
from toolkit.metrics.judge import Judge, make_judge
from toolkit.metrics.neighbours import memorisation_ratio
from toolkit.show import figures
from toolkit.show.table import Cell, Spread, Table
from toolkit.zoo.disco.prior import UniformPrior

MOST_MEMORISED = 1000


def scores(setting: Setting, judge: Judge, variant: str, num_evaluations: int, **how: Any) -> list[dict[str, float]]:
    """One score per sampling seed (``measure.num_repeats``)."""
    found = []
    for repeat in range(setting.config.measure.num_repeats):
        samples, labels = setting.samples(variant, num_evaluations, repeat, **how)
        found.append(judge.score(samples, labels))
    return found


def mean_scores(scores: list[dict[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and sample standard deviation of each score over repeats (sd is empty for one repeat)."""
    table = {name: torch.tensor([one[name] for one in scores], dtype=torch.float64) for name in scores[0]}
    means = {name: float(values.mean()) for name, values in table.items()}
    return means, {name: float(values.std()) for name, values in table.items()} if len(scores) > 1 else {}


def quality(setting: Setting) -> dict[str, float]:
    """``quality.SCORE.VARIANT.nfe_N``, ``quality.SCORE.floor``, ``quality.DISTANCE.ratio.nfe_N``, ours over baseline's.

    ``quality.DISTANCE.ratio.mean`` is the geometric mean over all budgets, where every distance is above 0.
    SCORE is frechet, precision, recall (and accuracy with class labels) for images; energy, off_mode, within_mode_w2,
    mode_chi2_per_mode and modes_missed for points. ``quality.sd.*`` are spreads over sampling seeds, if repeated.
    """
    judge, budgets = make_judge(setting.dataset), setting.config.measure.evaluations
    floor = judge.floor(setting.num_samples)
    found = {f"{name}.floor": value for name, value in floor.items()}
    rows: list[list[Cell]] = []
    for budget in budgets:
        for variant in setting.variants:
            means, sds = mean_scores(scores(setting, judge, variant, budget))
            found |= {f"{name}.{variant}.{evaluations_key(budget)}": value for name, value in means.items()}
            found |= {f"sd.{name}.{variant}.{evaluations_key(budget)}": value for name, value in sds.items()}
            repeats = setting.config.measure.num_repeats
            rows.append([variant, budget, *(_cell(means[name], sds.get(name), repeats) for name in means)])
        if "baseline" in setting.variants:
            ours, theirs = (found[f"{judge.distance}.{v}.{evaluations_key(budget)}"] for v in ("ours", "baseline"))
            found[f"{judge.distance}.ratio.{evaluations_key(budget)}"] = ratio(ours, theirs)
    ratios = [found.get(f"{judge.distance}.ratio.{evaluations_key(budget)}", 0.0) for budget in budgets]
    if all(0 < one < math.inf for one in ratios):
        found[f"{judge.distance}.ratio.mean"] = math.prod(ratios) ** (1 / len(ratios))
    rows.append(["real training items", None, *(floor.get(name) for name in means)])
    against = f"{setting.num_samples} samples against the test split, images clamped"
    note = f"{against}; {judge.space}; evaluations are network calls"
    table = Table("Samples", ["variant", "evaluations", *means], rows, note)
    table.save(setting.run.path("tables", "quality.json"))
    _draw_quality(setting, judge, found)
    return found


def _cell(mean: float, sd: float | None, num: int) -> Cell:
    return mean if sd is None else Spread(mean, sd, num)


def _draw_quality(setting: Setting, judge: Judge, found: dict[str, float]) -> None:
    budgets, name = setting.config.measure.evaluations, judge.distance
    lines = {v: (budgets, [found[f"{name}.{v}.{evaluations_key(b)}"] for b in budgets]) for v in setting.variants}
    lines["floor"] = (budgets, [found[f"{name}.floor"]] * len(budgets))
    figures.curves(
        setting.run.path("figures", "evaluations.png"), lines,
        xlabel="network evaluations per sample", ylabel=f"{name} distance", logx=True,
        logy=all(value > 0 for _, values in lines.values() for value in values),
        caption="Distance to held-out data; the floor is what as many real training items get.",
    )  # fmt: skip


def prior_gap(setting: Setting) -> dict[str, float]:
    """At the largest budget: ``prior_gap.DISTANCE.SOURCE`` for z from oracle, prior, marginal and uniform.

    ``prior_gap.ratio`` = prior / marginal, ``prior_gap.over_oracle`` = prior / oracle; ``prior_gap.nats.SOURCE`` are
    held-out nats of the test items' codes (discrete latents only).
    """
    judge, budget = make_judge(setting.dataset), max(setting.config.measure.evaluations)
    sources = ["oracle", "prior"] + (["marginal", "uniform"] if setting.discrete else [])
    found: dict[str, float] = {}
    for source in sources:
        means, _ = mean_scores(scores(setting, judge, "ours", budget, source=source))
        found[f"{judge.distance}.{source}"] = means[judge.distance]
    found["over_oracle"] = ratio(found[f"{judge.distance}.prior"], found[f"{judge.distance}.oracle"])
    nats: dict[str, float] = {}
    if setting.discrete:
        found["ratio"] = ratio(found[f"{judge.distance}.prior"], found[f"{judge.distance}.marginal"])
        nats = _held_out_nats(setting)
        found |= {f"nats.{name}": value for name, value in nats.items()}
    rows: list[list[Cell]] = [[name, found[f"{judge.distance}.{name}"], nats.get(name)] for name in sources]
    note = f"{budget} evaluations, {setting.num_samples} samples; {judge.space}; oracle: z of training items"
    table = Table("Samples by source of z", ["z from", judge.distance, "held-out nats"], rows, note)
    table.save(setting.run.path("tables", "prior_gap.json"))
    return found


@torch.no_grad()
def _held_out_nats(setting: Setting) -> dict[str, float]:
    parts, denoiser = setting.parts, setting.parts.denoiser
    latents = Latents(parts, setting.dataset.test, setting.config.latents.extraction_temperature)
    codes, labels = latents.draw(setting.rng("nats"))
    uniform = UniformPrior(denoiser.num_latents, denoiser.codebook_size, denoiser.num_classes).to(setting.device)
    priors = {"prior": parts.prior, "marginal": setting.marginal_prior, "uniform": uniform}
    return {name: evaluate(prior, codes, labels) for name, prior in priors.items() if prior is not None}


def guidance(setting: Setting) -> dict[str, float]:
    """D + cfg (D - D_null) at the largest budget, steps halved where guided: ``guidance.DISTANCE.BRANCH.cfg_W``.

    BRANCH is null (the model's own null branch) or baseline (the separately trained network without latents).
    ``guidance.ratio.BRANCH.cfg_W`` is over cfg 0.
    """
    judge, budget = make_judge(setting.dataset), max(setting.config.measure.evaluations)
    plain = _mean_distance(setting, judge, budget, cfg_scale=0.0)
    branches: dict[str, dict[str, Any]] = {"null": {}}
    if setting.parts.baseline is not None:
        branches["baseline"] = {"null_denoiser": setting.parts.baseline}
    found: dict[str, float] = {f"{judge.distance}.cfg_0": plain}
    scales = [scale for scale in setting.config.measure.cfg_scales if scale != 0]
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for name, branch in branches.items():
        values = [_mean_distance(setting, judge, budget, cfg_scale=scale, **branch) for scale in scales]
        for scale, value in zip(scales, values, strict=True):
            found[f"{judge.distance}.{name}.{scale_key(scale)}"] = value
            found[f"ratio.{name}.{scale_key(scale)}"] = ratio(value, plain)
        lines[f"{name} branch"] = ([0.0, *scales], [plain, *values])
    rows: list[list[Cell]] = [[0.0, *[plain] * len(lines)]]
    rows += [[scale, *(values[row + 1] for _, values in lines.values())] for row, scale in enumerate(scales)]
    note = f"at most {budget} evaluations; a guided call takes two"
    table = Table(f"Guidance on z: {judge.distance} distance", ["cfg", *lines], rows, note)
    table.save(setting.run.path("tables", "guidance.json"))
    figures.curves(
        setting.run.path("figures", "guidance.png"), lines, xlabel="guidance scale cfg", ylabel=judge.distance,
        logy=all(value > 0 for _, values in lines.values() for value in values), caption=note,
    )  # fmt: skip
    return found


def _mean_distance(setting: Setting, judge: Judge, budget: int, **how: Any) -> float:
    return mean_scores(scores(setting, judge, "ours", budget, **how))[0][judge.distance]


def memorisation(setting: Setting) -> dict[str, float]:
    """Median distance to the nearest training item, over that of held-out items (near 1 is fresh, 0 a copy)."""
    budget, found = max(setting.config.measure.evaluations), {}
    train = setting.pictures(setting.dataset.train)
    held_out = setting.items(setting.dataset.test, MOST_MEMORISED)[0]
    sources = {"oracle": ("ours", "oracle"), "prior": ("ours", "prior"), "baseline": ("baseline", "prior")}
    for name, (variant, source) in sources.items():
        if variant in setting.variants and (setting.parts.denoiser.num_latents or name != "oracle"):
            samples = setting.samples(variant, budget, source=source)[0][:MOST_MEMORISED]
            found[name] = memorisation_ratio(samples, held_out, train)
    rows: list[list[Cell]] = [[name, value] for name, value in found.items()]
    table = Table("Nearest training item, relative to held-out items", ["samples", "ratio"], rows)
    table.save(setting.run.path("tables", "memorisation.json"))
    return {name: value for name, value in found.items() if math.isfinite(value)}
