"""robomimic (Mandlekar et al. 2021) and LIBERO: hdf5 with ``data/demo_*/obs/CAMERA`` beside actions and rewards.

Row t is taken at observation t. ``mask/train`` and ``mask/valid``, where they are, name the demos of each split.
``dones`` mark success, the last row or both, as whoever made the file chose, and are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from toolkit.data.episodes.episode import Episode, move_rows
from toolkit.data.episodes.layouts.base import Options, Source, action_rows, files_below, name_of, plain
from toolkit.data.episodes.layouts.hdf5 import camera, frames, opened, take
from toolkit.data.splits import SPLIT_NAMES
from toolkit.errors import UserError


def read(root: Path, options: Options) -> Source:
    """The demos of one file or of all below a folder. Raises UserError, NeedsOption among several cameras."""
    files = files_below(root, "*.hdf5", "*.h5", hint="give robomimic's file, or the folder of several")
    return Source(_episodes(root, files, options))


def _episodes(root: Path, files: list[Path], options: Options) -> Iterator[tuple[str, Callable[[], Episode]]]:
    for path in files:
        with opened(path, "robomimic") as file:
            if "data" not in file:
                raise UserError(f"{path}: no group 'data' in it (found {', '.join(file) or 'nothing'})")
            demos = sorted(file["data"], key=_number)
            if not demos:
                raise UserError(f"{path}: no demos in 'data'")
            splits = _splits(path, file, demos)
        for demo in demos:
            name = f"{name_of(root, path)}_{demo}"
            yield (
                f"{splits.get(demo, 'train')}/{name}" if splits else name,
                lambda path=path, demo=demo: _episode(path, demo, options),  # type: ignore[misc]
            )


def _number(demo: str) -> tuple[int, str]:
    digits = demo.rpartition("_")[2]
    return (int(digits) if digits.isdecimal() else 0, demo)


def _splits(path: Path, file: Any, demos: list[str]) -> dict[str, str]:
    """demo -> valid or test, of the masks that are named so; demos of no such mask are of train.

    Raises UserError for a mask that names no demo.
    """
    found: dict[str, str] = {}
    masks = file.get("mask", {})
    for split in ("valid", "test"):
        for name in SPLIT_NAMES[split]:
            held = {str(plain(demo)): split for demo in (masks[name][:] if name in masks else ())}
            if held and not held.keys() & set(demos):
                raise UserError(
                    f"{path}: mask/{name} names {next(iter(held))}, and no demo of 'data' ({demos[0]}, ...)"
                )
            found |= held
    return found


def _episode(path: Path, demo: str, options: Options) -> Episode:
    where = f"{path}: {demo}"
    with opened(path, "robomimic") as file:
        group = file["data"][demo]
        if "obs" not in group:
            raise UserError(f"{where}: no 'obs' in it; extract pictures with robomimic's dataset_states_to_obs.py")
        key = camera(where, group["obs"], options.image_key)
        image = frames(where, group["obs"], key)
        num, how = len(image), options.convention
        action = action_rows(where, take(where, group, "actions"), options.num_actions)
        reward = take(where, group, "rewards").ravel() if "rewards" in group else None
        return Episode(
            image, move_rows(where, "actions", action, num, how), move_rows(where, "rewards", reward, num, how)
        )
