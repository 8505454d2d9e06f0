"""What the command line asks of the zoo: list and show networks, import official weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.errors import UserError, did_you_mean
from toolkit.zoo.catalogue import LAYOUTS, NAMED, PUBLISHED, SHIPPED, local, resolve
from toolkit.zoo.counting import build_on_meta, count_parameters, counts
from toolkit.zoo.loading import load
from toolkit.zoo.sizes import sizes_in


def list_networks() -> list[dict[str, Any]]:
    """One row per named network: name, class, parameters, gflops (one forward at batch 1), paper, note."""
    return [_named_row(name) for name in NAMED]


def _named_row(name: str) -> dict[str, Any]:
    found, entry = counts()[name], NAMED[name]
    row = {"name": name, "class": found["class"], "parameters": found["parameters"], "gflops": found["flops"] / 1e9}
    return row | {"paper": entry.paper, "note": entry.note}


def list_published() -> list[dict[str, Any]]:
    """One row per published world model: name, hub, parameters, licence, note."""
    rows = []
    for name, one in PUBLISHED.items():
        parameters = sum(counts()[name]["parts"].values())
        rows.append({"name": name, "hub": one.hub, "parameters": parameters, "licence": one.licence, "note": one.note})
    return rows


def list_shipped() -> list[dict[str, Any]]:
    """One row per model that comes with the package: name, parameters (of all its parts), licence, note."""
    rows = []
    for name, one in SHIPPED.items():
        parameters = sum(sizes_in(sorted(local(name).rglob("*.safetensors"))))
        rows.append({"name": name, "parameters": parameters, "licence": one.licence, "note": one.note})
    return rows


def _show_published(name: str) -> dict[str, Any]:
    row = next(row for row in list_published() if row["name"] == name)
    parts, one = counts()[name]["parts"], PUBLISHED[name]
    config = {"tokenizer": one.tokenizer, "transformer": one.transformer, "action_dim": one.action_dim}
    return row | {"class": "WorldModel", "paper": one.paper, "config": config, "parts": parts}


def show_network(name: str) -> dict[str, Any]:
    """What ``list_networks`` says of one network, and its "config" and "parts" (top-level module -> parameters).

    ``name`` may also be a published world model's (see ``list_published``; without gflops), or a shipped model's, or a
    folder that ``load`` reads; then there are no gflops either.
    """
    if name in PUBLISHED:
        return _show_published(name)
    if name in NAMED:
        network, row = build_on_meta(name), _named_row(name)
    elif local(name).exists():
        network = load(name)
        row = {"name": name, "class": type(network).__name__, "parameters": count_parameters(network)}
    else:
        known = [*NAMED, *PUBLISHED, *SHIPPED]
        raise UserError(f"{name}: {did_you_mean(name, known)}no folder and none of {', '.join(known)}")
    config = getattr(network.config, "to_diff_dict", lambda: network.config)()  # transformers' own, or a mapping
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    parts = {key: count_parameters(part) for key, part in network.named_children()}
    return row | {"config": config, "parts": parts}


def list_layouts() -> list[dict[str, str]]:
    """One row per layout of official weights: layout, source, licence."""
    return [{"layout": name, "source": one.source, "licence": one.licence} for name, one in LAYOUTS.items()]


def import_weights(layout: str, source: str | Path, dest: str | Path) -> str:
    """Convert official weights at ``source`` to a ``save_pretrained`` folder ``dest``; returns the licence notice.

    Raises UserError: unknown layout, or what the layout's importer refuses.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout {layout}: {did_you_mean(layout, LAYOUTS)}choose one of {', '.join(LAYOUTS)}")
    return resolve(LAYOUTS[layout].target)(source, dest)
