"""RoboNet v3 (Dasari et al. 2019): an hdf5 file per episode, actions brought to 5 numbers as the release does."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.episodes.episode import Episode, move_rows
from toolkit.data.episodes.layouts.base import Options, Source, decode, name_of, plain, stack
from toolkit.data.episodes.layouts.hdf5 import opened
from toolkit.errors import UserError

ACTION_DIM = 5


def read(root: Path, options: Options) -> Source:
    """The files below a folder; the camera is ``cam0`` unless it is chosen. Raises UserError."""
    files = sorted(root.rglob("*.hdf5"))
    if not files:
        raise UserError(f"{root}: no *.hdf5 in it; give RoboNet's hdf5 folder")
    key = options.image_key or "cam0"
    return Source((name_of(root, path), lambda path=path: _episode(path, key)) for path in files)  # type: ignore[misc]


def _episode(path: Path, camera: str) -> Episode:
    with opened(path, "RoboNet") as file:
        facts = {key: plain(value) for key, value in file["metadata"].attrs.items()}
        frames = _frames(path, file["env"][f"{camera}_video"], facts)
        actions = robonet_actions(file["policy/actions"][:], file["env/state"][:], facts)
    num = min(len(frames), len(actions) + 1)
    return Episode(frames[:num], move_rows(path, "policy/actions", actions[:num], num))


def _frames(path: Path, group: Any, facts: dict[str, Any]) -> NDArray[np.uint8]:
    frames: NDArray[np.uint8]
    encoding = str(facts.get("img_encoding"))
    if encoding == "mp4":
        import av

        with av.open(io.BytesIO(group["frames"][:].tobytes()), "r") as video:
            shown: list[Any] = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
            frames = stack(path, shown)
    elif encoding == "jpg":
        names = sorted((name for name in group if name.startswith("frame")), key=lambda name: int(name[5:]))
        frames = stack(path, [decode(path, group[name][:].tobytes()) for name in names])
    else:
        raise UserError(f"{path}: frames are encoded as {encoding}, expected mp4 or jpg")
    return np.ascontiguousarray(frames[..., ::-1]) if facts.get("image_format") == "BGR" else frames


def robonet_actions(actions: NDArray[Any], state: NDArray[Any], facts: dict[str, Any]) -> NDArray[np.float32]:
    """RoboNet's actions as 5 numbers: x, y, z, turn, gripper.

    Shorter ones are padded with zeros and longer ones cut; robots that grasp by themselves get the gripper from the
    next state, high above the middle of its bounds and low below.
    """
    rows = np.asarray(actions, np.float32)
    width = rows.shape[1]
    if width == 4 and str(facts.get("primitives")) == "autograsp":
        high, low = np.ravel(facts["high_bound"])[-1], np.ravel(facts["low_bound"])[-1]
        closed = state[1 : len(rows) + 1, -1] > (high + low) / 2
        rows = np.concatenate([rows[: len(closed)], np.where(closed, high, low)[:, None]], 1)
    missing = ACTION_DIM - rows.shape[1]
    if missing > 0:
        rows = np.concatenate([rows, np.zeros((len(rows), missing), np.float32)], 1)
    return np.ascontiguousarray(rows[:, :ACTION_DIM], np.float32)
