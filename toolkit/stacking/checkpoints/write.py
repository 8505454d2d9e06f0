"""Writing a checkpoint folder: aside, tensor by tensor, and renamed when whole."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from toolkit.errors import JobError, UserError
from toolkit.stacking.checkpoints.load import CARRIED_FILES
from toolkit.stacking.checkpoints.open import Checkpoint
from toolkit.stacking.checkpoints.safetensors_io import split_into_shards, total_bytes, write_safetensors
from toolkit.stacking.operators.tensors import Tensors

MAX_SHARD_BYTES = 5_000_000_000


def refuse_used(out: Path) -> None:
    """Raises UserError where ``out`` exists and is not an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out}: exists and is not an empty folder; name another or remove it")


@contextmanager
def whole_or_nothing(out: Path, needed_bytes: int) -> Iterator[Path]:
    """A folder beside ``out`` to write in; it becomes ``out`` at the end, or is removed on any error.

    What a killed attempt left there is cleared away. Raises UserError where ``out`` is in use or cannot be made,
    JobError where the disk cannot take it.
    """
    refuse_used(out)
    aside = out.absolute().parent / f".{out.absolute().name}.partial"
    with _held(aside, out):
        try:
            free = shutil.disk_usage(aside).free
            if free < needed_bytes:
                raise JobError(f"out={out}: needs {needed_bytes / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left")
            yield aside
            for path in [*aside.rglob("*"), aside]:
                _flush(path)
            os.replace(aside, out.absolute())
            _flush(aside.parent)
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


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    _write_config(source, config, folder)
    _carry_along(source, folder)
    return len(shards)


def _write_config(source: Checkpoint, config: Any, folder: Path) -> None:
    """The source's own config.json with the keys that growth changed, so that every reader of that one reads this.

    transformers 5 writes some keys, such as rotary frequencies, in a form that version 4 and other programs pass over.
    """
    if source.folder is None:
        config.save_pretrained(folder)
        return
    old, new = source.config.to_dict(), config.to_dict()
    kept = json.loads((source.folder / "config.json").read_text())
    kept.pop("auto_map", None)  # names Python files that do not come along; the class is transformers' own
    kept |= {key: value for key, value in new.items() if value != old.get(key)}
    (folder / "config.json").write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


def _carry_along(source: Checkpoint, folder: Path) -> None:
    if source.folder is None:
        for part in (source.tokenizer, source.generation_config):
            if part is not None:
                part.save_pretrained(folder)
        return
    for path in source.folder.iterdir():
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in CARRIED_FILES):
            shutil.copyfile(path, folder / path.name)
