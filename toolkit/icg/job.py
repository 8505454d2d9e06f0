"""``toolkit sample-icg``: edge -> models -> sample -> measure -> report, top to bottom."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from accelerate import Accelerator

from toolkit.icg.columns import DROPPING, Column
from toolkit.icg.config import SampleICG
from toolkit.icg.measure import LEAST_FOR_DISTANCES, floor, score
from toolkit.icg.plan import Plan, check_samples, make_plan, open_models
from toolkit.icg.results import (
    Result,
    all_scores,
    draw_curves,
    draw_grid,
    draw_points,
    headline,
    metrics,
    prompts_table,
)
from toolkit.icg.sample_store import SampleStore, clear, to_floats
from toolkit.icg.sources.base import Request, Source
from toolkit.metrics.features import features_of
from toolkit.metrics.judge import FeatureJudge
from toolkit.runs import progress
from toolkit.runs.device import accelerator_of
from toolkit.runs.distributed import barrier, rank, world_size
from toolkit.runs.record import Run
from toolkit.show import figures
from toolkit.show.terminal import show, show_end

FEW_STEPS = 4


def main(config: SampleICG, run: Run) -> float | None:
    """Make the models that are missing, sample every column from the same noise, measure, report."""
    logging.getLogger("diffusers.guiders.guider_utils").setLevel(logging.ERROR)  # "experimental", for every guider
    accelerator = accelerator_of(run)
    plan = make_plan(config, *open_models(config, run, accelerator))
    if not run.stage_done("sample"):
        try_out(config, plan)
        with run.stage("sample"):
            _sample(config, run, plan, accelerator)
    barrier()
    if not run.stage_done("report"):
        with run.stage("report"):
            if rank() == 0:
                _report(config, run, plan)
    if rank() == 0:
        show_end(run, {"grid": run.dir / "samples", "images": run.dir / "images", "figures": run.dir / "figures"})
    return _objective(run.record["metrics"], plan)


# -- samples ---------------------------------------------------------------------------------------------------------


def try_out(config: SampleICG, plan: Plan) -> None:
    """Every column for a few steps: what cannot work is refused before the long work, and first calls are slow."""
    request = Request(config.seed, 0, 0, min(2, config.sampling.num_samples))
    for column in plan.columns:
        column.source.prepare(column.guidance)
        column.source.draw(column.guidance, column.scale, request, min(FEW_STEPS, config.sampling.num_steps))
    check_samples(config, plan.source.shape)  # a film has a shape only now


def _sample(config: SampleICG, run: Run, plan: Plan, accelerator: Accelerator) -> None:
    """Every column and sampling seed, batch by batch; what is there already is kept."""
    jobs = [(column, repeat) for column in plan.columns for repeat in range(_repeats(config, plan, column))]
    with progress.bar("sample", 0, len(jobs)) as bar:
        for number, (column, repeat) in enumerate(jobs):
            _draw(config, store_of(config, run, plan, column, repeat), column, repeat)
            bar.text = column.key
            bar.advance(number + 1)


def _repeats(config: SampleICG, plan: Plan, column: Column) -> int:
    """Repeats are for measuring; the pictures are those of the first."""
    return config.repeats if plan.num_measured else 1


def store_of(config: SampleICG, run: Run, plan: Plan, column: Column, repeat: int) -> SampleStore:
    """Where the samples of one column and sampling seed lie."""
    num = plan.num if repeat == 0 and column.shown else plan.num_measured
    return SampleStore(run.dir / "draws" / column.key / f"repeat_{repeat}", num, _batch_size(config, column))


def _batch_size(config: SampleICG, column: Column) -> int:
    return config.sampling.batch_size or column.source.batch_size


def _draw(config: SampleICG, store: SampleStore, column: Column, repeat: int) -> None:
    for start, stop in store.missing():
        if start // store.batch_size % world_size() != rank():  # every rank has its own places in the grid
            continue
        before = time.perf_counter()
        request = Request(config.seed, repeat, start, stop)
        images, calls = column.source.draw(column.guidance, column.scale, request)
        if not torch.isfinite(images).all():
            progress.say(f"warning: {column.key}: samples are not finite; the scale is too large for this model")
            images = images.nan_to_num(0.0, 1.0, -1.0)
        store.write(start, images, time.perf_counter() - before, calls)


# -- results ---------------------------------------------------------------------------------------------------------


def _report(config: SampleICG, run: Run, plan: Plan) -> None:
    """Scores, the table, the grid, single images and curves; then the batches are removed."""
    judge = _judge(config, plan)
    results, shown = [], []
    predicted: dict[str, torch.Tensor | None] = {}
    for column in plan.columns:
        result = Result(column)
        for repeat in range(_repeats(config, plan, column)):
            batch = store_of(config, run, plan, column, repeat).read()
            images = to_floats(batch.images)
            if repeat == 0:
                result.calls, result.seconds = batch.calls, batch.seconds / len(images)
                if column.shown:
                    shown.append((column, images[: config.sampling.num_samples]))
                    if judge is not None and column.source.labels is not None:
                        predicted[column.key] = judge.classify(images[: config.sampling.num_samples])
            if plan.num_measured:
                result.scores.append(_scores(plan, judge, column.source, images[: plan.num_measured]))
        results.append(result)
    real = {} if judge is None else floor(judge, plan.num_measured)
    run.record["metrics"] = {}
    run.add_metrics("", metrics(results, real) | plan.source.extra_metrics())
    table = headline(results, real, _title(config, plan), _note(config, plan))
    table.save(run.path("tables", "headline.json"))
    if plan.source.prompts is not None:
        prompts_table(plan.source, config.sampling.num_samples).save(run.path("tables", "prompts.json"))
    if any(one.scores for one in results):
        all_scores(results, f"{config.repeats} sampling seeds").save(run.path("tables", "scores.json"))
    _draw_pictures(run, plan, shown, predicted)
    if judge is not None:
        draw_curves(run, results, real)
    clear(run.dir / "draws")


def _judge(config: SampleICG, plan: Plan) -> FeatureJudge | None:
    """None where nothing can be measured, which ``plan.unmeasured`` explains."""
    if plan.unmeasured or plan.dataset is None:
        return None
    return FeatureJudge(plan.dataset, features_of(plan.dataset), neighbours=config.measure.neighbours, with_valid=True)


def _scores(plan: Plan, judge: FeatureJudge | None, source: Source, images: torch.Tensor) -> dict[str, float]:
    found: dict[str, float] = {}
    if judge is not None:
        known = source.labels
        found |= score(judge, images, None if known is None else [known[i % len(known)] for i in range(len(images))])
    if plan.clip is not None and source.prompts is not None:
        found["clip"] = plan.clip(images, [source.prompts[i % len(source.prompts)] for i in range(len(images))])
    return found


def _draw_pictures(run: Run, plan: Plan, shown: list[tuple[Column, torch.Tensor]], predicted: dict[str, Any]) -> None:
    if shown[0][1].dim() == 2:
        draw_points(run, shown, plan.source)
        return
    draw_grid(run, shown, plan.source, predicted)
    for column, images in shown:
        figures.save_images(run.dir / "images" / column.key, images)


def _title(config: SampleICG, plan: Plan) -> str:
    if config.model is None:
        return f"Guidance on small models of {plan.dataset.name if plan.dataset else ''}"
    return f"Guidance on {config.model}"


def _note(config: SampleICG, plan: Plan) -> str:
    """What the numbers are, and why some are missing."""
    parts = ["FD: Fréchet distance; calls: network calls per image"]
    if any(one.model == DROPPING for one in plan.columns):
        parts.append(f"(drop): trained with {config.loss.label_drop:.0%} of the labels dropped, all others without")
    if plan.unmeasured:
        parts.append(f"distance, precision, recall and accuracy are not measured: {plan.unmeasured}")
    else:
        seeds = f", {config.repeats} sampling seeds" if config.repeats > 1 else ""
        assert plan.dataset is not None
        parts.append(f"{plan.num_measured} samples{seeds} against the test split of {plan.dataset.name}")
        if plan.num_measured < LEAST_FOR_DISTANCES:
            parts.append(
                f"too few for distances, precision and recall (measure.num_samples={LEAST_FOR_DISTANCES} or more)"
            )
        if plan.source.labels is not None and len(set(plan.source.labels)) < plan.source.num_classes:
            parts.append(f"labels of {len(set(plan.source.labels))} classes, distances to all classes")
        if plan.source.labels is None:
            parts.append("no accuracy: the model is not conditioned on the class")
    parts += dict.fromkeys(filter(None, (one.source.warning(one.guidance) for one in plan.columns)))
    return "; ".join(parts)


def _objective(found: dict[str, float], plan: Plan) -> float | None:
    """What an optimising sweeper minimises: the distance of the last method shown."""
    keys = [f"{column.key}.frechet" for column in plan.columns if column.shown]
    return next((found[key] for key in reversed(keys) if key in found), None)


def dry_run(config: SampleICG) -> None:
    """Parameters, FLOPs and network calls of what would be sampled; nothing is trained or drawn."""
    from toolkit.icg.dry_run import describe

    show(describe(config))
