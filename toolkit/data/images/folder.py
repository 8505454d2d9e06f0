"""Any folder of images, with or without class subfolders, with or without train/ and val/ or test/."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from toolkit.data.config import Data
from toolkit.data.images.images import Headers, check_depth, check_images, decode, each_or_refuse
from toolkit.data.images.layout import Found, find_splits
from toolkit.data.sets import Batch, Dataset, Indices, MemorySplit, Split, fixed_subset, limit_train
from toolkit.data.splits import hold_out_named
from toolkit.errors import UserError

IN_MEMORY_PIXELS = 2**27  # source pixels: a few seconds of decoding, which also checks every file to its end


class FolderSplit:
    """Image files under ``root``, decoded when a batch asks for them.

    ``shape`` is (C, H, W); ``resized`` as in ``decode``; ``conditional``: labels are handed out.
    """

    def __init__(
        self,
        files: list[Path],
        labels: np.ndarray | None,
        shape: tuple[int, ...],
        resized: bool,
        conditional: bool,
        root: Path,
    ):
        self.files, self.labels, self.shape, self.resized = files, labels, shape, resized
        self.root = root
        self._given = torch.from_numpy(labels) if labels is not None and conditional else None

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Indices) -> Batch:
        index = torch.as_tensor(indices)
        pictures = [decode(self.files[i], self.shape, self.resized) for i in index.tolist()]
        x = torch.from_numpy(np.stack(pictures)).to(torch.float32).div_(127.5).sub_(1)
        return x, None if self._given is None else self._given[index]

    def all(self, limit: int | None = None) -> Batch:
        return self.batch(fixed_subset(len(self), limit))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.shape} {self.resized}".encode())
        for file in self.files:
            digest.update(f"{file.absolute()}\0{file.stat().st_size}\0{file.stat().st_mtime_ns}\n".encode())
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        return digest.hexdigest()

    def identity(self) -> str:
        """Of the files' names inside the folder, their sizes and classes."""
        digest = hashlib.sha256(f"{self.shape} {self.resized}".encode())
        for file in self.files:
            digest.update(f"{_name_in(self.root, file)}\0{file.stat().st_size}\n".encode("utf-8", "surrogateescape"))
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        return digest.hexdigest()[:16]

    def to_memory(self) -> MemorySplit:
        """Every file decoded now: UserError names the bad ones."""
        pictures = each_or_refuse(lambda file: decode(file, self.shape, self.resized), self.files)
        return MemorySplit(torch.from_numpy(np.stack(pictures)), self.labels, self._given is not None)


def load_folder(config: Data, seed: int) -> Dataset:
    """``data.path``: images, or one subfolder per class, or train/ and val/ or test/ of either, or a labels file.

    A part that the folder lacks is held out of training (``data.valid_fraction`` each). Every header is read first;
    images of several sizes need ``data.size_px``. A small folder is decoded into memory, a large one as it is read.
    Raises UserError naming the file or folder at fault.
    """
    return image_folder(config, config.size_px)


def image_folder(config: Data, size_px: int | None) -> Dataset:
    """``load_folder`` with its own ``size_px`` (imagenet64 and imagenet128 have a default)."""
    assert config.path is not None
    root = Path(config.path).expanduser()
    parts = find_splits(root, config.class_labels)
    class_names = parts["train"].class_names
    headers, good = check_images([file for part in parts.values() for file in part.files], config.skip_bad)
    parts = _readable(root, parts, good)
    files = [file for part in parts.values() for file in part.files]
    check_depth(files)
    shape = _shape(config, size_px, files, headers)
    splits = _hold_out_missing(root, parts, config)
    in_memory = int(headers.sizes.prod(axis=1).sum()) <= IN_MEMORY_PIXELS
    made: dict[str, Split] = {}
    for name, (files, labels) in splits.items():
        split = FolderSplit(files, labels, shape, size_px is not None, config.class_labels, root)
        made[name] = split.to_memory() if in_memory else split
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


def _hold_out_missing(
    root: Path, parts: dict[str, Found], config: Data
) -> dict[str, tuple[list[Path], np.ndarray | None]]:
    """Files and labels of train, valid and test, the missing ones held out of train, which is then limited."""
    train = parts["train"]
    rest = np.arange(len(train.files))
    chosen = {}
    for name in ("test", "valid"):
        if name not in parts:
            labels = None if train.labels is None else train.labels[rest]
            names = [_name_in(root, train.files[i]) for i in rest]
            kept, held_out = hold_out_named(names, labels, config.valid_fraction, name)
            rest, chosen[name] = rest[kept], rest[held_out]
    chosen["train"] = limit_train(rest, config.num_train)

    def pick(indices: np.ndarray) -> tuple[list[Path], np.ndarray | None]:
        return [train.files[i] for i in indices], None if train.labels is None else train.labels[indices]

    given = {name: (part.files, part.labels) for name, part in parts.items()}
    return given | {name: pick(indices) for name, indices in chosen.items()}


def _shape(config: Data, size_px: int | None, files: list[Path], headers: Headers) -> tuple[int, ...]:
    """(C, H, W) of every image after decoding; grey only if all are. UserError when sizes differ without a target."""
    if config.channels not in (None, 1, 3):
        raise UserError(f"data.channels={config.channels}: must be 1 (grey) or 3 (colour)")
    channels = config.channels or (1 if headers.grey.all() else 3)
    if size_px is not None:
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
