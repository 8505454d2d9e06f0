"""ALOHA and ACT (Zhao et al. 2023): an hdf5 file per episode, ``observations/images/CAMERA`` beside ``action``.

Row t is sent at observation t; there are no rewards. Pictures are RGB, or JPEG files of them that OpenCV wrote, which
takes them for BGR, so that red and blue are the other way round there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from toolkit.data.episodes.episode import Episode, move_rows
from toolkit.data.episodes.layouts.base import Options, Source, action_rows, files_below, name_of
from toolkit.data.episodes.layouts.hdf5 import camera, frames, opened, take
from toolkit.errors import UserError

CAMERAS = "observations/images"


def read(root: Path, options: Options) -> Source:
    """The episode of one file, or of each below a folder. Raises UserError, NeedsOption among several cameras."""
    files = files_below(root, "*.hdf5", "*.h5", hint="give an episode's file, or the folder of several")
    return Source((name_of(root, path), lambda path=path: _episode(path, options)) for path in files)  # type: ignore[misc]


def _episode(path: Path, options: Options) -> Episode:
    with opened(path, "ALOHA") as file:
        if CAMERAS not in file:
            raise UserError(f"{path}: no '{CAMERAS}' in it (found {', '.join(file) or 'nothing'})")
        key = camera(path, file[CAMERAS], options.image_key, encoded=True)
        image = frames(path, file[CAMERAS], key)
        if file[CAMERAS][key].ndim < 4:
            image = np.ascontiguousarray(image[..., ::-1])
        action = action_rows(path, take(path, file, "action"), options.num_actions)
        return Episode(image, move_rows(path, "action", action, len(image), options.convention), None)
