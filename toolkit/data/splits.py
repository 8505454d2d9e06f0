"""Names of folders that are splits, in any case, whatever kind of data they hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

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
