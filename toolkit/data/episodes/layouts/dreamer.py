"""Dreamer's replay: one npz per episode (versions 1 and 2) or per chunk of a stream of steps (version 3).

Versions 1 and 2 store with frame t the action and the reward that led to it, zeros at the first. Version 3 stores the
action taken at frame t beside the reward that led to it; its chunks are cut anywhere, and so are their episodes here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.episodes.episode import Episode, as_frames, check_numbers, move_flags, move_rows
from toolkit.data.episodes.layouts.base import (
    Options,
    Source,
    action_rows,
    choose_camera,
    files_below,
    is_pictures,
    name_of,
    pictures,
)
from toolkit.data.episodes.npz import array_shapes, load_arrays
from toolkit.errors import UserError

Arrays = dict[str, NDArray[Any]]
STEP_ID = "stepid"  # what only version 3 has
KEYS = {"action", "reward", "is_first", "is_terminal", "discount"}


def read(root: Path, options: Options) -> Source:
    """The episodes of all files below a folder. Raises UserError where there is none."""
    files = files_below(root, "*.npz", hint="give the folder of episodes, such as train_eps or replay")
    return Source(_episodes(root, files, options))


def _episodes(root: Path, files: list[Path], options: Options) -> Iterator[tuple[str, Callable[[], Episode]]]:
    for path in files:
        name = name_of(root, path)
        try:
            bounds = _bounds(path)
        except UserError as error:
            yield name, lambda error=error: _raise(error)  # type: ignore[misc]
            continue
        for number, (start, stop) in enumerate(bounds):
            yield (
                name if len(bounds) == 1 else f"{name}_{number:03d}",
                lambda path=path, start=start, stop=stop: _episode(path, start, stop, options),  # type: ignore[misc]
            )


def _raise(error: UserError) -> Episode:
    raise error


def _bounds(path: Path) -> list[tuple[int, int]]:
    """Where episodes begin and end in a file: at ``is_first``, and at the file's ends."""
    shapes = array_shapes(path)
    num = shapes.get("action", (0,))[0] if shapes.get("action") else 0
    if not num:
        raise UserError(f"{path}: no array 'action' in it (found {', '.join(shapes) or 'nothing'})")
    for name in KEYS & shapes.keys():
        if shapes[name][:1] != (num,):
            raise UserError(f"{path}: {name} has shape {list(shapes[name])}, expected {num} rows as action has")
    first = load_arrays(path, ["is_first"])["is_first"].ravel() if "is_first" in shapes else None
    flags = move_flags(path, "is_first", first, num)
    starts = sorted({0, *([] if flags is None else np.flatnonzero(flags).tolist())})
    return list(zip(starts, [*starts[1:], num], strict=True))


def _episode(path: Path, start: int, stop: int, options: Options) -> Episode:
    shapes = array_shapes(path)
    cameras = [name for name, shape in shapes.items() if is_pictures(shape, np.uint8)]  # numbers of any type
    key = choose_camera(path, cameras, options.image_key or ("image" if "image" in cameras else None))
    found = load_arrays(path, [key, *(KEYS & shapes.keys())])
    if len(found[key]) != len(found["action"]):
        raise UserError(f"{path}: {key} has {len(found[key])} frames, action {len(found['action'])} rows")
    part = {name: value[start:stop] for name, value in found.items()}
    image, third = as_frames(path, key, pictures(part[key])), STEP_ID in shapes
    action = action_rows(path, part["action"], options.num_actions)
    begins = not third or bool(np.ravel(part.get("is_first", [True]))[0])
    arrival = options.convention or "arrival"
    if "discount" in part:
        check_numbers(path, "discount", part["discount"])
    ends = part["is_terminal"] if "is_terminal" in part else part["discount"] == 0 if "discount" in part else None
    over = None if ends is None else np.ravel(ends)
    num, reward = len(image), part.get("reward")
    return Episode(
        image,
        move_rows(path, "action", action, num, options.convention or ("departure" if third else "arrival"), begins),
        move_rows(path, "reward", None if reward is None else np.ravel(reward), num, arrival, begins),
        move_flags(path, "is_terminal", over, num, arrival, begins),
    )
