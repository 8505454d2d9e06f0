"""Data sets as people have them -> a folder of npz episodes: ``toolkit data convert LAYOUT SOURCE DEST``.

``layouts/`` has one reader per layout. Where a source says what its actions are, so does the manifest of the folder.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.data.episodes.episode import resize, write_episode
from toolkit.data.episodes.layouts.base import NeedsOption, Options, Reader
from toolkit.data.episodes.npz import npz_files
from toolkit.data.episodes.record import MANIFEST, read_manifest
from toolkit.errors import UserError, did_you_mean
from toolkit.plain_files import named_path
from toolkit.runs.files import write_json

log = logging.getLogger(__name__)
LAYOUTS = {  # what a folder of each has in it, by which it is recognised
    "bair": "softmotion30_44k",
    "robonet": "*/robonet*",
    "oxe": "**/*.tfrecord*",
    "lerobot": "meta/info.json",
    "aloha": "episode_*.hdf5",
    "robomimic": "*.hdf5",
    "minari": "**/main_data.hdf5",
    "d4rl": "*.hdf5",
    "dreamer": "*.npz",
}
FLAT = ("aloha", "robomimic", "minari", "d4rl", "dreamer")  # may be a single file


def convert(layout: str, source: str | Path, dest: str | Path, options: Options) -> tuple[int, list[str]]:
    """Convert ``source`` into npz files below ``dest``; (episodes there, one line for each that could not be read).

    Episodes that are there already are not converted again. Raises UserError for an unknown layout, a source without
    such files, an option that is missing, or a ``dest`` that holds something else.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout {layout}: {did_you_mean(layout, LAYOUTS)}choose one of {', '.join(LAYOUTS)}")
    if options.convention not in (None, "departure", "arrival"):
        raise UserError(f"--convention={options.convention}: choose departure or arrival")
    root = named_path(source)
    if not root.is_dir() and not (root.is_file() and layout in FLAT):
        raise UserError(f"{source}: no such folder")
    opened = reader(layout)(root, options)
    facts = {"layout": layout, "image_key": options.image_key, "size_px": options.size_px, **opened.facts}
    if options.num_actions:
        facts["discrete"] = options.num_actions
    _check(Path(dest), facts)
    done, problems = 0, []
    for name, read in opened.episodes:
        if options.most is not None and done >= options.most:
            break
        path = Path(dest) / f"{name}.npz"
        try:
            if not path.exists():
                episode = read()
                if options.size_px is not None:
                    episode = replace(episode, image=resize(episode.image, options.size_px))
                _claim(Path(dest), facts)
                write_episode(path, episode)
            done += 1
        except NeedsOption:
            raise
        except UserError as error:
            problems.append(str(error))
            log.warning("left out: %s", error)
    return done, problems


def reader(layout: str) -> Reader:
    """The reader of one of ``LAYOUTS``."""
    found: Reader = importlib.import_module(f"toolkit.data.episodes.layouts.{layout}").read
    return found


def _check(folder: Path, facts: dict[str, Any]) -> None:
    """Raises UserError where ``folder`` holds episodes that were made with other options."""
    before = read_manifest(folder)
    if before is None:
        if npz_files(folder)[0]:
            raise UserError(f"{folder}: holds episodes that this command did not convert; choose an empty folder")
        return
    for key, value in facts.items():
        if before.get(key) != value:
            raise UserError(f"{folder}: holds episodes with {key}={before.get(key)}, not {value}; choose another")


def _claim(folder: Path, facts: dict[str, Any]) -> None:
    if not (folder / MANIFEST).exists():
        write_json(folder / MANIFEST, facts)


def hint(root: Path) -> str:
    """Of a folder without npz episodes: which command may convert it."""
    for layout, pattern in LAYOUTS.items():
        if layout not in ("dreamer", "robonet") and next(root.glob(pattern), None):
            more = " (or d4rl, robonet)" if layout == "robomimic" else ""
            return f"it looks like {layout}{more}: toolkit data convert {layout} {root} FOLDER"
    return "see toolkit data record and toolkit data convert"
