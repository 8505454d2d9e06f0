"""``toolkit sample-icg --dry-run``: sizes and costs, from configs alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from toolkit import data, zoo
from toolkit.data.config import Data
from toolkit.errors import UserError
from toolkit.icg.config import SampleICG
from toolkit.plain_files import named_path, read_object
from toolkit.show.table import Cell, Table
from toolkit.show.terminal import dry_run_table
from toolkit.zoo.counting import count_flops, count_parameters
from toolkit.zoo.edm.build import build_network

Rows = list[list[Cell]]


def describe(config: SampleICG) -> Table:
    """Parameters, FLOPs and network calls per image of every method. Raises UserError where a folder is unusable."""
    started = time.perf_counter()
    rows: Rows = _networks(config)
    evaluations = config.sampling.num_steps
    if config.model is None or not (named_path(config.model) / "model_index.json").exists():
        evaluations = 2 * config.sampling.num_steps - 1  # Heun's method
    for method in config.methods():
        for scale in method.scales:
            unguided = 1 if method.second is None else 2  # the second of two methods guides at any scale of the first
            calls = unguided if scale == 1 else method.calls_per_step
            name = f"{method.method} {scale:g}" if method.guides else method.method
            rows.append([f"{name}, network calls per image", evaluations * calls, f"{calls} a step, at most"])
    return dry_run_table(rows, time.perf_counter() - started)


def _networks(config: SampleICG) -> Rows:
    if config.model == "exact":
        return [["closed form, classes", config.exact.num_classes, f"Gaussians of deviation {config.exact.std:g}"]]
    return _small(config) if config.model is None else _given(config.model)


def _small(config: SampleICG) -> Rows:
    chosen = config.data or Data()
    absent = data.CATALOGUE[chosen.name].needs_path and chosen.path is None
    dataset = data.stand_in(chosen) if absent else data.load(chosen, config.seed)
    with torch.device("meta"):
        network = build_network(config.network, dataset.shape, 0.5, dataset.num_classes)
        call = {"x": torch.empty(1, *dataset.shape), "sigma": torch.ones(1)}
        flops = count_flops(network, call)
    kind = type(network).__name__
    return [
        ["small model, parameters", count_parameters(network), f"{kind}, {config.optim.num_steps} steps to train"],
        ["one network call, GFLOPs", flops / 1e9, f"one sample {tuple(dataset.shape)}"],
    ]


def _given(model: str) -> Rows:
    """Parameters of the networks of a pipeline or of a model of ours, without their weights."""
    folder = named_path(zoo.local(model))
    if (folder / "model_index.json").exists():
        from toolkit.icg.sources.pipeline_files import read_index

        index = read_index(folder / "model_index.json")
        parts = [name for name, value in index.items() if isinstance(value, list) and value[0] == "diffusers"]
        found = [(name, _on_meta(folder / name)) for name in parts if (folder / name / "config.json").exists()]
        return [[f"{name}, parameters", count_parameters(part), type(part).__name__] for name, part in found]
    places = [folder / "model" / "denoiser", folder / "denoiser", folder]
    place = next((one for one in places if (one / "config.json").is_file()), None)
    if place is None:
        raise UserError(f"model={model}: a dry run needs a folder with model_index.json, a run, or a config.json")
    network = _on_meta(place)
    return [["denoiser, parameters", count_parameters(network), type(network).__name__]]


def _on_meta(folder: Path) -> Any:
    from toolkit.zoo.loading import find_class

    config = read_object(folder / "config.json")
    with torch.device("meta"):
        return find_class(config.get("_class_name", "")).from_config(config)
