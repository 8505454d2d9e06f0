"""Open X-Embodiment and other RLDS data sets: TFRecords with one example per episode, row t taken at observation t."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.episodes.episode import Episode, move_flags, move_rows
from toolkit.data.episodes.layouts.base import Options, Source, action_rows, decode, stack
from toolkit.data.episodes.tfrecord import readable_examples
from toolkit.errors import UserError

log = logging.getLogger(__name__)


def read(root: Path, options: Options) -> Source:
    """One data set; the camera is ``image`` unless it is chosen. Raises UserError."""
    files = sorted(path for path in root.rglob("*.tfrecord*") if path.is_file())
    if not files:
        raise UserError(f"{root}: no *.tfrecord files; give the folder of one data set, such as bridge/0.1.0")
    return Source(_episodes(files, options))


def _episodes(files: list[Path], options: Options) -> Iterator[tuple[str, Callable[[], Episode]]]:
    said: set[str] = set()
    for path in files:
        split = "test" if "-test." in path.name or "-val." in path.name else "train"
        for number, example in enumerate(readable_examples(path)):
            name = f"{split}/{path.name.replace('.', '_')}_{number:05d}"
            yield name, lambda example=example, path=path: _episode(path, example, options, said)  # type: ignore[misc]


def _episode(path: Path, example: dict[str, Any], options: Options, said: set[str]) -> Episode:
    key = f"steps/observation/{options.image_key or 'image'}"
    if key not in example:
        seen = [name.split("/")[-1] for name in example if name.startswith("steps/observation/")]
        cameras = [name for name in seen if "image" in name or "rgb" in name]
        raise UserError(f"{path}: no '{key}'; choose --image-key among {', '.join(cameras) or 'its observations'}")
    image = stack(path, [decode(path, data) for data in example[key]])
    num, how = len(image), options.convention
    action = None if _in_parts(path, example, said) else _rows(path, example, "steps/action", num)
    if action is not None:
        action = action_rows(path, action, options.num_actions)
    rewards, ends = (_rows(path, example, f"steps/{name}", num) for name in ("reward", "is_terminal"))
    return Episode(
        image,
        move_rows(path, "action", action, num, how),
        move_rows(path, "reward", None if rewards is None else rewards.ravel(), num, how),
        move_flags(path, "is_terminal", None if ends is None else ends.ravel(), num, how),
    )


def _in_parts(path: Path, example: dict[str, Any], said: set[str]) -> bool:
    """Whether actions are several arrays, which differ from set to set; said once."""
    parts = sorted(name.removeprefix("steps/action/") for name in example if name.startswith("steps/action/"))
    line = f"actions are of several parts ({', '.join(parts)}): none is taken, the episodes have no actions"
    if parts and line not in said:
        said.add(line)
        log.warning("%s: %s", path, line)
    return bool(parts)


def _rows(path: Path, example: dict[str, Any], key: str, num: int) -> NDArray[Any] | None:
    """Values of all steps as rows. Raises UserError where they are no numbers, or no whole number of them a frame."""
    values = example.get(key)
    if values is None or not len(values):
        return None
    if isinstance(values, list) or len(values) % num:
        kind = "bytes" if isinstance(values, list) else "numbers"
        raise UserError(f"{path}: '{key}' holds {len(values)} {kind}, expected some numbers for each of {num} frames")
    return np.asarray(values).reshape(num, -1)
