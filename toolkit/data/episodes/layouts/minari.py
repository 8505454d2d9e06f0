"""Minari: ``data/main_data.hdf5`` with a group per episode, and ``data/metadata.json`` that describes the spaces.

``observations`` has one row more than ``actions``, which are taken at theirs. Pictures of 32 pixels and more are JPEG
files since 0.5.4. Releases before 0.5 keep the metadata as attributes of the hdf5 file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from toolkit.data.episodes.episode import Episode, move_flags, move_rows
from toolkit.data.episodes.layouts.base import (
    Options,
    Source,
    action_rows,
    choose_camera,
    files_below,
    plain,
    space_facts,
)
from toolkit.data.episodes.layouts.hdf5 import camera, frames, opened, take
from toolkit.errors import UserError, brief


def read(root: Path, options: Options) -> Source:
    """The episodes of one data set, and the choices or bounds of its actions. Raises UserError."""
    files = files_below(root, "main_data.hdf5", hint=_hint(root))
    if len(files) > 1:
        names = ", ".join(str(path.parent.parent.relative_to(root)) for path in files[:5])
        raise UserError(f"{root}: holds {len(files)} data sets; give the folder of one: {names}")
    [path] = files
    space = _action_space(path)
    kind = space.get("type", "Box")
    if kind not in ("Box", "Discrete"):
        raise UserError(f"{path}: actions are a {kind} space; numbers (Box) or choices (Discrete) are read")
    facts = space_facts(space) if options.num_actions is None else {}
    num = options.num_actions if options.num_actions is not None else facts.get("discrete", 0)
    start = space.get("start", 0) if facts else 0
    return Source(_episodes(path, options, num, start if isinstance(start, int) else 0), facts)


def _hint(root: Path) -> str:
    if any(root.rglob("metadata.json")):
        return "data_format arrow is not read; write it anew with minari's data_format='hdf5'"
    return "give the folder of one data set, which holds data/main_data.hdf5"


def _action_space(path: Path) -> dict[str, Any]:
    place = path.with_name("metadata.json")
    try:
        if place.exists():
            text = json.loads(place.read_text(encoding="utf-8")).get("action_space", "{}")
        else:
            with opened(path, "Minari") as file:
                text = plain(file.attrs.get("action_space", "{}"))
        space = json.loads(text)
    except (ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{place}: not Minari's metadata ({brief(error)})") from None
    return space if isinstance(space, dict) else {}


def _episodes(path: Path, options: Options, num: int, start: int) -> Iterator[tuple[str, Callable[[], Episode]]]:
    with opened(path, "Minari") as file:
        names = [name for name in file if name.startswith("episode_") and name[8:].isdecimal()]
    if not names:
        raise UserError(f"{path}: no groups episode_0, episode_1, ... in it")
    for name in sorted(names, key=lambda name: int(name[8:])):
        yield f"episode_{int(name[8:]):06d}", lambda name=name: _episode(path, name, options, num, start)  # type: ignore[misc]


def _episode(path: Path, name: str, options: Options, num_actions: int, start: int) -> Episode:
    where = f"{path}: {name}"
    with opened(path, "Minari") as file:
        group = file[name]
        if "observations" in group and hasattr(group["observations"], "shape"):
            choose_camera(where, ["observations"], options.image_key)
            holder, key = group, "observations"
        else:
            holder = group["observations"]
            key = camera(where, holder, options.image_key, encoded=True)
        image = frames(where, holder, key)
        rows = {key: take(where, group, key) for key in ("actions", "rewards", "terminations") if key in group}
    if "actions" not in rows:
        raise UserError(f"{where}: no array 'actions' in it")
    num, how = len(image), options.convention
    rewards, ends = rows.get("rewards"), rows.get("terminations")
    return Episode(
        image,
        move_rows(where, "actions", action_rows(where, rows["actions"], num_actions, start), num, how),
        move_rows(where, "rewards", rewards, num, how),
        move_flags(where, "terminations", ends, num, how),
    )
