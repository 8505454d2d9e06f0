"""D4RL and V-D4RL: flat hdf5 arrays in which episodes stand one after the other.

D4RL (Fu et al. 2020): ``observations, actions, rewards, terminals, timeouts``, row t taken at observation t. V-D4RL
(Lu et al. 2023): ``observation, action, reward, discount, step_type`` of dm_env, row t led to observation t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.episodes.episode import Episode, as_frames, check_numbers, move_flags, move_rows
from toolkit.data.episodes.layouts.base import (
    NeedsOption,
    Options,
    Source,
    action_rows,
    choose_camera,
    files_below,
    is_pictures,
    name_of,
    pictures,
)
from toolkit.data.episodes.layouts.hdf5 import camera, opened, take
from toolkit.errors import UserError

FIRST = 0  # of dm_env's step types


def read(root: Path, options: Options) -> Source:
    """The episodes of one file or of all below a folder. Raises UserError where cuts between them are not told."""
    files = files_below(root, "*.hdf5", "*.h5", hint="give D4RL's file, or the folder of several")
    return Source(_episodes(root, files, options))


def _episodes(root: Path, files: list[Path], options: Options) -> Iterator[tuple[str, Callable[[], Episode]]]:
    for path in files:
        with opened(path, "D4RL") as file:
            bounds = _bounds(path, file)
        for start, stop in bounds:
            yield (
                f"{name_of(root, path)}_{start:08d}",
                lambda path=path, start=start, stop=stop: _episode(path, start, stop, options),  # type: ignore[misc]
            )


def _bounds(path: Path, file: Any) -> list[tuple[int, int]]:
    """(first row, one past the last) of every episode."""
    if "step_type" in file:
        types = take(path, file, "step_type").ravel()
        check_numbers(path, "step_type", types)
        num = _num_rows(path, file, "action", step_type=types)
        starts = np.flatnonzero(types == FIRST)
        if num and types[0] != FIRST:
            raise UserError(f"{path}: step_type begins with {types[0]}, so its first episode has lost its beginning")
    else:
        for key in ("terminals", "timeouts"):
            if key not in file:
                raise UserError(
                    f"{path}: no '{key}' in it (found {', '.join(sorted(file)) or 'nothing'}); without it nobody "
                    "knows where episodes were cut"
                )
        found = {key: take(path, file, key).ravel() for key in ("terminals", "timeouts")}
        num = _num_rows(path, file, "actions", **found)
        flags = [move_flags(path, key, value, num) for key, value in found.items()]
        ends = {int(row) for one in flags if one is not None for row in np.flatnonzero(one)}
        starts = np.array([0, *(row + 1 for row in sorted(ends))])
    stops = np.append(starts[1:], num)
    return [(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True) if start < stop]


def _num_rows(path: Path, file: Any, action: str, **arrays: NDArray[Any]) -> int:
    """How many rows there are, of which all ``arrays`` have one each. Raises UserError."""
    if not getattr(file.get(action), "shape", None):
        raise UserError(f"{path}: no array '{action}' in it (found {', '.join(sorted(file)) or 'nothing'})")
    num = int(file[action].shape[0])
    for key, value in arrays.items():
        if len(value) != num:
            raise UserError(f"{path}: {key} has {len(value)} numbers for {num} rows of '{action}', expected one each")
    return num


def _episode(path: Path, start: int, stop: int, options: Options) -> Episode:
    where = f"{path}: rows {start}..{stop - 1}"
    with opened(path, "D4RL") as file:
        new = "step_type" in file
        names = ("observation", "action", "reward", "discount") if new else (
            "observations", "actions", "rewards", "terminals")  # fmt: skip
        holder, key = _pictures_of(path, file, names[0], options.image_key)
        image = as_frames(where, key, pictures(take(where, holder, key, start, stop)))
        action, reward, ends = (take(where, file, name, start, stop) if name in file else None for name in names[1:])
    assert action is not None
    if ends is not None and new:
        check_numbers(where, names[3], ends)
    num, how = len(image), options.convention or ("arrival" if new else None)
    over = None if ends is None else np.ravel(ends == 0 if new else ends)
    return Episode(
        image,
        move_rows(where, names[1], action_rows(where, action, options.num_actions), num, how),
        move_rows(where, names[2], None if reward is None else np.ravel(reward), num, how),
        move_flags(where, names[3], over, num, how),
    )


def _pictures_of(path: Path, file: Any, name: str, wanted: str | None) -> tuple[Any, str]:
    """(group, key) of the observations' pictures."""
    if name not in file:
        raise UserError(f"{path}: no '{name}' in it (found {', '.join(sorted(file)) or 'nothing'})")
    if not hasattr(file[name], "shape"):
        return file[name], camera(path, file[name], wanted)
    if not is_pictures(file[name].shape, file[name].dtype):
        shape = list(file[name].shape[1:])
        raise NeedsOption(f"{path}: '{name}' are no pictures (rows of shape {shape}); a world model needs them")
    choose_camera(path, [name], wanted)
    return file, name
