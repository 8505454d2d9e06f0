"""Any folder of images, with or without class subfolders, with or without train/ and val/ or test/."""

from __future__ import annotations

import hashlib
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.data.config import Data
from toolkit.data.hub import given_path
from toolkit.data.images.archives import StackArchive, as_folder, behind
from toolkit.data.images.decoding import Reading, decode
from toolkit.data.images.images import Headers, check_depth, check_images
from toolkit.data.images.layout import Found, enter, find_splits, listed_splits
from toolkit.data.images.shards import ShardArchive
from toolkit.data.images.store import PixelStore, StackStore
from toolkit.data.sets import Batch, Dataset, Indices, MemorySplit, Split, fixed_subset, limit_train
from toolkit.data.splits import hold_out_named
from toolkit.errors import UserError
from toolkit.runs.machine import check_side

FEW_PIXELS = 2**27  # of the files: a few seconds of decoding, which also checks every file to its end
IN_MEMORY_BYTES = 2**29  # of the decoded images
_log = logging.getLogger(__name__)


class FolderSplit:
    """Image files of a folder: the rows ``rows`` (n,) of ``store``, or decoded whenever a batch asks (no ``store``).

    ``files``: all of the folder's, ``root``; ``conditional``: labels are handed out, and part of the identity.
    """

    def __init__(
        self,
        files: list[Path],
        rows: np.ndarray,
        labels: np.ndarray | None,
        reading: Reading,
        conditional: bool,
        root: Path,
        store: PixelStore | StackStore | None,
    ):
        self.files, self.rows, self.labels = [files[row] for row in rows], rows, labels
        self.reading, self.root, self.store = reading, root, store
        self.shape = reading.shape
        self._given = torch.from_numpy(labels) if labels is not None and conditional else None

    def __len__(self) -> int:
        return len(self.files)

    def prepare(self) -> None:
        if self.store is not None:
            self.store.pixels()

    def batch(self, indices: Indices) -> Batch:
        self.prepare()
        return self._read(torch.as_tensor(indices))

    def all(self, limit: int | None = None) -> Batch:
        """A few of many are decoded by themselves where the store is not made yet."""
        chosen = fixed_subset(len(self), limit)
        return self.batch(chosen) if limit is None else self._read(chosen)

    def _read(self, index: torch.Tensor) -> Batch:
        if self.store is not None and self.store.is_made():
            pixels = self.store.pixels()[self.rows[index.numpy()]]
        else:
            pixels = np.stack([decode(self.files[i], self.reading) for i in index.tolist()])
        x = torch.from_numpy(pixels).to(torch.float32).div_(127.5).sub_(1)
        return x, None if self._given is None else self._given[index]

    def fingerprint(self) -> str:
        digest = self._digest()
        for file in self.files:
            digest.update(f"{file.absolute()}\0{file.stat().st_size}\0{file.stat().st_mtime_ns}\n".encode())
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        return digest.hexdigest()

    def identity(self) -> str:
        """Of the files' names inside the folder, their sizes and, where they are given to networks, their classes."""
        digest = self._digest()
        for file in self.files:
            digest.update(f"{_name_in(self.root, file)}\0{file.stat().st_size}\n".encode("utf-8", "surrogateescape"))
        digest.update(b"" if self._given is None else self._given.numpy().tobytes())
        return digest.hexdigest()[:16]

    def _digest(self) -> Any:
        how = {None: False, "bicubic": True}.get(self.reading.resize, self.reading.resize)
        return hashlib.sha256(f"{self.shape} {how}".encode())

    def to_memory(self) -> MemorySplit:
        """Every file decoded now: UserError names the bad ones."""
        assert self.store is not None
        given = None if self._given is None else self._given.numpy()
        values = torch.from_numpy(self.store.pixels()[self.rows])
        identity = MemorySplit(values, given).identity()
        return MemorySplit(values, self.labels, self._given is not None, identity)


def load_folder(config: Data, seed: int) -> Dataset:
    """``data.path``: images, or one subfolder per class, or train/ and val/ or test/ of either, or a labels file.

    A part that the folder lacks is held out of training (``data.valid_fraction`` each). Every header is read first;
    images of several sizes need ``data.size_px``. A small folder is decoded into memory, a large one once into the
    cache; without ``data.cache`` one that does not fit into memory is decoded whenever it is read.
    Raises UserError naming the file or folder at fault.
    """
    return image_folder(config, config.size_px)


def image_folder(config: Data, size_px: int | None) -> Dataset:
    """``load_folder`` with its own ``size_px`` (imagenet64 and imagenet128 have a default)."""
    root, parts, stack = _open(config)
    if stack is not None:
        headers = _headers_of(stack)
    else:
        listed = [file for part in parts.values() for file in part.files]
        headers, good = check_images(listed, config.max_pixels, config.skip_bad)
        parts = _readable(root, parts, good)
    files = [file for part in parts.values() for file in part.files]
    if stack is None:
        check_depth(files, config.max_pixels)
    class_names = parts["train"].class_names
    reading = Reading(_shape(config, size_px, files, headers), config.resize if size_px else None, config.max_pixels)
    num_bytes, is_quick = len(files) * math.prod(reading.shape), int(headers.sizes.prod(axis=1).sum()) <= FEW_PIXELS
    fits, is_kept = num_bytes <= IN_MEMORY_BYTES, config.cache and not is_quick
    store: PixelStore | StackStore | None = None
    if stack is not None and reading.shape == (stack.pixels.shape[-1], *stack.pixels.shape[1:3]):
        store = StackStore(stack)
    elif fits or config.cache:
        store = PixelStore(root, files, reading, is_kept or not fits)
    made: dict[str, Split] = {}
    for name, (rows, labels) in _splits(root, parts, config).items():
        split = FolderSplit(files, rows, labels, reading, config.class_labels, root, store)
        made[name] = split.to_memory() if fits and is_quick else split
    _say_duplicates(root, made)
    return Dataset(
        name=config.name,
        train=made["train"],
        valid=made["valid"],
        test=made["test"],
        num_classes=len(class_names) if config.class_labels else 0,
        class_names=class_names,
        licence="the owner's of the folder",
        source=str(root),
    )


def _say_duplicates(root: Path, made: dict[str, Split]) -> None:
    """Log how many held-out pictures are in train too, pixel by pixel, of a set that is held in memory."""
    seen = {name: _hashes(split.values) for name, split in made.items() if isinstance(split, MemorySplit)}
    learnt_from = set(seen.get("train", ()))
    for name in ("valid", "test"):
        if name in seen and (num := sum(one in learnt_from for one in seen[name])):
            _log.warning("%s: %d of %d pictures of %s are in train too", root, num, len(seen[name]), name)


def _hashes(values: torch.Tensor) -> list[bytes]:
    return [hashlib.blake2b(one.tobytes(), digest_size=16).digest() for one in values.numpy()]


def _open(config: Data) -> tuple[Path, dict[str, Found], StackArchive | None]:
    """The folder, or the archive as one, its images by split, and the stack of pixels that it is, if it is one."""
    assert config.path is not None
    root = as_folder(given_path(config.path), config.label_column)
    archive = behind(root)
    if isinstance(archive, (ShardArchive, StackArchive)):
        parts = listed_splits(root, archive, config.class_labels)
        return root, parts, archive if isinstance(archive, StackArchive) else None
    root = enter(root) if archive is not None else root
    return root, _find(root, config.class_labels), None


def _find(root: Path, are_given: bool) -> dict[str, Found]:
    """The images by split. Classes that networks are not given are known all the same, where there are any."""
    if are_given:
        return find_splits(root, by_class=True)
    found = find_splits(root, by_class=False)
    try:
        classed = find_splits(root, by_class=True, is_said=False)
    except UserError as error:
        _log.info("classes are not known either, as measures might use: %s", error)
        return found
    same = all(classed[name].files == part.files for name, part in found.items())
    return classed if same else found


def _headers_of(stack: StackArchive) -> Headers:
    num, height, width, channels = stack.pixels.shape
    return Headers(np.tile(np.array([width, height]), (num, 1)), np.full(num, channels == 1))


def _readable(root: Path, parts: dict[str, Found], good: np.ndarray) -> dict[str, Found]:
    """The parts without the files that are not ``good`` (n,), counted over all parts in their order."""
    kept, start = {}, 0
    for name, part in parts.items():
        own = good[start : (start := start + len(part.files))]
        if not own.any():
            raise UserError(f"{root}: none of the {len(own)} files of {name} is a readable image")
        files = [file for file, is_good in zip(part.files, own, strict=True) if is_good]
        kept[name] = part._replace(files=files, labels=None if part.labels is None else part.labels[own])
    return kept


def _name_in(root: Path, file: Path) -> str:
    """What a file is called inside the folder of the data, wherever that lies."""
    return file.relative_to(root).as_posix()


def _splits(root: Path, parts: dict[str, Found], config: Data) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Rows among all files, and labels, of train, valid and test; a missing one is held out of train, then limited.

    Raises UserError for too few images.
    """
    ends = np.cumsum([len(part.files) for part in parts.values()])
    given = {name: np.arange(end - len(parts[name].files), end) for name, end in zip(parts, ends, strict=True)}
    train, missing = parts["train"], [name for name in ("test", "valid") if name not in parts]
    if len(train.files) <= len(missing):
        raise UserError(
            f"{root}: {len(train.files)} images are too few to train on and to hold out for {' and '.join(missing)}; "
            "add images, or give folders train/, val/ and test/"
        )
    labels = train.labels if config.class_labels else None
    rest = np.arange(len(train.files))
    for name in missing:
        names = [_name_in(root, train.files[i]) for i in rest]
        kept, held_out = hold_out_named(names, None if labels is None else labels[rest], config.valid_fraction, name)
        rest, given[name] = rest[kept], given["train"][rest[held_out]]
    given["train"] = given["train"][limit_train(rest, config.num_train)]
    if train.labels is None:
        return {name: (rows, None) for name, rows in given.items()}
    known = np.concatenate([part.labels for part in parts.values() if part.labels is not None])
    return {name: (rows, known[rows]) for name, rows in given.items()}


def _shape(config: Data, size_px: int | None, files: list[Path], headers: Headers) -> tuple[int, ...]:
    """(C, H, W) of every image after decoding; grey only if all are. UserError when sizes differ without a target."""
    if config.channels not in (None, 1, 3):
        raise UserError(f"data.channels={config.channels}: must be 1 (grey) or 3 (colour)")
    channels = config.channels or (1 if headers.grey.all() else 3)
    if size_px is not None:
        check_side("data.size_px", size_px, channels)
        return channels, size_px, size_px
    width, height = headers.sizes[0].tolist()
    other = np.flatnonzero((headers.sizes != headers.sizes[0]).any(axis=1))
    if len(other):
        its_width, its_height = headers.sizes[other[0]].tolist()
        raise UserError(
            f"images differ in size ({files[0]} is {width}x{height}, {files[other[0]]} is {its_width}x{its_height}); "
            "set data.size_px to crop and resize them"
        )
    return channels, height, width
