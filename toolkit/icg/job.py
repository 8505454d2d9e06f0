"""``toolkit sample-icg``: edge -> models -> sample -> measure -> report, top to bottom."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.panel import Panel

from toolkit import data
from toolkit.data.sets import Dataset
from toolkit.icg import pictures
from toolkit.icg.columns import DROPPING, GIVEN, PLAIN, Column, columns
from toolkit.icg.config import AutoGuidance, SampleICG
from toolkit.icg.draws_on_disk import Draws, clear, to_floats
from toolkit.icg.exact import ExactSource, exact_dataset
from toolkit.icg.judge import LEAST_FOR_DISTANCES, Judge, why_not
from toolkit.icg.results import Result, all_scores, headline, metrics
from toolkit.icg.small import STAGE, SmallModel, make_small_model, small_config
from toolkit.icg.source import Request, Source
from toolkit.runs import progress
from toolkit.runs.device import make_accelerator
from toolkit.runs.distributed import barrier, rank, world_size
from toolkit.runs.record import Run
from toolkit.runs.table import Table
from toolkit.schema import Data, UserError

MOST_MEASURED = 5000
PARTS = {PLAIN: "denoiser", DROPPING: "dropping", "weak": "weak"}  # of the run's model/


@dataclasses.dataclass
class Plan:
    """Everything that is decided before the first sample: what to compare, how many, and what is measured."""

    columns: list[Column]
    source: Source
    dataset: Dataset | None
    num: int
    num_measured: int
    unmeasured: str


def main(config: SampleICG, run: Run) -> float | None:
    """Make the models that are missing, sample every column from the same noise, measure, report."""
    logging.getLogger("diffusers.guiders.guider_utils").setLevel(logging.ERROR)  # "experimental", for every guider
    accelerator = make_accelerator(config, run.record.get("job_number", 0))
    run.record["device"] = str(accelerator.device)
    plan = make_plan(config, *_open(config, run, accelerator))
    if not run.stage_done("sample"):
        with run.stage("sample"):
            _sample(config, run, plan, accelerator)
    barrier()
    if not run.stage_done("report"):
        with run.stage("report"):
            if rank() == 0:
                _report(config, run, plan)
    if rank() == 0:
        _show(run)
    return _objective(run.record["metrics"], plan)


# -- edge: models and data -------------------------------------------------------------------------------------------


def _open(config: SampleICG, run: Run, accelerator: Accelerator) -> tuple[dict[str, Source], Dataset | None]:
    """The models by name, and what they are measured against."""
    if config.model is None:
        return _small_models(config, run, accelerator)
    if config.model == "exact":
        return {GIVEN: ExactSource(config, accelerator.device)}, exact_dataset(config)
    source = open_source(config, accelerator.device)
    return {GIVEN: source}, _data_of(config, source)


def open_source(config: SampleICG, device: torch.device) -> Source:
    """The model that ``config.model`` names. Raises UserError where nothing usable is there."""
    from toolkit.icg.denoiser_source import DenoiserSource
    from toolkit.icg.pipeline_source import PipelineSource, find_index, refuse

    assert config.model is not None
    index = find_index(config.model)
    if index is not None:
        for method in config.methods():
            refuse(index["_class_name"], method)
        return PipelineSource(config.model, config, device)
    if config.prompts is not None:
        raise UserError(f"prompts: the model in {config.model} takes no text")
    return DenoiserSource(config.model, config, device)


def _small_models(config: SampleICG, run: Run, accelerator: Accelerator) -> tuple[dict[str, Source], Dataset]:
    """The two small models, from the cache or trained now, and the data they were trained on."""
    from toolkit.icg.denoiser_source import DenoiserSource

    dataset = small_dataset(config)
    made: dict[str, str] = {}
    with run.stage("models"):
        for name, small in small_models(config, dataset).items():
            made[name] = str(make_small_model(small, dataset, accelerator))
            if rank() == 0:
                shutil.copytree(f"{made[name]}/model/{STAGE}", run.path("model", PARTS[name]), dirs_exist_ok=True)
    run.record["models"] = made
    sources: dict[str, Source] = {}
    for name in (PLAIN, DROPPING):
        if name in made:
            sources[name] = DenoiserSource(made[name], config, accelerator.device)
            sources[name].class_names = dataset.class_names
    if "weak" in made:
        weak = DenoiserSource(made["weak"], config, accelerator.device)
        sources[PLAIN].set_weak(weak.denoiser, made["weak"])  # type: ignore[attr-defined]
    return sources, dataset


def small_dataset(config: SampleICG) -> Dataset:
    """What the small models learn. Raises UserError for data without classes."""
    dataset = data.load(config.data or Data(), config.seed)
    if dataset.num_classes < 2:
        raise UserError(f"data.name={dataset.name}: has no classes to condition on; choose labelled data")
    return dataset


def small_models(config: SampleICG, dataset: Dataset) -> dict[str, SmallModel]:
    """The models that the methods asked for need, by name."""
    methods = config.methods()
    found = {PLAIN: small_config(config, dataset, 0.0)}
    if any(one.method in ("cfg", "cfg_tsg") for one in methods):
        found[DROPPING] = small_config(config, dataset, config.train.label_drop)
    for one in methods:
        if isinstance(one, AutoGuidance) and one.weak is None:
            steps = max(1, round(one.weak_fraction * config.train.num_steps))
            found["weak"] = small_config(config, dataset, 0.0, steps)
    return found


def _data_of(config: SampleICG, source: Source) -> Dataset | None:
    """The data set given with data=, else the one that a model of ours was trained on."""
    known = getattr(source, "training", {}).get("data")
    chosen = config.data or (Data(**known) if known else None)
    if chosen is None or not config.measure.enabled:
        return None
    labelled = dataclasses.replace(chosen, class_labels=True)
    dataset = data.load(labelled, config.seed)
    source.class_names = source.class_names or dataset.class_names
    return dataset


def make_plan(config: SampleICG, sources: dict[str, Source], dataset: Dataset | None) -> Plan:
    """What will be drawn and measured. Raises UserError for a method that a model does not support."""
    source = next(iter(sources.values()))
    unmeasured = "measure.enabled=false"
    if config.measure.enabled:
        unmeasured = why_not(dataset, source.shape, source.num_classes)
    num_measured = config.measure.num_samples or config.num_samples
    if config.model is None and dataset is not None:
        num_measured = config.measure.num_samples or min(MOST_MEASURED, len(dataset.train))
    num_measured = 0 if unmeasured and config.measure.clip is None else num_measured
    found = columns(config, sources, measured=not unmeasured)
    for warning in dict.fromkeys(filter(None, (one.source.warning(one.guidance) for one in found))):
        progress.say(f"warning: {warning}")
    return Plan(found, source, dataset, max(config.num_samples, num_measured), num_measured, unmeasured)


# -- samples ---------------------------------------------------------------------------------------------------------


def _sample(config: SampleICG, run: Run, plan: Plan, accelerator: Accelerator) -> None:
    """Every column and sampling seed, batch by batch; what is there already is kept."""
    jobs = [(column, repeat) for column in plan.columns for repeat in range(_repeats(config, plan, column))]
    for source in dict.fromkeys(column.source for column in plan.columns):
        for column in plan.columns:
            if column.source is source:
                source.prepare(column.guidance)
        source.warm_up()
    with progress.bar("sample", 0, len(jobs)) as bar:
        for number, (column, repeat) in enumerate(jobs):
            _draw(config, draws_of(config, run, plan, column, repeat), column, repeat)
            bar.text = column.key
            bar.advance(number + 1)


def _repeats(config: SampleICG, plan: Plan, column: Column) -> int:
    """Repeats are for measuring; the pictures are those of the first."""
    return config.repeats if plan.num_measured else 1


def draws_of(config: SampleICG, run: Run, plan: Plan, column: Column, repeat: int) -> Draws:
    """Where the samples of one column and sampling seed lie."""
    num = plan.num if repeat == 0 and column.shown else plan.num_measured
    return Draws(run.dir / "draws" / column.key / f"repeat_{repeat}", num, config.batch_size)


def _draw(config: SampleICG, draws: Draws, column: Column, repeat: int) -> None:
    for index, (start, stop) in enumerate(draws.missing()):
        if index % world_size() != rank():
            continue
        before = time.perf_counter()
        request = Request(config.seed, repeat, start, stop)
        images, calls = column.source.draw(column.guidance, column.scale, request)
        if not torch.isfinite(images).all():
            progress.say(f"warning: {column.key}: samples are not finite; the scale is too large for this model")
            images = images.nan_to_num(0.0, 1.0, -1.0)
        draws.write(start, images, time.perf_counter() - before, calls)


# -- results ---------------------------------------------------------------------------------------------------------


def _report(config: SampleICG, run: Run, plan: Plan) -> None:
    """Scores, the table, the grid, single images and curves; then the batches are removed."""
    judge = None if plan.unmeasured or plan.dataset is None else Judge(plan.dataset, config.measure.neighbours)
    results, shown = [], []
    predicted: dict[str, torch.Tensor | None] = {}
    for column in plan.columns:
        result = Result(column)
        for repeat in range(_repeats(config, plan, column)):
            batch = draws_of(config, run, plan, column, repeat).read()
            images = to_floats(batch.images)
            if repeat == 0:
                result.calls, result.seconds = batch.calls, batch.seconds / len(images)
                if column.shown:
                    shown.append((column, images[: config.num_samples]))
                    if judge is not None and column.source.labels is not None:
                        predicted[column.key] = judge.predict(images[: config.num_samples])
            if judge is not None:
                result.scores.append(_scores(judge, column.source, images[: plan.num_measured]))
        results.append(result)
    floor = {} if judge is None else judge.floor(plan.num_measured)
    run.record["metrics"] = {}
    run.add_metrics("", metrics(results, floor) | plan.source.extra_metrics())
    table = headline(results, floor, _title(config, plan), _note(config, plan))
    table.save(run.path("tables", "headline.json"))
    if any(one.scores for one in results):
        all_scores(results, f"{config.repeats} sampling seeds").save(run.path("tables", "scores.json"))
    _draw_pictures(run, plan, shown, predicted)
    if judge is not None:
        pictures.draw_curves(run, results, floor)
    clear(run.dir / "draws")


def _scores(judge: Judge, source: Source, images: torch.Tensor) -> dict[str, float]:
    labels = None if source.labels is None else [source.labels[i % len(source.labels)] for i in range(len(images))]
    return judge.score(images, labels)


def _draw_pictures(run: Run, plan: Plan, shown: list[tuple[Column, torch.Tensor]], predicted: dict[str, Any]) -> None:
    if shown[0][1].dim() == 2:
        pictures.draw_points(run, shown, plan.source)
        return
    pictures.draw_grid(run, shown, plan.source, predicted)
    for column, images in shown:
        pictures.write_images(run, column, images)


def _title(config: SampleICG, plan: Plan) -> str:
    if config.model is None:
        return f"Guidance on small models of {plan.dataset.name if plan.dataset else ''}"
    return f"Guidance on {config.model}"


def _note(config: SampleICG, plan: Plan) -> str:
    """What the numbers are, and why some are missing."""
    parts = ["FD: Fréchet distance; calls: of the network, per image"]
    if any(one.model == DROPPING for one in plan.columns):
        parts.append(f"(drop): trained with {config.train.label_drop:.0%} of the labels dropped, all others without")
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
            parts.append(f"labels of {len(set(plan.source.labels))} classes, and distances to all")
        if plan.source.labels is None:
            parts.append("no accuracy: the model is not conditioned on the class")
    parts += dict.fromkeys(filter(None, (one.source.warning(one.guidance) for one in plan.columns)))
    return "; ".join(parts)


def _objective(found: dict[str, float], plan: Plan) -> float | None:
    """What an optimising sweeper minimises: the distance of the last method shown."""
    keys = [f"{column.key}.frechet" for column in plan.columns if column.shown]
    return next((found[key] for key in reversed(keys) if key in found), None)


def _show(run: Run) -> None:
    """On the terminal: the table, and where things are."""
    console = Console()
    console.print(Table.load(run.dir / "tables" / "headline.json").to_rich())
    found = {"grid": run.dir / "samples", "images": run.dir / "images", "figures": run.dir / "figures"}
    lines = [f"run      {run.dir}", f"report   {run.dir / 'report.html'}"]
    lines += [f"{name:<8} {path}" for name, path in found.items() if path.exists()]
    console.print(Panel("\n".join(lines), title="sample-icg done", expand=False))


def dry_run(config: SampleICG) -> None:
    """Parameters, FLOPs and network calls of what would be sampled; nothing is trained or drawn."""
    from toolkit.icg.dry import describe

    Console().print(describe(config).to_rich())
