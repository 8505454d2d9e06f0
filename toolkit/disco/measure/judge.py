"""How samples are scored: images by the Fréchet distance in fixed features, points against their modes.

A judge holds the reference (the test split) once and scores any number of sample sets against it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from toolkit.data.sets import Dataset
from toolkit.disco.measure.setting import Setting
from toolkit.metrics.distances import energy_distance, within_mode_w2
from toolkit.metrics.features import Features, features_of
from toolkit.metrics.frechet import frechet_distance, frechet_floor, gaussian_stats
from toolkit.metrics.mixture import mode_counts, nearest_centre, off_mode_fraction
from toolkit.metrics.neighbours import precision_recall

MOST_NEIGHBOURS = 2500  # precision and recall cost the square of this; they compare at equal numbers only
MOST_ENERGY_POINTS = 4000
FLOOR_POOL = 3  # the floor is the mean over draws from this many times the number of samples


class Judge(Protocol):
    """``score`` of a sample set by the names of its distances; ``distance`` names the one that counts."""

    distance: str

    def score(self, samples: Tensor, labels: Tensor | None = None) -> dict[str, float]: ...

    def floor(self, num: int) -> dict[str, float]:
        """The score that ``num`` real training items get."""

    def classify(self, samples: Tensor) -> Tensor | None:
        """The class of each sample, int64 (n,), on the CPU; None where there are no classes."""


class ImageJudge:
    """Fréchet distance to the test images, precision and recall at equal numbers, accuracy where labels are given."""

    distance = "frechet"

    def __init__(self, setting: Setting, features: Features):
        self.setting, self.features = setting, features
        self.reference = features(setting.items(setting.dataset.test, len(setting.dataset.test))[0])
        self.stats = gaussian_stats(self.reference)

    def score(self, samples: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """Of images (n, C, H, W), already clamped; labels: those they were conditioned on."""
        found = self._score_features(self.features(samples))
        if labels is not None and self.features.net is not None:
            found["accuracy"] = self.features.accuracy(samples, labels)
        return found

    def floor(self, num: int) -> dict[str, float]:
        train = self.features(self.setting.items(self.setting.dataset.train, FLOOR_POOL * num)[0])
        floor = frechet_floor(train, self.stats, num, self.setting.cpu_rng("floor"))
        return self._score_features(train[:num]) | {"frechet": floor.mean, "frechet_sd": floor.sd, "num": floor.num}

    def classify(self, samples: Tensor) -> Tensor | None:
        return None if self.features.net is None else self.features.predict(samples)

    def _score_features(self, features: Tensor) -> dict[str, float]:
        num = min(MOST_NEIGHBOURS, len(features), len(self.reference))
        near = precision_recall(self.reference[:num], features[:num])
        distance = frechet_distance(features, self.stats)
        return {"frechet": distance, "precision": near.precision, "recall": near.recall}


class PointJudge:
    """Energy distance to test points; for mixtures also strays, the width within modes, and how evenly they are hit."""

    distance = "energy"

    def __init__(self, setting: Setting):
        self.setting, self.mixture = setting, setting.dataset.mixture
        self.reference = setting.items(setting.dataset.test, MOST_ENERGY_POINTS)[0].cpu()

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
        return self.score(self.setting.items(self.setting.dataset.train, num)[0]) | {"num": float(num)}

    def classify(self, samples: Tensor) -> Tensor | None:
        return None if self.mixture is None else nearest_centre(samples.cpu(), self.mixture.centres)


def make_judge(setting: Setting) -> Judge:
    """The judge of the setting's data; trains or loads the feature classifier of an image set."""
    dataset: Dataset = setting.dataset
    return PointJudge(setting) if len(dataset.shape) == 1 else ImageJudge(setting, features_of(dataset))


def mean_scores(scores: list[dict[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and sample standard deviation of each score over repeats (sd is empty for one repeat)."""
    table = {name: torch.tensor([one[name] for one in scores], dtype=torch.float64) for name in scores[0]}
    means = {name: float(values.mean()) for name, values in table.items()}
    return means, {name: float(values.std()) for name, values in table.items()} if len(scores) > 1 else {}
