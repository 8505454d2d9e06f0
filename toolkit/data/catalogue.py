"""The table of data sets: what each is, under which licence, and the function that loads it.

A new kind of data (text, clips, episodes) is one more ``Entry``. Only the standard library is imported here:
a wrong name or path is reported, and ``toolkit data list`` printed, before torch is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data import fetching
from toolkit.data.config import Data, EpisodeData
from toolkit.data.hub import path_here
from toolkit.data.video.clips import CLIPS
from toolkit.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from toolkit.data.episodes.episode import EpisodeSpec
    from toolkit.data.episodes.sets import EpisodeDataset
    from toolkit.data.sets import Dataset


@dataclass(frozen=True)
class Entry:
    """One data set. ``loader`` is ``"module:function"``, a function of (schema.Data, seed) that returns a Dataset."""

    kind: str
    size: str
    licence: str
    loader: str
    download: str | None = None
    needs_path: bool = False
    on_hub: bool = False  # streamed from the hub where no path is given
    num_classes: int = 0  # and the shape of an item: what a network can be built for before the data is there
    shape: tuple[int, ...] = ()  # of episodes: of a frame, as they are recorded
    num_actions: int = 0  # numbers of an action, of episodes
    config: Mapping[str, Any] = field(default_factory=dict)  # what ``data=NAME`` sets beside the name


def _grey(size: str, licence: str, load: str, download: str | None, size_px: int) -> Entry:
    """Small grey pictures of ten classes."""
    loader = f"toolkit.data.images.digits:{load}"
    return Entry("images", size, licence, loader, download, num_classes=10, shape=(1, size_px, size_px))


@dataclass(frozen=True)
class Row:
    """A line of ``toolkit data list``. ``available``: built in, cached, fetch (to download), hub, path (your own)."""

    name: str
    kind: str
    size: str
    licence: str
    available: str


ARCHIVES = (".zip", ".npz", ".npy", ".tar", ".parquet", ".arrow")  # of images, read as folders are
_MNIST = "CC BY-SA 3.0"
_TOYS = "toolkit.data.images.toys"
_OWN = "its owner's"
_FREE = "free to redistribute"
_PACKAGED_TEXT = "toolkit.data.text.corpora:load_package"
_EPISODES = "toolkit.data.episodes.sets"
CATALOGUE: dict[str, Entry] = {
    "ring": Entry("points", "8,000 x 2, 8 modes", "generated", f"{_TOYS}:load_ring", num_classes=8, shape=(2,)),
    "grid25": Entry("points", "25,000 x 2, 25 modes", "generated", f"{_TOYS}:load_grid25", num_classes=25, shape=(2,)),
    "checkerboard": Entry(
        "points", "8,000 x 2, 8 squares", "generated", f"{_TOYS}:load_checkerboard", num_classes=8, shape=(2,)
    ),
    "digits": _grey("1,797 x 1x8x8, 10 classes", "CC BY 4.0", "load_digits", None, 8),
    "mnist": _grey("70,000 x 1x28x28, 10 classes", _MNIST, "load_mnist", "mnist", 28),
    "mnist16": _grey("70,000 x 1x16x16, 10 classes", _MNIST, "load_mnist16", "mnist", 16),
    "mnist8": _grey("70,000 x 1x8x8, 10 classes", _MNIST, "load_mnist8", "mnist", 8),
    "mnist5k": _grey("5,000 x 1x28x28, 10 classes", _MNIST, "load_mnist5k", "mnist5k", 28),
    "fashion": _grey("70,000 x 1x28x28, 10 classes", "MIT", "load_fashion", "fashion", 28),
    "crossfire": Entry(
        "images",
        "4,369 x 3x32x32, 14 classes",
        "GPL-2.0",
        "toolkit.data.images.crossfire:load_crossfire",
        "crossfire",
        num_classes=14,
        shape=(3, 32, 32),
    ),
    "drawn_faces": Entry(
        "images",
        "10,368 x 3x32x32, 8 hair styles",
        "MIT",
        "toolkit.data.images.drawn_faces:load_drawn_faces",
        "drawn_faces",
        num_classes=8,
        shape=(3, 32, 32),
    ),
    "folder": Entry("images", "your images, or a zip", _OWN, "toolkit.data.images.folder:load_folder", needs_path=True),
    "imagenet64": Entry(
        "images",
        "1.28 M x 3x64x64, 1,000 classes",
        "research only",
        "toolkit.data.images.imagenet:load_imagenet64",
        needs_path=True,
        num_classes=1000,
        shape=(3, 64, 64),
        config={"flip": True},
    ),
    "imagenet128": Entry(
        "images",
        "1.28 M x 3x128x128, 1,000 classes",
        "research only",
        "toolkit.data.images.imagenet:load_imagenet128",
        needs_path=True,
        num_classes=1000,
        shape=(3, 128, 128),
        config={"flip": True},
    ),
    "text_python": Entry(
        "text", "1 MB, Python's own documentation", "PSF-2.0", "toolkit.data.text.corpora:load_python"
    ),
    "text_brown": Entry("text", "6 MB, 500 samples of 1961", _FREE, _PACKAGED_TEXT, "brown"),
    "text_english": Entry("text", "19 MB, Brown, speeches, a novel", _FREE, _PACKAGED_TEXT, "english"),
    "text_austen": Entry("text", "4 MB, six novels", "public domain", _PACKAGED_TEXT, "austen"),
    "text_gcide": Entry("text", "33 MB, a dictionary", "GPL-3.0", _PACKAGED_TEXT, "gcide"),
    "text_perl": Entry("text", "7 MB, Perl's documentation", "Artistic", _PACKAGED_TEXT, "perl"),
    "text_folder": Entry(
        "text", "any text, jsonl, parquet", _OWN, "toolkit.data.text.corpora:load_folder", needs_path=True
    ),
    "text_slimpajama": Entry(
        "text",
        "627 B tokens, hub or path",
        "ODC-BY and sources'",
        "toolkit.data.text.corpora:load_slimpajama",
        on_hub=True,
    ),
    "push_sprite": Entry(
        "episodes",
        "any number x 32x32, 2 actions",
        "generated",
        f"{_EPISODES}:load_push_sprite",
        shape=(3, 32, 32),
        num_actions=2,
    ),
    "pusht": Entry(
        "episodes",
        "gym-pusht, recorded, 2 actions",
        "Apache-2.0",
        f"{_EPISODES}:load_recorded",
        shape=(3, 64, 64),
        num_actions=2,
    ),
    "kuka": Entry(
        "episodes",
        "pybullet Kuka, recorded, 4 actions",
        "zlib",
        f"{_EPISODES}:load_recorded",
        shape=(3, 64, 64),
        num_actions=4,
    ),
    "episodes_folder": Entry(
        "episodes", "any folder of npz episodes", _OWN, f"{_EPISODES}:load_episode_folder", needs_path=True
    ),
    "oxe": Entry("episodes", "35 Open X-Embodiment sets", _OWN, "toolkit.data.episodes.oxe:load_oxe", needs_path=True),
    **{
        name: Entry("clips", clip.size, clip.licence, "toolkit.data.video.clips:refuse_as_images", clip.download)
        for name, clip in CLIPS.items()
    },
    "clips_folder": Entry(
        "clips", "any folder of videos", _OWN, "toolkit.data.video.clips:refuse_as_images", needs_path=True
    ),
}


def lookup(name: str) -> Entry:
    """The entry called ``name``; UserError with the nearest name otherwise."""
    if name not in CATALOGUE:
        raise UserError(f"data.name={name}: {did_you_mean(name, CATALOGUE)}choose one of {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def check(config: Data | EpisodeData) -> None:
    """Hold ``config`` against the table without reading any data: UserError on a wrong name or path."""
    entry = lookup(config.name)
    if entry.kind == "text":
        raise UserError(f"data.name={config.name}: is text; this command reads images and points")
    if isinstance(config, Data) and config.resize != "bicubic" and not entry.needs_path:
        raise UserError(f"data.resize={config.resize}: for images in a folder; data.name={config.name} has bicubic")
    if config.path is None:
        if entry.needs_path:
            raise UserError(f"data.path: data.name={config.name} needs the folder of {entry.kind}, data.path=FOLDER")
        return
    if not (entry.needs_path or entry.download or entry.loader.endswith(":load_recorded")):
        raise UserError(
            f"data.path={config.path}: data.name={config.name} reads no files; for your own, use data=folder"
        )
    path = path_here(config.path)
    if path is None:
        return
    archives = ARCHIVES if entry.kind == "images" and entry.needs_path else ()
    if not path.is_dir() and not (path.is_file() and path.suffix.lower() in archives):
        allowed = f" (nor one of {', '.join(archives)})" if archives else ""
        what = f"is a file, not a folder{allowed}" if path.is_file() else "no such folder"
        raise UserError(f"data.path={config.path}: {what}")


def stand_in(config: Data) -> Dataset:
    """Two items of the right shape that hold nothing, for building networks of a set that is not at hand.

    Raises UserError when the size is not known either.
    """
    import torch

    from toolkit.data.sets import Dataset, MemorySplit

    entry = lookup(config.name)
    shape = _item_shape(config, entry)
    ends = torch.tensor([0, 255], dtype=torch.uint8) if len(shape) == 3 else torch.tensor([-1.0, 1.0])
    split = MemorySplit(ends.view(2, *[1] * len(shape)).expand(2, *shape))
    num_classes = entry.num_classes if config.class_labels else 0
    names = tuple(str(number) for number in range(entry.num_classes))
    return Dataset(config.name, split, split, split, num_classes, names, entry.licence, "stand-in")


def _item_shape(config: Data, entry: Entry) -> tuple[int, ...]:
    """Of one item, without reading any. Raises UserError naming the key that settles it."""
    if entry.shape and not entry.needs_path:
        return entry.shape
    channels, *sides = entry.shape or (3,)
    size_px = config.size_px or (sides[0] if sides else None)
    if size_px is None:
        raise UserError(
            f"data.size_px: only the files of data.name={config.name} would tell; set it, as in data.size_px=64"
        )
    return config.channels or channels, size_px, size_px


def load(config: Data, seed: int = 0) -> Dataset:
    """Load the data set ``config`` names, fetching it first where it must be.

    ``seed`` draws the generated sets. The splits of real data are fixed, so that seeds and settings compare.
    Raises UserError naming the key or the file.
    """
    check(config)
    module, function = lookup(config.name).loader.split(":")
    return getattr(importlib.import_module(module), function)(config, seed)


def load_episodes(config: EpisodeData, seed: int = 0, spec: EpisodeSpec | None = None) -> EpisodeDataset:
    """Load the episodes ``config`` names, recording them first where they are made by an environment.

    spec: what they must have; None: no more than frames.

    Raises UserError naming the key or the file.
    """
    from toolkit.data.episodes.episode import EpisodeSpec

    entry = lookup(config.name)
    if entry.kind != "episodes":
        known = [name for name, one in CATALOGUE.items() if one.kind == "episodes"]
        raise UserError(f"data.name={config.name}: a set of {entry.kind}; episodes are {', '.join(known)}")
    check(config)
    module, function = entry.loader.split(":")
    return getattr(importlib.import_module(module), function)(config, seed, spec or EpisodeSpec())


def fetch(name: str, path: str | Path | None = None) -> fetching.Fetched:
    """Bring the files of data set ``name`` into the cache, from ``path`` if given; see ``fetching.fetch``.

    Raises UserError when ``name`` has nothing to download or no source had it.
    """
    entry = lookup(name)
    if entry.download is None:
        reason = "is read from your own folder, data.path=FOLDER" if entry.needs_path else "comes with the toolkit"
        raise UserError(f"{name}: nothing to fetch, it {reason}")
    return fetching.fetch(entry.download, path)


def rows() -> list[Row]:
    """The table as ``toolkit data list`` shows it."""
    return [Row(name, one.kind, one.size, one.licence, _available(one)) for name, one in CATALOGUE.items()]


def _available(entry: Entry) -> str:
    if entry.needs_path:
        return "path"
    if entry.on_hub:
        return "hub, path"
    if entry.download is None:
        return "built in"
    return "cached" if fetching.is_cached(entry.download) else "fetch"
