"""Writing a checkpoint folder: aside, tensor by tensor, and moved into place when whole."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolkit.errors import JobError, UserError, bytes_text
from toolkit.paths import share
from toolkit.plain_files import read_object
from toolkit.runs.files import sync
from toolkit.stacking.checkpoints.load import CARRIED_FILES, load_config
from toolkit.stacking.checkpoints.open import Checkpoint
from toolkit.stacking.checkpoints.safetensors_io import split_into_shards, total_bytes, write_safetensors
from toolkit.stacking.operators.tensors import Tensors

MAX_SHARD_BYTES = 5_000_000_000


def refuse_used(out: Path) -> None:
    """Raises UserError where ``out`` exists and is not an empty folder (of a fresh file system, but for lost+found)."""
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {"lost+found", _aside(out).name}):
        raise UserError(f"out={out}: exists and is not an empty folder; name another or remove it")


def _aside(out: Path) -> Path:
    """Where ``out`` is written: beside it, or, where it is there already, inside.

    A folder that is there may be a mount point, the target of a link or the working folder: it must stay that folder.
    """
    return out.absolute() / ".partial" if out.is_dir() else out.absolute().parent / f".{out.absolute().name}.partial"


@contextmanager
def whole_or_nothing(out: Path, needed_bytes: int) -> Iterator[Path]:
    """A folder beside or in ``out`` to write in; it becomes ``out`` at the end, or is removed on any error.

    What a killed attempt left there is cleared away. Raises UserError where ``out`` is in use or cannot be made,
    JobError where the disk cannot take it.
    """
    refuse_used(out)
    aside = _aside(out)
    with _held(aside, out):
        try:
            free = shutil.disk_usage(aside).free
            if free < needed_bytes:
                raise JobError(f"out={out}: needs {bytes_text(needed_bytes)}, the disk has {bytes_text(free)} left")
            yield aside
            share(aside)
            for path in [*aside.rglob("*"), aside]:
                sync(path)
            _move(aside, out.absolute())
        except OSError as error:
            raise JobError(f"out={out}: writing failed, nothing was kept: {error.strerror or error}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _held(aside: Path, out: Path) -> Iterator[None]:
    """``aside``, empty and locked: the lock goes with the process, however that ends."""
    try:
        aside.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(aside, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"out={out}: cannot be made ({error.strerror}); name another folder") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UserError(f"out={out}: another process is writing it") from None
    try:
        for path in aside.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield
    finally:
        os.close(descriptor)


def _move(aside: Path, out: Path) -> None:
    """``aside`` becomes ``out``; of a folder inside of ``out`` the files do, the config last: without it it is none.

    Raises OSError. Then no file of ``aside`` is in ``out``.
    """
    if aside.parent == out:
        moved: list[Path] = []
        try:
            for path in sorted(aside.iterdir(), key=lambda path: path.name == "config.json"):
                os.replace(path, out / path.name)
                moved.append(out / path.name)
        except OSError:
            for path in moved:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise
    else:
        os.replace(aside, out)
    sync(aside.parent)


def write_checkpoint(
    folder: Path, source: Checkpoint, config: Any, tensors: Tensors, max_shard_bytes: int = MAX_SHARD_BYTES
) -> int:
    """Weights, config, tokenizer and generation config in the layout of ``save_pretrained``; returns the shards.

    Memory for one tensor. Raises OSError.
    """
    shards = split_into_shards(tensors.infos, max_shard_bytes)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    names = names if len(shards) > 1 else ["model.safetensors"]
    for file, held in zip(names, shards, strict=True):
        write_safetensors(folder / file, tensors, held)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": total_bytes(tensors.infos)},
            "weight_map": {name: file for file, held in zip(names, shards, strict=True) for name in held},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    _write_config(source, config, folder)
    _carry_along(source, folder)
    return len(shards)


def _write_config(source: Checkpoint, config: Any, folder: Path) -> None:
    """The source's own config.json with the keys that growth changed, so that every reader of that one reads this."""
    if source.folder is None:
        kept = readable_by_all(config)
    else:
        old, new = load_config(str(source.folder)).to_dict(), config.to_dict()
        kept = read_object(source.folder / "config.json")
        kept.pop("auto_map", None)  # names Python files that do not come along; the class is transformers' own
        kept |= {key: value for key, value in new.items() if value != old.get(key)}
    kept.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def readable_by_all(config: Any) -> dict[str, Any]:
    """A config in the keys that transformers 4 knows, as other programs do; version 5 reads them as well.

    Version 5 itself writes rotary frequencies under ``rope_parameters``, which version 4 passes over without a word.
    """
    kept = json.loads(config.to_json_string())
    if dtype := kept.pop("dtype", None):
        kept["torch_dtype"] = dtype
    rope = kept.get("rope_parameters") or {}
    if "rope_theta" in rope:  # otherwise each kind of layer has its own, for which there is no older form
        del kept["rope_parameters"]
        for key in ("rope_theta", "partial_rotary_factor"):
            kept |= {key: rope.pop(key)} if key in rope else {}
        kept |= {"rope_scaling": rope} if rope.get("rope_type", "default") != "default" else {}
    return kept


def carried_bytes(source: Checkpoint) -> int:
    """How much comes along beside the weights, at most."""
    return 2_000_000 + sum(path.stat().st_size for path in _carried(source.folder))


def _carried(folder: Path | None) -> list[Path]:
    """The files of a checkpoint that its weights and config do not make."""
    found = {path for pattern in CARRIED_FILES for path in folder.glob(pattern)} if folder else set()
    return sorted(path for path in found if path.is_file())


def _carry_along(source: Checkpoint, folder: Path) -> None:
    if source.folder is None:
        for part in (source.tokenizer, source.generation_config):
            if part is not None:
                part.save_pretrained(folder)
        _name_the_class(folder / "tokenizer_config.json")
        return
    for path in _carried(source.folder):
        target = folder / path.relative_to(source.folder)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)


def _name_the_class(path: Path) -> None:
    """transformers 5 names a class that version 4 does not have; both know the older name of the same one."""
    if path.is_file():
        settings = read_object(path)
        if settings.get("tokenizer_class") == "TokenizersBackend":
            path.write_text(
                json.dumps(settings | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n", encoding="utf-8"
            )
