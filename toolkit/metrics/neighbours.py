"""Measures by nearest neighbours in a feature space, computed in chunks: precision, recall, memorisation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 1024


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1]; comparable only at equal numbers of points."""

    precision: float
    recall: float


def precision_recall(real: Tensor, samples: Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019): features (n, d) and (m, d), each more than ``k``.

    Precision: share of samples inside the ball of some real point, whose radius reaches its k-th real neighbour.
    Recall: the same with the roles exchanged.
    """
    if min(len(real), len(samples)) <= k:
        raise ValueError(f"{len(real)} and {len(samples)} points: need more than k={k} on each side")
    return PrecisionRecall(_share_inside(samples, real, k), _share_inside(real, samples, k))


def _share_inside(points: Tensor, centres: Tensor, k: int) -> float:
    points, centres = points.detach().flatten(1).float(), centres.detach().flatten(1).float()
    # each centre is its own nearest neighbour, so its k-th other one is at position k
    radii = torch.cat([torch.cdist(c, centres).kthvalue(k + 1, dim=1).values for c in centres.split(_CHUNK)])
    inside = [(torch.cdist(chunk, centres) <= radii).any(1) for chunk in points.split(_CHUNK)]
    return float(torch.cat(inside).double().mean())


def nearest_distances(points: Tensor, among: Tensor | Iterable[Tensor]) -> Tensor:
    """Euclidean distance of each point (n, ...) to the nearest of ``among``, (m, ...) or batches: float64 (n,)."""
    points = points.detach().flatten(1).float()
    nearest = torch.full((len(points),), torch.inf, device=points.device)
    for batch in [among] if isinstance(among, Tensor) else among:
        others = batch.detach().flatten(1).float().to(points.device)
        found = torch.cat([torch.cdist(chunk, others).amin(1) for chunk in points.split(_CHUNK)])
        nearest = torch.minimum(nearest, found)
    return nearest.double()


def memorisation_ratio(samples: Tensor, held_out: Tensor, train: Tensor | Iterable[Tensor]) -> float:
    """Median nearest-training distance of samples over that of held-out images: near 1 is fresh, far below 1 copies.

    train: all of it, or batches that can be gone through twice.
    """
    ours, real = nearest_distances(samples, train).median(), nearest_distances(held_out, train).median()
    if real == 0:
        raise ValueError("half of the held-out images are training images")
    return float(ours / real)
