"""Encoders that stand in for the learned one, so that every baseline runs through the same two stages.

True labels as latents (an upper reference) and residual k-means codes (what codes fitted beforehand give). Each answers
to ``LatentEncoder``: clean samples -> logits (B, m, k).

Shapes: B batch, N items, m slots, k codes per slot, d numbers per sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.data.sets import Dataset
from toolkit.disco.config import TrainDisco
from toolkit.errors import UserError
from toolkit.runs.seeds import derive
from toolkit.zoo.disco.encoders import LatentEncoder

CERTAIN = 100.0  # a gap between logits that Gumbel noise, which lies in (-5, 17) in float32, never bridges
MOST_ITEMS = 20_000  # for k-means


class KMeansEncoder(LatentEncoder):
    """Residual k-means: slot 0 names the nearest of k centroids, each later slot that of what is left over.

    The logits are certain: every draw returns the nearest centroids. ``fit`` must be called once; the centroids are a
    buffer and travel with the weights.
    """

    centroids: Tensor

    @register_to_config
    def __init__(self, sample_shape: Sequence[int] = (2,), num_latents: int = 1, codebook_size: int = 8) -> None:
        super().__init__()
        self.head = nn.Identity()
        self.register_buffer("centroids", torch.zeros(num_latents, codebook_size, math.prod(sample_shape)))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.config.sample_shape)

    @torch.no_grad()
    def fit(self, samples: Tensor, seed: int = 0) -> KMeansEncoder:
        """Fit the slots one after the other on samples (N, *shape). Returns self.

        Raises UserError when there are fewer samples than codes.
        """
        from sklearn.cluster import KMeans

        residual = samples.flatten(1).double().cpu().numpy()
        size = self.config.codebook_size
        if len(residual) < size:
            raise UserError(
                f"latents.codebook_size={size}: k-means needs that many training items, {len(residual)} given"
            )
        for slot in range(self.config.num_latents):
            state = derive(seed, "kmeans", slot) % 2**32
            found = KMeans(size, n_init=4, random_state=state).fit(residual)
            self.centroids[slot] = torch.from_numpy(found.cluster_centers_).float()
            residual = residual - found.cluster_centers_[found.labels_]
        return self

    def _features(self, y: Tensor) -> Tensor:
        residual, logits = y.flatten(1).float(), []
        for centroids in self.centroids:
            nearest = torch.cdist(residual, centroids).argmin(1)
            residual = residual - centroids[nearest]
            logits.append(certain_logits(nearest, len(centroids)))
        return torch.stack(logits, dim=1)


class LabelEncoder(LatentEncoder):
    """z is the true label: one slot, one code per class. It reads labels, not samples; see ``code_logits``."""

    table: Tensor

    @register_to_config
    def __init__(self, sample_shape: Sequence[int] = (2,), num_latents: int = 1, codebook_size: int = 10) -> None:
        super().__init__()
        self.head = nn.Identity()
        self.register_buffer("table", certain_logits(torch.arange(codebook_size), codebook_size))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.config.sample_shape)

    def from_labels(self, labels: Tensor) -> Tensor:
        """Labels int64 (B,) -> certain logits (B, 1, k)."""
        return self.table[labels][:, None]

    def _features(self, y: Tensor) -> Tensor:
        raise ValueError("a label encoder reads labels: call code_logits(encoder, y, labels)")


def certain_logits(codes: Tensor, codebook_size: int) -> Tensor:
    """Codes int64 (B,) -> logits (B, k) of which every draw returns the code."""
    return CERTAIN * (F.one_hot(codes, codebook_size).float() - 1)


def code_logits(encoder: LatentEncoder, y: Tensor, labels: Tensor | None = None) -> Tensor:
    """What ``encoder`` says of clean samples y (B, *shape): logits (B, m, k), or (B, m, 2k) for continuous latents.

    labels: int64 (B,), the known ones; read by a LabelEncoder alone. Raises ValueError where it has none.
    """
    if not isinstance(encoder, LabelEncoder):
        return encoder(y)
    if labels is None:
        raise ValueError("true labels as latents: labels must be given")
    return encoder.from_labels(labels.to(y.device))


def build_baseline_encoder(config: TrainDisco, dataset: Dataset) -> LatentEncoder:
    """The encoder of ``latents.kind`` labels or kmeans, fitted to the training split, without parameters to train.

    Of a stand-in for data that is not at hand it has the shapes alone. Raises UserError for labels where the data has
    none, and for k-means with fewer items than codes.
    """
    latents, shape = config.latents, list(dataset.shape)
    has_items = dataset.source != "stand-in"
    if latents.kind == "labels":
        if has_items and dataset.train.labels is None:
            raise UserError(f"latents.kind=labels: data.name={config.data.name} has no labels")
        return LabelEncoder(shape, 1, len(dataset.class_names))
    assert latents.kind == "kmeans", latents.kind
    encoder = KMeansEncoder(shape, latents.num_latents, latents.codebook_size)
    return encoder.fit(dataset.train.all(MOST_ITEMS)[0], config.seed) if has_items else encoder
