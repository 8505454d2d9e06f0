"""ImageNet from the user's own copy: a folder of images by class, or the batches of the downsampled release."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from toolkit.data.config import Data
from toolkit.data.hub import given_path
from toolkit.data.images.arrays import stored_array
from toolkit.data.images.folder import image_folder
from toolkit.data.sets import Batch, Dataset, Indices, fixed_subset, hold_out, limit_train
from toolkit.errors import UserError


def load_imagenet64(config: Data, seed: int) -> Dataset:
    """Class subfolders under PATH/train (or PATH) resized to 64, or PATH/train_data_batch_*.npz of Downsampled ImageNet
    (Chrabaszcz et al. 2017) as they are."""
    assert config.path is not None
    root = given_path(config.path)
    if root.is_dir() and list(root.glob("train_data_batch_*.npz")):
        return _load_batches(config, root, 64)
    return image_folder(config, config.size_px or 64)


def load_imagenet128(config: Data, seed: int) -> Dataset:
    """Class subfolders under PATH/train (or PATH) resized to 128."""
    return image_folder(config, config.size_px or 128)


class RowSplit:
    """Some rows of memory-mapped uint8 arrays (n_i, 3 * side * side), read when a batch asks for them."""

    def __init__(
        self, arrays: list[np.ndarray], rows: np.ndarray, labels: np.ndarray, side: int, conditional: bool, key: str
    ):
        self._arrays, self._rows, self._key = arrays, rows, key
        self._starts = np.cumsum([0, *map(len, arrays)])
        self.shape: tuple[int, ...] = (3, side, side)
        self.labels = labels[rows]
        self._given = torch.from_numpy(self.labels) if conditional else None

    def __len__(self) -> int:
        return len(self._rows)

    def prepare(self) -> None:
        """It is read as it lies there."""

    def batch(self, indices: Indices) -> Batch:
        index = torch.as_tensor(indices)
        rows = self._rows[index.numpy()]
        homes = np.searchsorted(self._starts, rows, side="right") - 1
        pictures = [self._arrays[home][row - self._starts[home]] for home, row in zip(homes, rows, strict=True)]
        x = torch.from_numpy(np.stack(pictures)).view(-1, *self.shape).to(torch.float32).div_(127.5).sub_(1)
        return x, None if self._given is None else self._given[index]

    def all(self, limit: int | None = None) -> Batch:
        return self.batch(fixed_subset(len(self), limit))

    def fingerprint(self) -> str:
        return self._key

    def identity(self) -> str:
        """Of the rows' numbers and labels; the pixels of the files are not read for it."""
        return hashlib.sha256(self._rows.tobytes() + self.labels.tobytes()).hexdigest()[:16]


def _load_batches(config: Data, root: Path, side: int) -> Dataset:
    """Validation is held out of the training batches; val_data.npz is the test split."""
    for key, allowed in (("size_px", side), ("channels", 3), ("resize", "bicubic")):
        if getattr(config, key) not in (None, allowed):
            raise UserError(f"data.{key}={getattr(config, key)}: the batches in {root} hold 3x{side}x{side}")
    arrays, labels = _read_part(sorted(root.glob("train_data_batch_*.npz"), key=_batch_number), side)
    test_arrays, test_labels = _read_part([root / "val_data.npz"], side)
    kept, held_out = hold_out(labels, len(labels), config.valid_fraction, "valid")

    def split(name: str, arrays: list[np.ndarray], rows: np.ndarray, labels: np.ndarray) -> RowSplit:
        return RowSplit(arrays, rows, labels, side, config.class_labels, f"{root.absolute()}/{name}/{len(rows)}")

    num_classes = int(labels.max()) + 1
    return Dataset(
        name=config.name,
        train=split("train", arrays, limit_train(kept, config.num_train), labels),
        valid=split("valid", arrays, held_out, labels),
        test=split("test", test_arrays, np.arange(len(test_labels)), test_labels),
        num_classes=num_classes if config.class_labels else 0,
        class_names=tuple(map(str, range(num_classes))),
        licence="research only",
        source=f"Downsampled ImageNet, Chrabaszcz et al. 2017, in {root}",
    )


def _batch_number(path: Path) -> int:
    number = path.stem.rsplit("_", 1)[-1]
    return int(number) if number.isdigit() else 0


def _read_part(files: list[Path], side: int) -> tuple[list[np.ndarray], np.ndarray]:
    arrays, labels = [], []
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file")
        arrays.append(stored_array(file, "data"))
        if arrays[-1].ndim != 2 or arrays[-1].shape[1] != 3 * side * side or arrays[-1].dtype != np.uint8:
            raise UserError(
                f"{file}: 'data' is {arrays[-1].dtype} of shape {arrays[-1].shape}, not uint8 (n, 3 * {side} * {side})"
            )
        own = stored_array(file, "labels")
        if own.shape != arrays[-1].shape[:1] or own.dtype.kind not in "iu" or not 1 <= own.min() <= own.max() <= 2**16:
            raise UserError(f"{file}: 'labels' are not {len(arrays[-1])} whole numbers, the first class being 1")
        labels.append(np.asarray(own, np.int64) - 1)
    return arrays, np.concatenate(labels)
