"""The measures of a trained model, by name, and the headline table: ours, the baseline, the floor.

A new measure is one function of a ``Setting`` that returns ``{key: number}``, writes its tables and figures into the
run folder, and is named in ``MEASURES``.
"""

from __future__ import annotations

from collections.abc import Callable

from toolkit.data.sets import Dataset
from toolkit.disco.artefact import Parts
from toolkit.disco.config import TrainDisco
from toolkit.disco.measure.latents import cost, shared
from toolkit.disco.measure.loss import loss, use
from toolkit.disco.measure.paths import jacobian, switch, turning
from toolkit.disco.measure.quality import guidance, memorisation, prior_gap, quality
from toolkit.disco.measure.setting import Setting, evaluations_key, sigma_key
from toolkit.runs import progress
from toolkit.runs.record import Run
from toolkit.show.table import Cell, Table

MEASURES: dict[str, Callable[[Setting], dict[str, float]]] = {
    "loss": loss,
    "use": use,
    "turning": turning,
    "jacobian": jacobian,
    "quality": quality,
    "prior_gap": prior_gap,
    "guidance": guidance,
    "shared": shared,
    "switch": switch,
    "cost": cost,
    "memorisation": memorisation,
}
NEED_LATENTS = ("use", "prior_gap", "guidance", "shared", "switch", "cost")
NEED_DISCRETE = ("use",)


def measure(parts: Parts, dataset: Dataset, config: TrainDisco, run: Run) -> dict[str, float]:
    """Take the measures that ``config.measure.names`` lists; put them into the run's metrics as ``MEASURE.KEY``.

    Writes tables/*.json (headline.json among them) and figures/*.png. Returns all metrics. A measure of latents on a
    model without them is skipped, with a line that says so.
    """
    setting = Setting(parts, dataset, config, run)
    found: dict[str, float] = {}
    for name in config.measure.names:
        missing = _missing(setting, name)
        if missing:
            progress.say(f"measure {name}: skipped, the model has no {missing}")
            continue
        progress.say(f"measure {name}")
        values = MEASURES[name](setting)
        run.add_metrics(name, values)
        found |= {f"{name}.{key}": value for key, value in values.items()}
    table = headline(found, config)
    table.save(run.path("tables", "headline.json"))
    return found


def _missing(setting: Setting, name: str) -> str | None:
    if name in NEED_LATENTS and not setting.parts.denoiser.num_latents:
        return "latents"
    if name in NEED_DISCRETE and not setting.discrete:
        return "discrete latents"
    return None


def headline(found: dict[str, float], config: TrainDisco) -> Table:
    """The headline table: one row per quantity, with ours, the baseline and the floor (the best possible value)."""
    distance = next((name for name in ("frechet", "energy") if f"quality.{name}.floor" in found), None)
    rows: list[list[Cell]] = []

    def add(label: str, ours: str, baseline: str, floor: str = "") -> None:
        if ours in found:
            rows.append([label, found[ours], found.get(baseline), found.get(floor)])

    for budget in config.measure.evaluations if distance else []:
        ours, theirs = (f"quality.{distance}.{v}.{evaluations_key(budget)}" for v in ("ours", "baseline"))
        add(f"{distance} distance, {budget} evaluations", ours, theirs, f"quality.{distance}.floor")
    if distance:
        add(f"{distance} distance, encoder's z", f"prior_gap.{distance}.oracle", "", f"quality.{distance}.floor")
    for sigma in sorted({min(config.measure.sigmas), *config.measure.sigmas[-2:]}):
        key = sigma_key(sigma)
        add(f"loss at σ = {sigma:g}", f"loss.ours.{key}", f"loss.baseline.{key}", f"loss.bayes.{key}")
    add("turning of the ODE, degrees", "turning.mean.ours", "turning.mean.baseline")
    add("information in the codes, nats", "use.information", "")
    note = "lower is better, except for information; floor: as many real items, or the lowest possible loss"
    return Table("DisCo-Diff and its baseline", ["measure", "DisCo-Diff", "baseline", "floor"], rows, note)
