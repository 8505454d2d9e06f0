"""The edge of ``sample-icg``: opens the models, finds their data, and decides what is drawn and what is measured.

Whatever can be refused is refused here, before the first sample.
"""

from __future__ import annotations

import dataclasses
import math
import shutil

import torch
from accelerate import Accelerator

from toolkit import data
from toolkit.data.config import Data
from toolkit.data.sets import Dataset
from toolkit.errors import UserError
from toolkit.icg.columns import DROPPING, GIVEN, PLAIN, Column, columns
from toolkit.icg.config import OF_PIPELINES, SampleICG
from toolkit.icg.measure import why_not
from toolkit.icg.methods import AutoGuidance
from toolkit.icg.sources.base import Source
from toolkit.icg.sources.exact import ExactSource, exact_dataset
from toolkit.icg.sources.small import STAGE, SmallModel, make_small_model, small_config
from toolkit.metrics.clip_score import ClipScore
from toolkit.runs import progress
from toolkit.runs.distributed import rank
from toolkit.runs.machine import check_fits
from toolkit.runs.record import Run
from toolkit.zoo.edm.loss import item_bytes

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
    clip: ClipScore | None


def open_models(config: SampleICG, run: Run, accelerator: Accelerator) -> tuple[dict[str, Source], Dataset | None]:
    """The models by name, and what they are measured against."""
    if config.model is None:
        return _small_models(config, run, accelerator)
    if config.model == "exact":
        return {GIVEN: ExactSource(config, accelerator.device)}, exact_dataset(config)
    source = open_source(config, accelerator.device)
    return {GIVEN: source}, _data_of(config, source)


def open_source(config: SampleICG, device: torch.device) -> Source:
    """The model that ``config.model`` names. Raises UserError where nothing usable is there."""
    from toolkit.icg.sources.denoiser import DenoiserSource
    from toolkit.icg.sources.pipeline import PipelineSource
    from toolkit.icg.sources.pipeline_files import check_settings, find_index, refuse

    assert config.model is not None
    index = find_index(config.model)
    if index is not None:
        for method in config.methods():
            refuse(index["_class_name"], method)
        check_settings(index["_class_name"], config)
        return PipelineSource(config.model, config, device)
    for key in OF_PIPELINES:
        if getattr(config, key) is not None:
            raise UserError(f"{key}: the model in {config.model} is no pipeline of diffusers, and has no use for it")
    return DenoiserSource(config.model, config, device)


def _small_models(config: SampleICG, run: Run, accelerator: Accelerator) -> tuple[dict[str, Source], Dataset]:
    """The two small models, from the cache or trained now, and the data they were trained on."""
    from toolkit.icg.sources.denoiser import DenoiserSource

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
    """What the small models learn. Raises UserError for data without classes, and for numbers beyond memory."""
    dataset = data.load(config.data or Data(), config.seed)
    if dataset.num_classes < 2:
        raise UserError(f"data.name={dataset.name}: has no classes to condition on; choose labelled data")
    check_fits("optim.batch_size", config.optim.batch_size, item_bytes(dataset.shape))
    check_samples(config, dataset.shape)
    return dataset


def check_samples(config: SampleICG, shape: tuple[int, ...] | None) -> None:
    """Raises UserError for more samples than memory holds: those that are shown of all methods, or measured of one.

    shape: of a sample; None where it is not known before the first.
    """
    if shape is None:
        return
    sample_bytes = 4 * math.prod(shape)
    check_fits("sampling.num_samples", config.sampling.num_samples, len(config.methods()) * sample_bytes)
    if config.measure.enabled and config.measure.num_samples:
        check_fits("measure.num_samples", config.measure.num_samples, sample_bytes)


def small_models(config: SampleICG, dataset: Dataset) -> dict[str, SmallModel]:
    """The models that the methods asked for need, by name."""
    methods = config.methods()
    found = {PLAIN: small_config(config, dataset, 0.0)}
    if any(one.needs_null for one in methods):
        found[DROPPING] = small_config(config, dataset, config.loss.label_drop)
    for one in methods:
        if isinstance(one, AutoGuidance) and one.weak is None:
            steps = max(1, round(one.weak_fraction * config.optim.num_steps))
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
    check_samples(config, source.shape)
    unmeasured = "measure.enabled=false"
    if config.measure.enabled:
        unmeasured = why_not(dataset, source.shape, source.num_classes)
    num_measured = config.measure.num_samples or config.sampling.num_samples
    if config.model is None and dataset is not None:
        num_measured = config.measure.num_samples or min(MOST_MEASURED, len(dataset.train))
    clip = _clip_score(config, source)
    num_measured = 0 if unmeasured and clip is None else num_measured
    found = columns(config, sources, measured=not unmeasured)
    for warning in dict.fromkeys(filter(None, (one.source.warning(one.guidance) for one in found))):
        progress.say(f"warning: {warning}")
    return Plan(found, source, dataset, max(config.sampling.num_samples, num_measured), num_measured, unmeasured, clip)


def _clip_score(config: SampleICG, source: Source) -> ClipScore | None:
    if config.measure.clip is None or not config.measure.enabled:
        return None
    if source.prompts is None:
        raise UserError(f"measure.clip={config.measure.clip}: needs a model that takes prompts")
    return ClipScore(config.measure.clip, torch.device("cpu"))
