"""mergekit's ``slices:`` files: ranges of layers of one or several checkpoints, one after the other (passthrough).

Embedding and positions come from the first slice's checkpoint, final norm and head from the last one's. A slice's
``scale`` multiplies all that comes from it; a filter of it is held against the name that a tensor has in its own
checkpoint, where layers have their old numbers, as mergekit does. What of a file is not understood is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from toolkit.errors import UserError, brief
from toolkit.plain_files import read_yaml
from toolkit.stacking.checkpoints.open import Checkpoint, open_checkpoint
from toolkit.stacking.operators.grow import Grown
from toolkit.stacking.operators.llama import changed
from toolkit.stacking.operators.patterns import Layer
from toolkit.stacking.operators.tensors import Tensors, precise

PER_LAYER = ("layer_types", "no_rope_layers")
MAY_DIFFER = {"num_hidden_layers", "n_layer", *PER_LAYER, "dtype", "transformers_version", "_name_or_path"}
MAY_DIFFER |= {"use_cache", "bos_token_id", "eos_token_id", "pad_token_id"}


@dataclass(frozen=True)
class Slice:
    """Layers ``first`` to ``last - 1`` of ``model``.

    scales: (filter, factor): a tensor whose name in ``model`` holds the filter is multiplied by the first factor that
    fits; "" fits all of them.
    """

    model: str
    first: int
    last: int
    scales: list[tuple[str, float]] = field(default_factory=list)


def read_slices(path: str | Path) -> tuple[list[Slice], str | None]:
    """The slices of a file and the type of weights it asks for.

    Raises UserError where it cannot be read or asks for something else than to stack layers.
    """
    try:
        content = read_yaml(path, aliases=True)  # people write them by hand
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {brief(error, 200)}") from None
    content = _mapping(content, f"{path}", {"slices", "merge_method", "dtype", "tokenizer_source"})
    if content.get("merge_method", "passthrough") != "passthrough":
        raise UserError(f"{path}: merge_method {content['merge_method']} mixes weights; expected passthrough")
    slices = content.get("slices")
    if not isinstance(slices, list) or not slices:
        raise UserError(f"{path}: slices: must be a list, as in mergekit's files")
    found = [_slice(one, f"{path}: slices[{number}]") for number, one in enumerate(slices)]
    _check_tokenizer(content.get("tokenizer_source"), [one.model for one in found], f"{path}")
    return found, content.get("dtype")


def _check_tokenizer(wanted: Any, models: Sequence[str], path: str) -> None:
    """The first slice's tokenizer comes along. Raises UserError where the file asks for another one."""
    same = {None, "base", models[0], f"model:{models[0]}"} | ({"union"} if len(set(models)) == 1 else set())
    if not isinstance(wanted, str | None) or wanted not in same:
        raise UserError(f"{path}: tokenizer_source {wanted}: the tokenizer is {models[0]}'s, the first slice's")


def _slice(value: Any, where: str) -> Slice:
    sources = _mapping(value, where, {"sources"}).get("sources")
    if not isinstance(sources, list) or len(sources) != 1:
        raise UserError(f"{where}.sources: must hold one model (several would be mixed)")
    source = _mapping(sources[0], f"{where}.sources[0]", {"model", "layer_range", "parameters"})
    model, span = source.get("model"), source.get("layer_range") or []
    first, last = span if isinstance(span, list) and len(span) == 2 else (0, 0)
    if not isinstance(model, str) or type(first) is not int or type(last) is not int or not 0 <= first < last:
        raise UserError(f"{where}: must name a model and layer_range: [first, last], the last one not included")
    parameters = _mapping(source.get("parameters") or {}, f"{where}.parameters", {"scale"})
    return Slice(model, first, last, _scales(parameters.get("scale", []), f"{where}.parameters.scale"))


def _scales(value: Any, where: str) -> list[tuple[str, float]]:
    found = []
    for row in value if isinstance(value, list) else [{"value": value}]:
        kept = _mapping(row, where, {"filter", "value"})
        factor, words = kept.get("value"), kept.get("filter") or ""
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not isinstance(words, str):
            raise UserError(f"{where}: must be a number, or a list of filter and value")
        if not math.isfinite(factor):
            raise UserError(f"{where}: {factor} would leave no number in the weights")
        found.append(("" if words == "*" else words, float(factor)))  # "*" fits every name, as in mergekit
    return found


def _mapping(value: Any, where: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: must hold {', '.join(sorted(known))}")
    for key in value:
        if key not in known:
            raise UserError(f"{where}: {key} is not understood (known: {', '.join(sorted(known))})")
    return value


# -- the network they make ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """Where one target layer comes from."""

    checkpoint: Checkpoint
    number: int
    scales: list[tuple[str, float]]


class Sliced(Tensors):
    """The tensors of the stacked network; tables of embeddings from the first origin, the rest around from the last."""

    def __init__(self, origins: Sequence[Origin], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._homes = {name: self._home(name, origins) for name in shapes}
        self.infos = {name: checkpoint.tensors.infos[origin] for name, (checkpoint, origin, _) in self._homes.items()}

    @staticmethod
    def _home(name: str, origins: Sequence[Origin]) -> tuple[Checkpoint, str, float]:
        """Checkpoint, name there and factor."""
        architecture = origins[0].checkpoint.architecture
        layer, _ = architecture.locate(name)
        if layer is None:
            spec = architecture.spec(name)
            one, origin = origins[0 if spec is not None and spec.kind == "embedding" else -1], name
        else:
            one = origins[layer]
            origin = architecture.rename(name, one.number)
        return one.checkpoint, origin, next((factor for words, factor in one.scales if words in origin), 1.0)

    def read(self, name: str) -> Tensor:
        checkpoint, origin, factor = self._homes[name]
        tensor = checkpoint.tensors.read(origin)
        return tensor if factor == 1 else (precise(tensor) * factor).to(tensor.dtype)

    def write(self, name: str, file: BinaryIO) -> None:
        checkpoint, origin, factor = self._homes[name]
        if factor == 1:
            checkpoint.tensors.write(origin, file)
        else:
            super().write(name, file)


def open_slices(path: str | Path) -> tuple[Checkpoint, Grown]:
    """The first slice's checkpoint, and the network that the file describes; weights are read on demand.

    Raises UserError where a checkpoint lacks a layer, the checkpoints are not of one shape, or the file asks for
    another type than theirs.
    """
    slices, dtype = read_slices(path)
    opened = {name: open_checkpoint(name) for name in dict.fromkeys(one.model for one in slices)}
    for checkpoint in opened.values():
        _check_alike(opened[slices[0].model], checkpoint, dtype, str(path))
    origins, plan, seen = [], [], set()
    for one in slices:
        checkpoint = opened[one.model]
        layers = checkpoint.architecture.num_layers(checkpoint.config)
        if one.last > layers:
            raise UserError(f"{path}: layer_range [{one.first}, {one.last}]: {one.model} has {layers} layers")
        _check_filters(one, checkpoint, one in (slices[0], slices[-1]), str(path))
        for number in range(one.first, one.last):
            origins.append(Origin(checkpoint, number, one.scales))
            plan.append(Layer(number, new=(one.model, number) in seen))
            seen.add((one.model, number))
    base = origins[0].checkpoint
    config = _config(origins, plan, str(path))
    spaces = base.architecture.spaces(config)
    tensors = Sliced(origins, base.architecture.shapes(config))
    notes = [f"layers {one.first} to {one.last - 1} of {one.model}" for one in slices]
    return base, Grown(config, tensors, plan, spaces, spaces, notes=notes)


def _check_filters(one: Slice, checkpoint: Checkpoint, is_end: bool, path: str) -> None:
    """Raises UserError for a filter that scales nothing: the names of another family, or a word misspelt."""
    layers = {name: checkpoint.architecture.locate(name)[0] for name in checkpoint.tensors.infos}
    names = [name for name, at in layers.items() if (is_end if at is None else one.first <= at < one.last)]
    for words, _ in one.scales:
        if not any(words in name for name in names):
            raise UserError(f"{path}: filter {words}: no tensor of these layers of {one.model} has that in its name")


def _check_alike(base: Checkpoint, other: Checkpoint, dtype: str | None, path: str) -> None:
    mine, theirs = base.config.to_dict(), other.config.to_dict()
    for key in sorted(mine.keys() | theirs.keys()):
        if key not in MAY_DIFFER and mine.get(key) != theirs.get(key):
            raise UserError(
                f"{path}: {key} is {mine.get(key)} in {base.source}, but {theirs.get(key)} in {other.source}; "
                "only layers of one shape can be stacked"
            )
    kinds = {str(info.dtype).removeprefix("torch.") for info in other.tensors.infos.values()}
    if dtype is not None and kinds != {dtype}:
        raise UserError(f"{path}: dtype {dtype}: {other.source} is stored in {', '.join(kinds)}, and types stay")


def _config(origins: Sequence[Origin], plan: Sequence[Layer], path: str) -> Any:
    base = origins[0].checkpoint
    if all(one.checkpoint is base for one in origins):
        return base.architecture.deepened(base.config, plan)
    if getattr(base.config, "mlp_only_layers", None):
        raise UserError(f"{path}: mixtures with plain layers stack from one checkpoint only")
    lists = {
        key: [getattr(one.checkpoint.config, key)[one.number] for one in origins]
        for key in PER_LAYER
        if getattr(base.config, key, None)
    }
    return changed(base.architecture.deepened(base.config, [Layer(0)] * len(origins)), lists)
