"""Scores of a column's samples, and when they can be taken: too few items say nothing about a distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.data.sets import Dataset
from toolkit.metrics.judge import FeatureJudge

LEAST_FOR_DISTANCES = 100


def score(judge: FeatureJudge, images: Tensor, labels: Sequence[int] | None) -> dict[str, float]:
    """Scores of float32 images (n, C, H, W) in [-1, 1]; accuracy where they should be of classes ``labels`` (n).

    Fewer than LEAST_FOR_DISTANCES get no distances, precision and recall.
    """
    wanted = None if labels is None else torch.tensor(labels)
    if len(images) >= LEAST_FOR_DISTANCES:
        return judge.score(images, wanted)
    return judge.accuracy(images, wanted) | judge.off_mode(images)


def floor(judge: FeatureJudge, num: int) -> dict[str, float]:
    """The scores of ``num`` real training items (all where there are fewer), and the test split's accuracy."""
    found = judge.floor(num) if num >= LEAST_FOR_DISTANCES else {}
    known = judge.dataset.test.labels
    return found | judge.accuracy(judge.dataset.test.all()[0], None if known is None else torch.from_numpy(known))


def why_not(dataset: Dataset | None, shape: tuple[int, ...] | None, num_classes: int) -> str:
    """Why samples of ``shape`` cannot be scored against ``dataset``; empty where they can."""
    if dataset is None:
        return "the data of this model is not known; give it with data="
    if shape is not None and tuple(dataset.shape) != tuple(shape):
        return f"data={dataset.name} has samples of {_times(dataset.shape)}, the model makes {_times(shape)}"
    if num_classes and len(dataset.class_names) != num_classes:
        return f"data={dataset.name} has {len(dataset.class_names)} classes, the model {num_classes}"
    if len(dataset.test) < LEAST_FOR_DISTANCES:
        return f"data={dataset.name} has {len(dataset.test)} test items, too few to compare with"
    return ""


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
