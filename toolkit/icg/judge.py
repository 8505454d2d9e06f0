"""Scores of samples against the model's data: Fréchet distance with its floor, precision, recall, class accuracy.

Distances are in the features of a small classifier of the data set itself (``toolkit.metrics.features``): they are no
FIDs, and compare only with each other. Samples are 8-bit pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.data.sets import Dataset
from toolkit.metrics.features import Features, features_of
from toolkit.metrics.frechet import frechet_distance, frechet_floor, gaussian_stats
from toolkit.metrics.mixture import nearest_centre, off_mode_fraction
from toolkit.metrics.neighbours import precision_recall
from toolkit.runs.seeds import generator

LEAST_FOR_DISTANCES = 100  # fewer say nothing about a distribution
MOST_NEIGHBOURS = 5000  # items whose nearest neighbours are sought
SCORES = ("frechet", "precision", "recall", "accuracy")


class Judge:
    """Scores samples of ``dataset``; distances are to the test split, ``frechet_valid`` to the validation split."""

    def __init__(self, dataset: Dataset, neighbours: int = 3) -> None:
        self.dataset, self.neighbours = dataset, neighbours
        self.features: Features = features_of(dataset)
        test = self.features(dataset.test.all()[0])
        order = torch.randperm(len(test), generator=generator(0, "neighbours"))[:MOST_NEIGHBOURS]
        self.test, self.test_stats = test[order], gaussian_stats(test)  # data sets are seldom in random order
        valid = self.features(dataset.valid.all()[0])
        self.valid_stats = gaussian_stats(valid) if len(valid) >= 2 else None

    def score(self, images: Tensor, labels: Sequence[int] | None) -> dict[str, float]:
        """Scores of float32 images (n, C, H, W) in [-1, 1]; accuracy where they should be of classes ``labels`` (n)."""
        features = self.features(images)
        found: dict[str, float] = {}
        if len(features) >= LEAST_FOR_DISTANCES:
            found["frechet"] = frechet_distance(features, self.test_stats)
            if self.valid_stats is not None:
                found["frechet_valid"] = frechet_distance(features, self.valid_stats)
            num = min(len(features), len(self.test))
            both = precision_recall(self.test[:num], features[:num], self.neighbours)
            found |= {"precision": both.precision, "recall": both.recall}
        if labels is not None and (predicted := self.predict(images)) is not None:
            found["accuracy"] = float((predicted == torch.tensor(labels)).double().mean())
        if (mixture := self.dataset.mixture) is not None:
            found["off_mode"] = off_mode_fraction(images, mixture.centres, mixture.std)
        return found

    def predict(self, images: Tensor) -> Tensor | None:
        """The most likely class int64 (n,): by the classifier, or exactly for a known mixture; None without either."""
        if self.features.net is not None:
            return self.features.predict(images)
        return None if self.dataset.mixture is None else nearest_centre(images, self.dataset.mixture.centres)

    def floor(self, num: int) -> dict[str, float]:
        """The scores of ``num`` real training items (all where there are fewer), and the test split's accuracy."""
        found: dict[str, float] = {}
        if num >= LEAST_FOR_DISTANCES:
            features = self.features(self.dataset.train.all()[0])
            features = features[torch.randperm(len(features), generator=generator(0, "floor", "order"))]
            found["frechet"] = frechet_floor(features, self.test_stats, num, generator(0, "floor")).mean
            if self.valid_stats is not None:
                found["frechet_valid"] = frechet_floor(features, self.valid_stats, num, generator(0, "floor")).mean
            size = min(num, len(features), len(self.test))
            both = precision_recall(self.test[:size], features[:size], self.neighbours)
            found |= {"precision": both.precision, "recall": both.recall}
        predicted, known = self.predict(self.dataset.test.all()[0]), self.dataset.test.labels
        if predicted is not None and known is not None:
            found["accuracy"] = float((predicted == torch.from_numpy(known)).double().mean())
        return found


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
