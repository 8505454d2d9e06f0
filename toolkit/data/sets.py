"""A data set and its splits: images as float32 in [-1, 1], points in their own coordinates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.runs.seeds import generator

Indices = np.ndarray | Tensor | Sequence[int]
Batch = tuple[Tensor, Tensor | None]
NUM_FOR_SIGMA_DATA = 2048


class Split(Protocol):
    """One part of a data set.

    ``labels`` are the known ones, for measures, whether or not a network may see them: int64 (n,) or None.
    ``batch`` and ``all`` hand labels out only where the config asks for class labels.
    """

    labels: np.ndarray | None
    shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def prepare(self) -> None:
        """Do now what a first read would wait for, once; UserError for what turns out bad."""

    def batch(self, indices: Indices) -> Batch:
        """Items ``indices``: x float32 (n, *shape), images in [-1, 1]; class labels int64 (n,) or None."""

    def all(self, limit: int | None = None) -> Batch:
        """Every item in order, or a fixed random ``limit`` of them (files are seldom in random order)."""

    def fingerprint(self) -> str:
        """A hash of the content, the key of what is computed from it once."""

    def identity(self) -> str:
        """16 hex digits that tell whether it holds what it held before, wherever it lies now."""


class MemorySplit:
    """A split held in memory: ``values`` uint8 (n, C, H, W), or float32 (n, d) handed out as they are."""

    def __init__(
        self,
        values: Tensor,
        labels: np.ndarray | None = None,
        conditional: bool = True,
        identity: str | None = None,
    ):
        """identity: that of the split, where it is not the content's with the labels."""
        assert labels is None or len(labels) == len(values)
        self.values = values.contiguous()
        self.labels = None if labels is None else np.asarray(labels, np.int64)
        self.shape = tuple(values.shape[1:])
        self._given = torch.from_numpy(self.labels) if self.labels is not None and conditional else None
        self._identity = identity

    def __len__(self) -> int:
        return len(self.values)

    def prepare(self) -> None:
        """It is in memory."""

    def batch(self, indices: Indices) -> Batch:
        index = torch.as_tensor(indices)
        x = self.values[index]
        if x.dtype == torch.uint8:
            x = x.to(torch.float32).div_(127.5).sub_(1)
        return x, None if self._given is None else self._given[index]

    def all(self, limit: int | None = None) -> Batch:
        return self.batch(fixed_subset(len(self), limit))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.values.numpy().tobytes())
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        return digest.hexdigest()

    def identity(self) -> str:
        return self._identity or self.fingerprint()[:16]


@dataclass
class Dataset:
    """A loaded data set.

    ``num_classes`` is what a network is conditioned on (0 without ``data.class_labels``); ``class_names`` name the
    values of the splits' ``labels`` in any case. ``mixture`` is the known density of a generated set.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    num_classes: int
    class_names: tuple[str, ...]
    licence: str
    source: str
    mixture: GaussianMixture | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image or (d,) of a point."""
        return self.train.shape

    def contents(self) -> dict[str, dict[str, Any]]:
        """How many items each split has and their identity, for the record of a run."""
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: {"items": len(part), "identity": part.identity()} for name, part in parts.items()}

    def prepare(self) -> None:
        """Have what is read often ready: a large folder is decoded once."""
        for part in (self.train, self.valid, self.test):
            part.prepare()

    @cached_property
    def sigma_data(self) -> float:
        """Standard deviation of the training values (all pixels or coordinates as one), from at most 2048 items.

        Raises UserError where all of them are the same: there is nothing to learn, and no noise level fits.
        """
        with torch.device("cpu"):  # also where networks are built on the meta device, whose indices pick nothing
            values, _ = self.train.all(NUM_FOR_SIGMA_DATA)
        if not values.min() < values.max():
            raise UserError(f"data.name={self.name} ({self.source}): all training values are the same; give others")
        return float(values.double().std())


def fixed_subset(num_items: int, limit: int | None) -> Tensor:
    """All indices in order, or the first ``limit`` of one fixed permutation (sorted, so that reads go forward)."""
    if limit is None or limit >= num_items:
        return torch.arange(num_items)
    return torch.randperm(num_items, generator=generator(0, "subset", num_items))[:limit].sort().values


def hold_out(
    labels: np.ndarray | None, num_items: int, fraction: float, name: str, units: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held out), each sorted: a fixed split per class, the same for every seed of a run.

    Items of the same ``units`` value (n,), all of one class, stay together. Every class with at least two units gives
    at least one. Raises UserError when nothing would be left on a side.
    """
    if units is not None:
        _, first, unit_of = np.unique(units, return_index=True, return_inverse=True)
        kept, held_out = hold_out(None if labels is None else labels[first], len(first), fraction, name)
        return np.flatnonzero(np.isin(unit_of, kept)), np.flatnonzero(np.isin(unit_of, held_out))
    groups = [np.arange(num_items)] if labels is None else [np.flatnonzero(labels == one) for one in np.unique(labels)]
    random = generator(0, "split", name)
    held = []
    for group in groups:
        num_held = min(max(round(fraction * len(group)), 1), len(group) - 1)
        held.append(group[torch.randperm(len(group), generator=random).numpy()[:num_held]])
    held_out = np.sort(np.concatenate(held))
    kept = np.setdiff1d(np.arange(num_items), held_out)
    if not (len(kept) and len(held_out)):
        raise UserError(f"data: {num_items} items are too few to hold out a {name} split of {fraction:g}")
    return kept, held_out


def limit_train(indices: np.ndarray, num_train: int | None) -> np.ndarray:
    """A fixed random ``num_train`` of ``indices``, or all of them."""
    if num_train is not None and num_train > len(indices):
        raise UserError(f"data.num_train={num_train}: only {len(indices)} training items; give at most that")
    return indices[fixed_subset(len(indices), num_train).numpy()]


@dataclass(frozen=True)
class GaussianMixture:
    """Equal-weight isotropic Gaussians: ``centres`` float64 (k, d), one standard deviation ``std``."""

    centres: Tensor = field(repr=False)
    std: float

    def sample(self, num_per_component: int, random: torch.Generator) -> tuple[Tensor, np.ndarray]:
        """``num_per_component`` points of each component: float64 (n, d) and their components int64 (n,)."""
        components = torch.arange(len(self.centres)).repeat_interleave(num_per_component)
        noise = torch.randn(len(components), self.centres.shape[1], generator=random, dtype=torch.float64)
        return self.centres[components] + self.std * noise, components.numpy()
