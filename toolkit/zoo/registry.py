"""What the command line asks of the zoo: list and show networks, count them, import official weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import UserError, did_you_mean
from toolkit.zoo.catalogue import LAYOUTS, NAMED, PUBLISHED, SHIPPED, local, resolve
from toolkit.zoo.loading import load
from toolkit.zoo.sizes import sizes_in

if TYPE_CHECKING:
    from torch import Tensor, nn


def list_networks() -> list[dict[str, Any]]:
    """One row per named network: name, class, parameters, gflops (one forward at batch 1), paper, note."""
    return [_summary(name) for name in NAMED]


def list_published() -> list[dict[str, Any]]:
    """One row per published world model: name, hub, parameters, licence, note."""
    rows = []
    for name, one in PUBLISHED.items():
        parameters = sum(count_parameters(network) for network in _published_parts(name).values())
        rows.append({"name": name, "hub": one.hub, "parameters": parameters, "licence": one.licence, "note": one.note})
    return rows


def list_shipped() -> list[dict[str, Any]]:
    """One row per model that comes with the package: name, parameters (of all its parts), licence, note."""
    rows = []
    for name, one in SHIPPED.items():
        parameters = sum(sizes_in(sorted(local(name).rglob("*.safetensors"))))
        rows.append({"name": name, "parameters": parameters, "licence": one.licence, "note": one.note})
    return rows


def _published_parts(name: str) -> dict[str, Any]:
    """Tokenizer and transformer of a published world model, on the meta device."""
    import torch

    one, actions = PUBLISHED[name], {"action_dim": PUBLISHED[name].action_dim or None}
    entry = NAMED[one.transformer]
    with torch.device("meta"):
        transformer = resolve(entry.target)(**entry.config, **actions)
    return {"tokenizer": build_on_meta(one.tokenizer), "transformer": transformer}


def _show_published(name: str) -> dict[str, Any]:
    row = next(row for row in list_published() if row["name"] == name)
    parts = {part: count_parameters(network) for part, network in _published_parts(name).items()}
    one = PUBLISHED[name]
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
        network, row = build_on_meta(name), _summary(name)
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


def build_on_meta(name: str) -> Any:
    """A named network without memory for its weights."""
    import torch

    with torch.device("meta"):
        return NAMED[name].build()


def count_parameters(*networks: nn.Module | None) -> int:
    """Numbers that training changes, of all networks together; buffers are not counted, None counts nothing."""
    return sum(parameter.numel() for network in networks if network is not None for parameter in network.parameters())


def count_flops(network: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Floating-point operations of one forward (a multiply-add is two) of matrix products, convolutions, attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        network(**inputs)
    return counter.get_total_flops()


def _summary(name: str) -> dict[str, Any]:
    import torch

    entry, network = NAMED[name], build_on_meta(name)
    if isinstance(entry.inputs, str):
        inputs = resolve(entry.inputs)()
    else:
        inputs = {
            key: torch.zeros(shape, dtype=getattr(torch, dtype), device="meta")
            for key, (dtype, shape) in entry.inputs.items()
        }
    return {
        "name": name,
        "class": type(network).__name__,
        "parameters": count_parameters(network),
        "gflops": count_flops(network.eval(), inputs) / 1e9,
        "paper": entry.paper,
        "note": entry.note,
    }
