"""BAIR robot pushing (bair_robot_pushing, softmotion30_44k): TFRecords of 30 raw frames and 4 actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.episodes.episode import Episode, move_rows
from toolkit.data.episodes.layouts.base import Options, Source
from toolkit.data.episodes.tfrecord import readable_examples
from toolkit.errors import UserError

NUM_FRAMES, SIZE_PX, ACTION_DIM = 30, 64, 4


def read(root: Path, options: Options) -> Source:
    """train/ and test/, kept apart; the camera is ``image_aux1`` unless it is chosen. Raises UserError."""
    root = root / "softmotion30_44k" if (root / "softmotion30_44k").is_dir() else root
    files = {split: sorted((root / split).glob("*.tfrecords"), key=_first_number) for split in ("train", "test")}
    for split, found in files.items():
        if not found:
            raise UserError(f"{root / split}: no *.tfrecords in it; give the folder that holds train/ and test/")
    return Source(_episodes(files, options.image_key or "image_aux1"))


def _episodes(files: dict[str, list[Path]], key: str) -> Iterator[tuple[str, Callable[[], Episode]]]:
    for split, paths in files.items():
        for path in paths:
            for number, example in enumerate(readable_examples(path)):
                name = f"{split}/traj_{_first_number(path) + number:05d}"
                yield name, lambda example=example, path=path: _episode(path, example, key)  # type: ignore[misc]


def _episode(path: Path, example: dict[str, Any], key: str) -> Episode:
    frames, actions = [], []
    for t in range(NUM_FRAMES):
        data = (example.get(f"{t}/{key}/encoded") or [b""])[0]
        if len(data) != SIZE_PX * SIZE_PX * 3:
            raise UserError(f"{path}: frame {t} of '{key}' has {len(data)} bytes, not a raw {SIZE_PX}x{SIZE_PX} image")
        frames.append(np.frombuffer(data, np.uint8).reshape(SIZE_PX, SIZE_PX, 3))
        actions.append(np.asarray(example.get(f"{t}/action", []), np.float32)[:ACTION_DIM])
    if any(len(action) != ACTION_DIM for action in actions):
        raise UserError(f"{path}: an action has fewer than {ACTION_DIM} numbers")
    return Episode(np.stack(frames), move_rows(path, "action", np.stack(actions), NUM_FRAMES))


def _first_number(path: Path) -> int:
    """1 of ``traj_1_to_256.tfrecords``: the number of its first trajectory."""
    digits = path.stem.split("_to_")[0].removeprefix("traj_")
    return int(digits) if digits.isdigit() else 0
