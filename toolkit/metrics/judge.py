"""How samples are scored against a data set, the same for every paper that samples it.

A judge holds the reference (the test split) once and scores any number of sample sets against it. What it draws comes
from a seed of its own: every run, seed and paper is compared with the same real items. Distances in the features of a
small classifier of the data set (``toolkit.metrics.features``) are no FIDs, and compare only with each other.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from toolkit.data.sets import Dataset, Split
from toolkit.metrics.distances import energy_distance, within_mode_w2
from toolkit.metrics.features import Features, features_of
from toolkit.metrics.frechet import frechet_distance, frechet_floor, gaussian_stats
from toolkit.metrics.mixture import mode_counts, nearest_centre, off_mode_fraction
from toolkit.metrics.neighbours import precision_recall
from toolkit.runs.seeds import generator

MOST_NEIGHBOURS = 2500  # items a side for precision and recall, which cost the square of it
MOST_ENERGY_POINTS = 4000
FLOOR_POOL, LEAST_FLOOR_POOL = 3, 10_000  # the floor is the mean over draws from so many times the samples, at least
READ_AT_ONCE = 1024
SEED = 0
SPACES = {
    "classifier": "distances in the features of a classifier of the set's labels",
    "pca": "distances in the first principal components of the training pixels",
    "points": "distances in coordinates",
}


class Judge(Protocol):
    """``score`` of a sample set by the names of its distances; ``distance`` names the one that counts."""

    distance: str
    space: str  # what the distances are taken in, for people

    def score(self, samples: Tensor, labels: Tensor | None = None) -> dict[str, float]: ...

    def floor(self, num: int) -> dict[str, float]:
        """The score that ``num`` real training items get (all of them where there are fewer)."""

    def classify(self, samples: Tensor) -> Tensor | None:
        """The class of each sample, int64 (n,), on the CPU; None where there are no classes."""


class FeatureJudge:
    """Fréchet distance, precision and recall in fixed features, and accuracy where labels are given.

    Precision and recall take ``most_neighbours`` real items and as many samples, or fewer where there are fewer; they
    compare only at equal numbers of items and equal ``neighbours`` (k of Kynkäänniemi et al. 2019). The default is the
    number behind the published results; ``sample-icg`` took up to 5,000 before it was shared.
    """

    distance = "frechet"

    def __init__(
        self,
        dataset: Dataset,
        features: Features,
        *,
        neighbours: int = 3,
        most_neighbours: int = MOST_NEIGHBOURS,
        with_valid: bool = False,
    ) -> None:
        """with_valid: report ``frechet_valid`` too, the distance to the validation split where it has 2 items."""
        self.dataset, self.features, self.neighbours = dataset, features, neighbours
        self.space = SPACES[features.kind]
        test = self._of(dataset.test)
        order = torch.randperm(len(test), generator=generator(SEED, "neighbours"))[:most_neighbours]
        self.test = test[order]  # data sets are seldom in random order
        self.stats = {"frechet": gaussian_stats(test)}
        if with_valid and len(dataset.valid) >= 2:
            self.stats["frechet_valid"] = gaussian_stats(self._of(dataset.valid))

    def score(self, samples: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """Of images (n, C, H, W) clamped to [-1, 1], or points (n, d). labels: int64 (n,), those they should be of."""
        features = self.features(samples)
        found = {name: frechet_distance(features, stats) for name, stats in self.stats.items()}
        return found | self._precision_recall(features) | self.accuracy(samples, labels) | self.off_mode(samples)

    def floor(self, num: int) -> dict[str, float]:
        pool = max(FLOOR_POOL * num, LEAST_FLOOR_POOL)
        features = self._of(self.dataset.train, _random_order(self.dataset.train, "floor", "order")[:pool])
        found: dict[str, float] = {}
        for name, stats in self.stats.items():
            floor = frechet_floor(features, stats, num, generator(SEED, "floor"))
            found |= {name: floor.mean, f"{name}_sd": floor.sd, "num": floor.num}
        return found | self._precision_recall(features[:num])

    def classify(self, samples: Tensor) -> Tensor | None:
        """By the classifier, or exactly for a known mixture."""
        if self.features.net is not None:
            return self.features.predict(samples)
        return None if self.dataset.mixture is None else nearest_centre(samples.cpu(), self.dataset.mixture.centres)

    def accuracy(self, samples: Tensor, labels: Tensor | None) -> dict[str, float]:
        """``accuracy``: the share of samples of class ``labels`` (n,); {} without labels or classes."""
        classes = None if labels is None else self.classify(samples)
        if labels is None or classes is None:
            return {}
        return {"accuracy": float((classes == labels.cpu()).double().mean())}

    def off_mode(self, samples: Tensor) -> dict[str, float]:
        """``off_mode``: the share of points (n, d) far from every mode of a known mixture; {} without one."""
        mixture = self.dataset.mixture
        return {} if mixture is None else {"off_mode": off_mode_fraction(samples.cpu(), mixture.centres, mixture.std)}

    def _of(self, split: Split, index: Tensor | None = None) -> Tensor:
        """Features of the items ``index``, or of all in order; read in batches."""
        index = torch.arange(len(split)) if index is None else index
        return torch.cat([self.features(split.batch(part)[0]) for part in index.split(READ_AT_ONCE)])

    def _precision_recall(self, features: Tensor) -> dict[str, float]:
        num = min(len(features), len(self.test))
        both = precision_recall(self.test[:num], features[:num], self.neighbours)
        return {"precision": both.precision, "recall": both.recall}


class PointJudge:
    """Energy distance to test points; for mixtures also strays, the width within modes, and how evenly they are hit."""

    distance = "energy"
    space = SPACES["points"]

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.mixture = dataset, dataset.mixture
        self.reference = _random_items(dataset.test, MOST_ENERGY_POINTS, "energy")

    def score(self, samples: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """Of points (n, d). ``mode_chi2_per_mode`` is about 1 for random draws from even modes."""
        samples = samples.cpu()
        found = {"energy": energy_distance(samples[:MOST_ENERGY_POINTS], self.reference)}
        if self.mixture is None:
            return found
        centres, std = self.mixture.centres, self.mixture.std
        counts = mode_counts(samples, centres)
        found["off_mode"] = off_mode_fraction(samples, centres, std)
        found["mode_chi2_per_mode"] = counts.chi2 / (len(centres) - 1)
        found["modes_missed"] = float(sum(count == 0 for count in counts.counts))
        found["within_mode_w2"] = within_mode_w2(samples, self.reference, centres)
        return found

    def floor(self, num: int) -> dict[str, float]:
        return self.score(_random_items(self.dataset.train, num, "floor")) | {"num": float(num)}

    def classify(self, samples: Tensor) -> Tensor | None:
        return None if self.mixture is None else nearest_centre(samples.cpu(), self.mixture.centres)


def make_judge(dataset: Dataset) -> Judge:
    """Points are judged by their energy distance, images in their features; their classifier is loaded or trained."""
    return PointJudge(dataset) if len(dataset.shape) == 1 else FeatureJudge(dataset, features_of(dataset))


def _random_items(split: Split, num: int, *names: str) -> Tensor:
    """``num`` random items, all where there are fewer; the same for the same ``names``."""
    return split.batch(_random_order(split, *names)[:num])[0]


def _random_order(split: Split, *names: str) -> Tensor:
    return torch.randperm(len(split), generator=generator(SEED, *names))
