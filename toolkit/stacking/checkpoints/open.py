"""Hugging Face checkpoints, opened without reading their weights. They are written by write.py."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import UserError, brief, few
from toolkit.plain_files import read_object
from toolkit.stacking.checkpoints.gguf_header import GGUFHeader, read_gguf_header
from toolkit.stacking.checkpoints.load import fetched, load_config, load_model, load_tokenizer, one_line, place
from toolkit.stacking.checkpoints.safetensors_io import CONSTANTS, SafetensorsFile
from toolkit.stacking.operators.architecture import Architecture
from toolkit.stacking.operators.families import family
from toolkit.stacking.operators.llama import changed
from toolkit.stacking.operators.tensors import Info, InMemory, Renamed, Tensors
from toolkit.zoo.importing import load_tensors
from toolkit.zoo.sizes import no_larger_than

MOST_LAYERS = 10_000
ADAPTER = "adapter_config.json"
MERGE = "merge it into its base first, as merge_and_unload of peft does"
log = logging.getLogger(__name__)
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", ".block_count")


@dataclass
class Checkpoint:
    """A checkpoint whose tensors are read when asked for.

    source: what the user called it. folder: where its other files are; None for a single GGUF file.
    tokenizer: the transformers tokenizer, None where the checkpoint has none.
    generation_config: only of a single file; a folder's is copied.
    """

    source: str
    architecture: Architecture
    config: Any
    tensors: Tensors
    folder: Path | None
    tokenizer: Any | None
    generation_config: Any | None = None


class Shards(Tensors):
    """The files of one checkpoint as one set of tensors; ``weight_map``: name -> file name, as in the index."""

    def __init__(self, folder: Path, files: list[str], weight_map: Mapping[str, str] | None = None) -> None:
        self._files = {name: SafetensorsFile(folder / name) for name in files}
        self._home = {name: file for file in self._files.values() for name in file.infos}
        if weight_map is not None:
            _check_index(folder, weight_map, {name: file.path.name for name, file in self._home.items()})
        self.infos = {name: file.infos[name] for name, file in self._home.items()}

    def read(self, name: str) -> Tensor:
        return self._home[name].read(name)

    def write(self, name: str, file: Any) -> None:
        self._home[name].write(name, file)


def find_network(source: str, part: str | None = None) -> str:
    """Where the network is that ``source`` and ``part`` name; anything but a run as it is.

    Of a run that is ``model/<part>``; without ``part`` its only network, or the world model that several are parts of.
    Raises UserError where a run has no such part, or several that are no whole and none is named.
    """
    folder = Path(source)
    if part is None and not (folder / "run.json").is_file():
        return source
    found = {path.parent.name: str(path.parent) for path in sorted(folder.glob("model/*/config.json"))}
    if part is None and len(found) == 1:
        return next(iter(found.values()))
    if part is None and (folder / "model" / "config.json").is_file():
        return str(folder / "model")
    if part not in found:
        what = f"has no network {part}" if part else "has several networks"
        raise UserError(f"model={source}: {what}; part= is one of {', '.join(found) or 'none: it saved no network'}")
    return found[part]


def is_zoo_network(source: str) -> bool:
    """Whether ``source`` is the folder of a network of the zoo rather than a transformers checkpoint."""
    try:
        return "_class_name" in read_object(Path(source) / "config.json")
    except (OSError, ValueError):
        return False


def open_checkpoint(source: str | Path) -> Checkpoint:
    """A checkpoint folder, ``.gguf`` file or hub id.

    Raises UserError in one line: nothing there, another architecture, quantised, a damaged or missing shard, tensors
    that do not fit the config, a tokenizer that does not fit the vocabulary.
    """
    if str(source).endswith(".gguf"):
        return _open_gguf(Path(source))
    folder = Path(fetched(str(source)))
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: {_instead_of_a_checkpoint(folder)} (expected a folder of save_pretrained)")
    config = _folder_config(folder)
    _refuse_adapter(folder)
    architecture = family(config, str(folder))
    weights = open_weights(folder)
    stored = [math.prod(info.shape) for info in weights.infos.values()]
    with (
        one_line(f"{folder / 'config.json'}: the network it describes"),
        no_larger_than(stored, folder / "config.json"),
    ):
        architecture.shapes(config)
    config, tensors = _settled_head(architecture, config, _in_full(architecture, config, weights))
    tensors.infos = _checked(architecture, config, tensors.infos, str(source))
    _check_generation(folder / "generation_config.json")
    return Checkpoint(str(source), architecture, config, tensors, folder, load_tokenizer(folder))


def _check_generation(path: Path) -> None:
    """Raises UserError for settings of text generation that cannot be read; they come along with what grows."""
    try:
        if path.is_file():
            read_object(path)
    except (OSError, ValueError) as error:
        said = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{path}: {said}; mend the file, or move it away") from None


def _instead_of_a_checkpoint(folder: Path) -> str:
    """What a folder without config.json seems to be, or what is no folder."""
    if folder.is_file():
        return f"is a file; give its folder, {folder.parent}"
    if (folder / ADAPTER).is_file():
        return f"holds an adapter (LoRA) only; {MERGE}"
    if files := sorted(folder.glob("*.gguf")):
        return f"no config.json there; give the file, {files[0]}"
    if files := sorted(folder.glob("checkpoint-*/config.json")):
        return f"no config.json there; give one of the checkpoints in it, such as {files[-1].parent}"
    if files := sorted(folder.glob("consolidated*")):
        return f"holds weights in their maker's own layout ({files[0].name}); give the version for transformers"
    snapshots = sorted(folder.glob("snapshots/*/config.json")) + sorted(
        folder.glob("models--*/snapshots/*/config.json")
    )
    if snapshots:
        return f"is part of a hub's cache; the checkpoint in it is {snapshots[0].parent}"
    return "no config.json there"


def _refuse_adapter(folder: Path) -> None:
    """Raises UserError where an adapter lies beside the weights: transformers would load both, and we the weights."""
    if (folder / ADAPTER).is_file():
        raise UserError(f"{folder / ADAPTER}: an adapter (LoRA) beside the weights of the folder; {MERGE}, or move it")


def _say_custom_code(path: Path, raw: Mapping[str, Any]) -> None:
    """Say that a network of a family that is known here has code of its own, which is never run."""
    if "auto_map" in raw:
        log.warning(
            "%s: names code of its own (auto_map), which is not run: read as transformers' own %s, and grown so",
            *(path, raw.get("model_type")),
        )


def _in_full(architecture: Architecture, config: Any, tensors: Tensors) -> Tensors:
    """The tensors by their full names, where a file holds the network without its head (as gpt2's own does)."""
    known = architecture.shapes(config)
    stored = {name if name in known else f"{architecture.prefix}{name}": name for name in tensors.infos}
    return Renamed(tensors, {full if full in known else name: name for full, name in stored.items()})


def _settled_head(architecture: Architecture, config: Any, tensors: Tensors) -> tuple[Any, Tensors]:
    """Config and tensors as transformers takes them where a head that should be the embedding is stored as well.

    With the same values it is left out; with others, as merged adapters have them, it is a head of its own and the
    network is untied; where it is the only one of the two, it is the embedding.
    """
    embedding, head = architecture.embedding, architecture.head
    if not architecture.tied(config) or head not in tensors.infos:
        return config, tensors
    if embedding not in tensors.infos:
        return config, Renamed(tensors, {embedding if name == head else name: name for name in tensors.infos})
    if not _same_values(tensors.read(head), tensors.read(embedding)):
        return changed(config, {"tie_word_embeddings": False}), tensors
    return config, Renamed(tensors, {name: name for name in tensors.infos if name != head})


def _same_values(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same numbers, whatever their types."""
    if first.dtype != second.dtype:
        first, second = first.float(), second.float()
    return torch.equal(first, second)


def _folder_config(folder: Path) -> Any:
    """The config of a folder, whose architecture is checked before transformers interprets it."""
    path = folder / "config.json"
    try:
        raw = read_object(path)
        _check_layers(path, raw)
        family(type("Raw", (), raw), str(path))
    except UserError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read: {brief(error, 300)}") from None
    _say_custom_code(path, raw)
    return load_config(str(folder))


def _check_layers(where: Path, settings: Mapping[str, Any]) -> None:
    """Raises UserError for a number of layers with which even a list of their kinds would fill the memory."""
    for key, value in settings.items():
        if key.endswith(LAYERS) and (isinstance(value, (int, float)) and not value <= MOST_LAYERS):
            raise UserError(f"{where}: {key}={value}: at most {MOST_LAYERS} layers are read")


def open_weights(folder: Path) -> Tensors:
    """The weights of a checkpoint folder. Raises UserError where files are missing or damaged."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return Shards(folder, *_indexed(index))
    if (folder / "model.safetensors").is_file():
        return Shards(folder, ["model.safetensors"])
    if pickled := _pickled(folder):
        return _open_pickled(pickled)
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    hint = f" (but {few(others, 3)}; a variant is read under the plain name)" if others else ""
    raise UserError(f"{folder}: no model.safetensors, model.safetensors.index.json or pytorch_model.bin there{hint}")


def _indexed(index: Path) -> tuple[list[str], dict[str, str]]:
    """The files that an index of shards names, and the file of each tensor. Raises UserError."""
    try:
        weight_map = read_object(index, weight_map=dict)["weight_map"]
        files = sorted(set(weight_map.values()))
        missing = [name for name in files if not (index.parent / name).is_file()]
    except (ValueError, TypeError):
        raise UserError(f"{index}: not an index of shards") from None
    if missing:
        raise UserError(f"{index}: names {missing[0]}, which is not there")
    return files, weight_map


def _pickled(folder: Path) -> list[Path]:
    """The old ``.bin`` files of a checkpoint folder. Raises UserError where its index names others."""
    index = folder / "pytorch_model.bin.index.json"
    if index.is_file():
        return [folder / name for name in _indexed(index)[0]]
    return sorted(folder.glob("pytorch_model*.bin"))


def _open_pickled(paths: list[Path]) -> Tensors:
    """Old ``.bin`` files, mapped into memory and read without running what they contain."""
    state: dict[str, Tensor] = {}
    for path in paths:
        try:
            found = load_tensors(path, mapped=True)
        except ValueError as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
        if not isinstance(found, dict):
            raise UserError(f"{path}: holds a {type(found).__name__}, expected tensors by name")
        for name, value in found.items():
            if not isinstance(value, Tensor) or not isinstance(name, str):
                raise UserError(f"{path}: {name} is a {type(value).__name__}, expected tensors by name")
        state |= found
    return InMemory({name: tensor for name, tensor in state.items() if not name.endswith(CONSTANTS)})


def _open_gguf(path: Path) -> Checkpoint:
    """transformers turns the file's 4- to 16-bit values back into floats, which needs memory for the model."""
    place(str(path))  # it is there, and so is what reads it
    header = read_gguf_header(path)
    _check_layers(path, header.fields)
    architecture = family(_unquantised(load_config(str(path))), str(path))
    _check_heads(path, header)
    with no_larger_than([math.prod(shape) for shape in header.shapes.values()], path):
        network, tokenizer = load_model(str(path))
    config, state = _unquantised(network.config), network.state_dict()
    names = architecture.shapes(config)
    if not names.keys() <= state.keys():
        raise UserError(f"{path}: {config.model_type} grows from folders only; GGUF files keep it in another form")
    tensors = InMemory({name: state[name] for name in names})
    return Checkpoint(str(path), architecture, config, tensors, None, tokenizer, network.generation_config)


def _check_heads(path: Path, header: GGUFHeader) -> None:
    """Raises UserError where transformers would take another size of a head than the file's."""
    config, size = load_config(str(path)), None
    for name, value in header.fields.items():
        if name.endswith(".attention.key_length"):
            size = value
    taken = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size not in (None, taken):
        raise UserError(
            f"{path}: its heads have {size} features, but transformers reads {taken} from this kind of file"
        )


def _unquantised(config: Any) -> Any:
    """The config without a word about the file's own types: its values are floats by now."""
    settings = config.to_dict()
    settings.pop("quantization_config", None)
    return type(config).from_dict(settings)


def _checked(architecture: Architecture, config: Any, infos: Mapping[str, Info], where: str) -> dict[str, Info]:
    """The infos in the network's order, exactly those its config asks for."""
    shapes = architecture.shapes(config)
    if any(name.startswith("llm.") for name in infos):
        raise UserError(f"{where}: the transformer of a world model; give the folder that holds its tokenizer too")
    extra = [name for name in infos if name not in shapes]
    missing = [name for name in shapes if name not in infos]
    if architecture.head in missing and architecture.embedding in infos:
        kind = few(getattr(config, "architectures", None) or ["no class"], 1)
        raise UserError(f"{where}: has no head of a language model ({architecture.head}); its config says {kind}")
    for what, names in (("missing", missing), ("unknown", extra)):
        if names:
            raise UserError(f"{where}: {what} tensor {names[0]}" + (f" and {len(names) - 1} more" * (len(names) > 1)))
    for name, shape in shapes.items():
        if infos[name].shape != shape:
            raise UserError(f"{where}: {name} is {list(infos[name].shape)}, its config asks for {list(shape)}")
    return {name: infos[name] for name in shapes}


def _check_index(folder: Path, weight_map: Mapping[str, str], stored: Mapping[str, str]) -> None:
    index = folder / "model.safetensors.index.json"
    for name, file in stored.items():
        if weight_map.get(name) != file:
            raise UserError(f"{index}: no entry for {name}, which {file} holds")
    absent = [name for name in weight_map if name not in stored and not name.endswith(CONSTANTS)]
    if absent:
        raise UserError(f"{index}: says that {weight_map[absent[0]]} holds {absent[0]}, which it does not")
