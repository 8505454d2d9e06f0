"""A network from a run folder, a folder of ``save_pretrained`` or the hub, strictly and without pickles."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import UserError, brief, did_you_mean, first_line
from toolkit.plain_files import read_object
from toolkit.zoo.catalogue import CLASSES, hub_id, local
from toolkit.zoo.sizes import no_larger_than, sizes_in

if TYPE_CHECKING:
    import torch

_FETCHED = ("config.json", "*.safetensors")  # of each network: never a pickle


def load(source: str | Path, part: str | None = None, device: str | torch.device = "cpu") -> Any:
    """A network with its weights, in eval mode.

    Args:
        source: run folder (the network is ``model/<part>`` in it), folder of ``save_pretrained``, hub id, or the name
            of a published world model or of a model that ships with the package (``toolkit zoo list``).
        part: such as "encoder" or "prior", for folders that hold several networks. Unless given: the world model where
            there is one, else "denoiser".
        device: where to put it.

    Raises:
        UserError: nothing there, the hub cannot be reached, an unknown class, or weights that do not fit the config.
    """
    folder, name = local(source), hub_id(str(source))
    if folder.exists():
        network = _load_folder(_locate(folder, part))
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        network = _load_hub(name, part)
    else:
        raise UserError(f"{source}: not found (expected a run, a folder with config.json, or a hub id)")
    return network.to(device).eval()


def _locate(folder: Path, part: str | None) -> Path:
    """The folder with the config.json of ``part``. Raises UserError where there is none."""
    if folder.is_file():
        raise UserError(
            f"{folder}: is a file; give a run, or the folder that save_pretrained wrote (config.json, weights)"
        )
    for place in (folder, folder / "model"):
        if part is None and ((place / "config.json").is_file() or is_world_model(place)):
            return place
    part = part or "denoiser"
    for place in (folder / "model" / part, folder / part):
        if (place / "config.json").is_file():
            return place
    parts = sorted(path.parent.name for path in [*folder.glob("*/config.json"), *folder.glob("model/*/config.json")])
    if not parts and (folder / "config.json").is_file():
        raise UserError(f"{folder}: is one network by itself; give a run, or a folder in which it is called {part}")
    raise UserError(f"{folder}: no network '{part}' there (found: {', '.join(parts) or 'none'})")


def is_world_model(folder: Path) -> bool:
    """Whether tokenizer and transformer of iVideoGPT lie there."""
    return all((folder / part / "config.json").is_file() for part in ("tokenizer", "transformer"))


def _load_folder(folder: Path) -> Any:
    if is_world_model(folder):
        return find_class("WorldModel").from_pretrained(folder)
    config = read_object(folder / "config.json")
    try:
        network_class = find_class(config["_class_name"])
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error) if isinstance(error, UserError) else "not the config of a network"
        raise UserError(f"{folder / 'config.json'}: {reason}") from None
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{folder}: no *.safetensors file beside config.json")
    with no_larger_than(sizes_in(weights), folder / "config.json"):
        return _load_strictly(network_class, str(folder))


def _load_hub(name: str, part: str | None) -> Any:
    from toolkit.zoo.edm.denoiser import Denoiser

    reachable = hub_answers()
    world = None if part else _fetch_world_model(name, not reachable)
    if world:
        return _load_folder(world)
    where: dict[str, Any] = {"local_files_only": not reachable} | ({"subfolder": part} if part else {})
    try:
        config: Any = Denoiser.load_config(name, **where)
    except OSError as error:
        why = first_line(error) if reachable else "no connection, and not in its cache"
        raise UserError(f"{name}: no such folder, and not to be had from the hub: {why}") from None
    return _load_strictly(find_class(config.get("_class_name", "")), name, **where)


def _fetch_world_model(name: str, offline: bool) -> Path | None:
    """The local copy of a world model on the hub, None where ``name`` is something else."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        for part in ("tokenizer", "transformer"):
            hf_hub_download(name, f"{part}/config.json", local_files_only=offline)
        patterns = ["config.json", *(f"{part}/{what}" for part in ("tokenizer", "transformer") for what in _FETCHED)]
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=offline))
    except (HfHubHTTPError, LocalEntryNotFoundError):  # no such repository or file; ``_load_hub`` says what it tried
        return None


def load_or_refuse(key: str, source: str, load: Callable[[], Any]) -> Any:
    """``load()`` of a library's own ``from_pretrained``; UserError naming ``key=source`` where it fails."""
    try:
        return load()
    except Exception as error:  # a file of somebody's can fail anywhere in a library
        if isinstance(error, UserError) and source in str(error):
            raise
        raise UserError(f"{key}={source}: cannot be loaded: {brief(error, 200)}") from error


def refuse_other_libraries(path: str | Path, index: dict[str, Any]) -> None:
    """Loading a pipeline imports what its index names: only what belongs to diffusers and transformers is let in."""
    from diffusers import pipelines

    for name, part in index.items():
        library = part[0] if isinstance(part, (list, tuple)) and part else None
        if library not in (None, "diffusers", "transformers") and not (
            isinstance(library, str) and library.isidentifier() and hasattr(pipelines, library)
        ):
            raise UserError(f"{path}: {name} comes from {library}, and only parts of diffusers and transformers do")


def hub_answers() -> bool:
    """False where the hub is switched off or, after 3 s, not reached (its own client retries for half a minute)."""
    import socket
    import urllib.request
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies().get("https"):
        return True
    url = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((url.hostname or "", url.port or 443), timeout=3).close()
    except OSError:
        return False
    return True


def _load_strictly(network_class: Any, source: str, **where: Any) -> Any:
    """``from_pretrained`` without pickles, and without the tensors it would leave random or ignore."""
    try:
        network, info = network_class.from_pretrained(source, use_safetensors=True, output_loading_info=True, **where)
    except Exception as error:  # a config of somebody's can fail anywhere in a library
        if isinstance(error, UserError) and source in str(error):
            raise
        raise UserError(f"{source}: cannot be loaded: {brief(error, 500)}") from error
    for what in ("missing_keys", "unexpected_keys"):
        if info[what]:
            raise UserError(f"{source}: {what.replace('_', ' ')} in the weights: {', '.join(sorted(info[what])[:8])}")
    for name, value in network.named_parameters():
        if not value.isfinite().all():
            raise UserError(
                f"{source}: {name} in the weights is not finite; their training went wrong, take earlier ones"
            )
    network.register_to_config(_name_or_path=None)  # what is saved from it shall name no folder of this machine
    return network


def find_class(name: str) -> Any:
    """Ours by CLASSES, then any imported ModelMixin (a paper's own network), then diffusers'."""
    import diffusers

    if name in CLASSES:
        return getattr(importlib.import_module(CLASSES[name]), name)
    pending = [diffusers.ModelMixin]
    while pending:
        known = pending.pop()
        if known.__name__ == name:
            return known
        pending += known.__subclasses__()
    found = getattr(diffusers, name, None) if name else None
    if not isinstance(found, type) or not issubclass(found, diffusers.ModelMixin):
        raise UserError(f"unknown network class '{name}': {did_you_mean(name, CLASSES)}known: {', '.join(CLASSES)}")
    return found
