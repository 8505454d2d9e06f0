"""stage=compare: loss against compute, speedups at losses fixed in advance, the controls; figures, tables, metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.errors import UserError
from toolkit.runs.distributed import barrier, rank
from toolkit.runs.reading import read_record
from toolkit.runs.record import Run
from toolkit.show import figures
from toolkit.show.table import Spread, Table, number_in_key
from toolkit.stacking.config import GrowLLM
from toolkit.stacking.measure.curves import ACCOUNTINGS, Arm, load_arms
from toolkit.stacking.measure.readings import (
    Reading,
    band,
    crossing,
    final_loss,
    reading,
    recovery_tokens,
    valley,
    variants,
)

AXES = {
    "total": "training FLOPs, 6 x all parameters",
    "non_embedding": "training FLOPs, 6 x parameters without embedding and head",
    "matmul": "training FLOPs of all matrix products",
}
VALLEYS = {"growth_tokens": "growth timing d, tokens", "factor": "growth factor g"}
LOSS = "held-out loss, nats per token"
NOTE = "loss: held-out; tokens, FLOPs (6 x all parameters) and time include the base that an arm started from"
SHOWN_ABOVE = 1.2  # nats over the lowest loss: earlier parts of the curves are left out of the figure
SPEEDUP_GRID = 25


def compare_run(config: GrowLLM, run: Run) -> None:
    """Compare the arms of this run, and of ``compare.runs``, on rank 0."""
    if rank() == 0:
        own = load_arms(run.dir) if (run.dir / "curves").is_dir() else []
        others = other_arms(config)
        if not own and not others:
            raise UserError("compare.runs: must be given with stage=compare, as in compare.runs=[runs/A,runs/B]")
        _compare(config, run, own, others)
    barrier()


def other_arms(config: GrowLLM) -> list[Arm]:
    """The arms of ``compare.runs``. Raises UserError where one is no run, has no curves, or is not finished."""
    return [arm for folder in config.compare.runs for arm in load_arms(_finished(folder))]


def _finished(folder: str) -> Path:
    record = read_record(folder)
    if record is None:
        raise UserError(f"compare.runs: {folder}: no run there (no run.json)")
    if record["status"] != "done":
        raise UserError(f"compare.runs: {folder} is not finished ({record['status']}); run it to its end first")
    return Path(folder)


def _compare(config: GrowLLM, run: Run, own: list[Arm], others: list[Arm]) -> None:
    arms = own + others
    results = [one for arm in arms if arm.label == "grown" if (one := read_arm(arm, arms, config)) is not None]
    measured = [one for one in results if not own or one["arm"] in own]
    for name, value in _means(measured).items():
        run.add_metrics("", {name: value})
    headline = speedup_table(measured, config) if measured else arms_table(arms)
    headline.save(run.path("tables", "headline.json"))
    arms_table(arms).save(run.path("tables", "arms.json"))
    draw(run, config, arms, results)


# -- one grown network against its controls ----------------------------------------------------------------------------


def read_arm(grown: Arm, arms: Sequence[Arm], config: GrowLLM) -> dict[str, Any] | None:
    """Everything that is read for one grown network against its controls; None without a run from scratch.

    Its controls have its seed: from scratch those of its size, base and continued those of the base it grew from.
    ``readings``: {accounting: {"final" or "loss_3p6": Reading}}; ``metrics``: the numbers kept in the record.
    """
    seed = [arm for arm in arms if arm is grown or _controls(arm, grown)]
    scratch = [arm for arm in seed if arm.label == "scratch"]
    if not scratch or not all(arm.has_curve() for arm in (*scratch, grown)):
        return None
    points = {"final": final_loss(scratch, grown)} | {_loss_name(loss): loss for loss in config.compare.losses}
    readings = {
        accounting: {
            name: one for name, loss in points.items() if (one := reading(scratch, grown, loss, accounting)) is not None
        }
        for accounting in ACCOUNTINGS
    }
    return {"arm": grown, "readings": readings, "metrics": _metrics(grown, seed, readings, config)}


def _controls(arm: Arm, grown: Arm) -> bool:
    """Whether ``arm`` is a control of ``grown``: runs that are compared together may differ in target and base."""
    if arm.label == "scratch":
        return _alike(arm, grown, "seed", "layers", "hidden_size")
    return arm.label in ("base", "continued") and _alike(arm, grown, "seed", "base_layers", "growth_tokens")


def _alike(first: Arm, second: Arm, *keys: str) -> bool:
    return all(first.settings.get(key) == second.settings.get(key) for key in keys)


def _metrics(
    grown: Arm, seed: Sequence[Arm], readings: Mapping[str, Mapping[str, Reading]], config: GrowLLM
) -> dict[str, float]:
    accounting = config.budget.accounting
    best = min(arm.final_loss for arm in seed if arm.label == "scratch")
    found = {f"speedup.{name}": one.speedup for name, one in readings[accounting].items()}
    for other in ACCOUNTINGS:
        found |= {f"speedup_{other}.{name}": one.speedup for name, one in readings[other].items()}
    found |= {"final.grown": grown.final_loss, "final.scratch": best, "final.gap_to_scratch": best - grown.final_loss}
    continued = [arm for arm in seed if arm.label == "continued"]
    if continued:
        found["final.continued"] = continued[0].final_loss
        found["final.gap_to_continued"] = continued[0].final_loss - grown.final_loss
        crossed = crossing(grown.curve(accounting), continued[0].curve(accounting))
        found["crossing.flops"] = math.inf if crossed is None else crossed
        start = grown.points[0][f"flops.{accounting}"]
        found["crossing.base_budgets"] = found["crossing.flops"] / start if start else math.inf
    base = next((arm for arm in seed if arm.label == "base"), None)
    if base is not None:
        before, after = base.points[-1]["valid_loss"], grown.points[0]["valid_loss"]
        recovery = recovery_tokens(before, grown)
        found |= {"growth.base_loss": before, "growth.loss": after, "growth.spike": after - before}
        found |= {"growth.recovery_tokens": recovery, "growth.recovery_share": recovery / config.budget.tokens}
    return found


def _loss_name(loss: float) -> str:
    return f"loss_{number_in_key(loss)}"


def _means(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of one run its numbers; of several seeds the mean of those that all have."""
    shared = set.intersection(*(set(one["metrics"]) for one in results)) if results else set()
    return {
        name: math.fsum(one["metrics"][name] for one in results) / len(results)
        for name in (results[0]["metrics"] if results else ())
        if name in shared
    }


# -- tables ------------------------------------------------------------------------------------------------------------


def speedup_table(results: Sequence[Mapping[str, Any]], config: GrowLLM) -> Table:
    """One row per reading point and variant: losses, compute, speedup in each accounting."""
    rows = []
    grouped = variants([one["arm"] for one in results])
    by_arm = {id(one["arm"]): one for one in results}
    for name, arms in grouped.items():
        found = [by_arm[id(arm)]["readings"] for arm in arms]
        for point in dict.fromkeys(key for one in found for key in one[config.budget.accounting]):
            read = [one[config.budget.accounting][point] for one in found if point in one[config.budget.accounting]]
            row: list[Any] = [f"{name}, {'last' if point == 'final' else 'fixed'}", _mean(r.loss for r in read)]
            row += [_mean(r.scratch_flops for r in read), _mean(r.grown_flops for r in read)]
            for accounting in ACCOUNTINGS:
                several = [one[accounting][point].speedup for one in found if point in one[accounting]]
                row.append(_percent(several))
            rows.append(row)
    columns = ["arm, read at", "loss", "C scratch", "C grown", "speedup", "non-emb.", "matmul"]
    note = _seeds_note(grouped.values()) + (
        "speedup = C_scratch / C_grown - 1 at equal held-out loss (eq. 48), counting FLOPs as 6 x all parameters, 6 x "
        "those without embedding and head, or all matrix products; the base's training is included; for scratch, the "
        "learning rate of its sweep that gets there first; last: at the higher of the two last losses"
    )
    return Table("Speedup of growth", columns, rows, note)


def arms_table(arms: Sequence[Arm]) -> Table:
    """One row per variant: what it cost and where it ended."""
    rows = []
    for name, alike in variants(arms).items():
        last = [arm.points[-1] for arm in alike]
        settings = alike[0].settings
        rows.append(
            [
                name,
                settings["layers"],
                settings["lr"],
                _mean(point["tokens"] for point in last),
                _mean(point["flops.total"] for point in last),
                _mean(point["time_s"] for point in last),
                _loss(arm.final_loss for arm in alike),
            ]
        )
    columns = ["arm", "layers", "lr", "tokens", "FLOPs", "time, s", "loss"]
    return Table("Arms", columns, rows, _seeds_note(variants(arms).values()) + NOTE)


def _seeds_note(groups: Iterable[Sequence[Arm]]) -> str:
    """Nothing for one seed; a terminal has no room for n in every cell."""
    most = max(len(alike) for alike in groups)
    return f"means ± standard deviation over {most} seeds; " if most > 1 else ""


def _mean(values: Iterable[float]) -> float:
    """Of what hardly differs between seeds; whole where the values are."""
    items = list(values)
    return items[0] if len(items) == 1 else math.fsum(items) / len(items)


def _loss(values: Iterable[float]) -> str:
    spread = Spread.of(values)
    return f"{spread.mean:.3f}" + ("" if spread.n == 1 else f" ± {spread.sd:.3f}")


def _percent(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = Spread.of([100 * value for value in values])
    return f"{spread.mean:.1f}" + (" %" if spread.n == 1 else f" ± {spread.sd:.1f} %")


# -- figures -----------------------------------------------------------------------------------------------------------


def draw(run: Run, config: GrowLLM, arms: Sequence[Arm], results: Sequence[Mapping[str, Any]]) -> None:
    """Loss against compute in each accounting, against tokens and time; speedup against loss; isoFLOP valleys."""
    ceiling = min(arm.final_loss for arm in arms) + SHOWN_ABOVE
    named = variants([arm for arm in arms if arm.has_curve()])
    for accounting in ACCOUNTINGS:
        series = {name: _compute_series(alike, accounting, ceiling) for name, alike in named.items()}
        path = run.path(
            "figures", "loss_flops.png" if accounting == config.budget.accounting else f"loss_flops_{accounting}.png"
        )
        _curves(path, series, AXES[accounting])
    for key, label in (("tokens", "tokens, the base's included"), ("time_s", "training time, s")):
        series = {name: _plain_series(alike[0], key, ceiling) for name, alike in named.items()}
        _curves(run.path("figures", f"loss_{key.removesuffix('_s')}.png"), series, label)
    if results:
        _draw_speedups(run, config, arms, results)
    _draw_valleys(run, config, [arm for arm in arms if arm.label == "grown" and arm.has_curve()])


def _compute_series(alike: Sequence[Arm], accounting: str, ceiling: float) -> tuple[list[float], ...]:
    curves = [arm.curve(accounting) for arm in alike]
    found = band(curves) if len(curves) > 1 else None
    columns = found or (list(curves[0].flops), list(curves[0].losses))
    kept = [row for row in zip(*columns, strict=True) if row[1] <= ceiling]
    return tuple(list(column) for column in zip(*kept, strict=True))


def _plain_series(arm: Arm, key: str, ceiling: float) -> tuple[list[float], ...]:
    kept = [
        (point[key], loss)
        for point, loss in zip(arm.points, arm.smoothed(), strict=True)
        if loss <= ceiling and point[key] > 0
    ]
    return tuple(list(column) for column in zip(*kept, strict=True))


def _curves(path: Path, series: Mapping[str, tuple[list[float], ...]], xlabel: str) -> None:
    shown = {name: parts for name, parts in series.items() if parts}
    figures.curves(
        path, shown, xlabel=xlabel, ylabel=LOSS, logx=True, caption="the base's compute is part of what grew from it"
    )


def _draw_speedups(run: Run, config: GrowLLM, arms: Sequence[Arm], results: Sequence[Mapping[str, Any]]) -> None:
    """Speedup against the loss it is read at, with a band over seeds."""
    accounting, series = config.budget.accounting, {}
    for name, alike in variants([one["arm"] for one in results]).items():
        scratch = [[a for a in arms if a.label == "scratch" and _controls(a, arm)] for arm in alike]
        low = max(final_loss(theirs, arm) for theirs, arm in zip(scratch, alike, strict=True))
        high = min(arm.smoothed()[0] for arm in alike)
        rows = []
        for index in range(SPEEDUP_GRID):
            loss = low + (high - low) * index / (SPEEDUP_GRID - 1)
            read = [reading(theirs, arm, loss, accounting) for theirs, arm in zip(scratch, alike, strict=True)]
            found = [100 * one.speedup for one in read if one is not None]
            if len(found) == len(alike):
                spread = Spread.of(found)
                sd = 0.0 if math.isnan(spread.sd) else spread.sd
                rows.append((loss, spread.mean, spread.mean - sd, spread.mean + sd))
        if len(rows) > 1:
            columns = [list(column) for column in zip(*rows, strict=True)]
            series[name] = tuple(columns if len(alike) > 1 else columns[:2])
    if series:
        caption = "band: one standard deviation over seeds"
        figures.curves(run.path("figures", "speedup.png"), series, xlabel=LOSS, ylabel="speedup, %", caption=caption)


def _draw_valleys(run: Run, config: GrowLLM, grown: Sequence[Arm]) -> None:
    for key, label in VALLEYS.items():
        if len({arm.settings[key] for arm in grown}) < 3:
            continue
        series: dict[str, tuple[list[float], ...]] = {}
        rows: list[list[Any]] = []
        for flops, losses in valley(grown, key, config.budget.accounting).items():
            places = sorted(losses)
            means = [Spread.of(losses[place]).mean for place in places]
            series[f"{flops:.2g} FLOPs"] = (places, means)
            rows += [[flops, place, _loss(losses[place])] for place in places]
        if not rows:  # no compute that all of them reach
            continue
        logx = min(place for _, place, _ in rows) > 0
        path = run.path("figures", f"valley_{key}.png")
        figures.curves(path, series, xlabel=label, ylabel=LOSS, logx=logx, caption="isoFLOP slices")
        Table(f"isoFLOP valley of {label}", ["FLOPs", label, "held-out loss"], rows).save(
            run.path("tables", f"valley_{key}.json")
        )
