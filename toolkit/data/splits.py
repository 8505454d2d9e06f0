"""Which items are held out: those of folders named as splits, in any case, or items chosen by their own names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from toolkit.errors import UserError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "valid": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}


def split_of(folder: Path) -> str:
    """The split ("train", "valid" or "test") that the folder's name stands for, or the empty string."""
    return _SPLIT_OF.get(folder.name.lower(), "")


def splits_in(name: str) -> set[str]:
    """The splits that the words of a file's name stand for: "valid" in ``wiki.valid.txt``."""
    return {_SPLIT_OF[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLIT_OF}


def split_folders(folders: Iterable[Path]) -> dict[str, Path]:
    """Those of ``folders`` that are named as splits, by split. UserError for two of one split."""
    places: dict[str, Path] = {}
    for folder in folders:
        if split := split_of(folder):
            if split in places:
                names = f"{places[split].name} and {folder.name}"
                raise UserError(f"{folder.parent}: {names} name the same split; keep one of them")
            places[split] = folder
    return places


def hold_out_named(
    names: Sequence[str], labels: np.ndarray | None, fraction: float, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held out), each sorted, of items known by ``names`` (n,), such as paths inside a folder.

    An item is held out by a hash of its own name, so that what else is added to the set or taken from it moves no item
    to the other side. Only where a class (``labels`` (n,)) of two items or more would be wholly on one side, the item
    whose hash is nearest changes it. Raises UserError when nothing would be left on a side.
    """
    drawn = np.array([_uniform_of(f"{split}\0{name}") for name in names])
    is_held = drawn < fraction
    groups = [np.arange(len(names))] if labels is None else [np.flatnonzero(labels == one) for one in np.unique(labels)]
    for group in groups:
        if len(group) > 1 and not is_held[group].any():
            is_held[group[drawn[group].argmin()]] = True
        if is_held[group].all():
            is_held[group[drawn[group].argmax()]] = False
    if is_held.all() or not is_held.any():
        raise UserError(f"data: {len(names)} items are too few to hold out a {split} split of {fraction:g}")
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def _uniform_of(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64
