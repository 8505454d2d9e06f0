"""Features to compare images in: a small classifier of the data set itself, its pixels' principal axes, or points.

The classifier is fixed once per data set: trained from its own seed on the training split, kept in the cache under a
hash of the data and RECIPE, and shared by every run and seed. Distances in its features mean something only against
others in the same features; they are not FIDs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.data.fetching import cache_root, kept_if_possible
from toolkit.data.sets import Dataset
from toolkit.runs.files import write_atomic
from toolkit.runs.seeds import derive, generator

# Of how the classifier is made: FeatureNet, train_classifier, and the numbers below. Raise it with every change there
# that makes other features of the same data, so that they never mix with the old ones.
RECIPE = 1
NUM_FEATURES = 64
NUM_PCA = 20
BATCH_SIZE = 128
NUM_IMAGES = 200_000
NUM_FOR_PCA = 1024
_SEED = 0
_CHUNK = 1024


class FeatureNet(nn.Module):
    """Convolutions down to 4 x 4 or less, a linear layer to 64 features, one to the classes.

    Strided convolutions from the start where the image is 24 pixels or larger, to keep training under a minute or so.
    """

    def __init__(self, shape: tuple[int, ...], num_classes: int, width: int = 32):
        super().__init__()
        channels, height, side = shape[0], *shape[1:]
        stages: list[nn.Module] = []
        first = 2 if min(height, side) >= 24 else 1
        for stride, out in ((first, width), (2, 2 * width), (2, 2 * width), (2, 2 * width), (2, 2 * width)):
            if len(stages) >= 2 and min(height, side) <= 4:
                break
            stages += [nn.Conv2d(channels, out, 3, stride, 1), nn.ReLU()]
            channels, height, side = out, -(-height // stride), -(-side // stride)
        self.body = nn.Sequential(*stages, nn.AdaptiveAvgPool2d((min(4, height), min(4, side))), nn.Flatten())
        self.to_features = nn.Linear(channels * min(4, height) * min(4, side), NUM_FEATURES)
        self.to_logits = nn.Linear(NUM_FEATURES, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """(n, C, H, W) in [-1, 1] -> (n, 64), before the non-linearity."""
        return self.to_features(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.to_logits(F.relu(self.features(x)))


class Features:
    """Maps items to feature vectors. ``kind`` is classifier, pca or points; ``accuracy`` needs a classifier."""

    def __init__(self, kind: str, function: Callable[[Tensor], Tensor], net: FeatureNet | None = None):
        self.kind, self._function, self.net = kind, function, net

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Features float32 (n, d) of items (n, ...); images clamped to [-1, 1] by the caller. In chunks, on CPU."""
        return torch.cat([self._function(chunk.float().cpu()) for chunk in x.split(_CHUNK)])

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """The most likely class of each image: int64 (n,). ValueError where the features come from no classifier."""
        if self.net is None:
            raise ValueError(f"{self.kind} features have no classes")
        return torch.cat([self.net(chunk.float().cpu()).argmax(1) for chunk in x.split(_CHUNK)])

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Share of images classified as ``labels`` (n,)."""
        return float((self.predict(x) == torch.as_tensor(labels).cpu()).double().mean())


def features_of(dataset: Dataset) -> Features:
    """The features to score ``dataset``'s samples in.

    Points: their coordinates. Images with known labels (two classes or more): the classifier, loaded from the cache or
    trained now. Images without: the 20 first principal components of the training pixels.
    """
    if len(dataset.shape) == 1:
        return Features("points", lambda x: x)
    if dataset.train.labels is None or len(dataset.class_names) < 2:
        return _principal_components(dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(_SEED, "features"))
        net = FeatureNet(dataset.shape, len(dataset.class_names))
    path = _cache_path(dataset)
    if not _load(net, path):
        train_classifier(net, dataset)
        with kept_if_possible(path):  # after a training: what is measured does not need the file
            write_atomic(path, save(net.state_dict()))
    net.eval().requires_grad_(False)
    return Features("classifier", net.features, net)


def _cache_path(dataset: Dataset) -> Path:
    made_of = f"{RECIPE} {dataset.shape} {dataset.class_names} {dataset.train.fingerprint()}"
    digest = hashlib.sha256(made_of.encode())
    return cache_root() / "features" / f"{dataset.name}-{digest.hexdigest()[:24]}.safetensors"


def _load(net: FeatureNet, path: Path) -> bool:
    """Load the cached weights; False when there are none or the file is damaged, so that they are made again."""
    if not path.is_file():
        return False
    try:
        net.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError):
        return False
    return True


def train_classifier(net: FeatureNet, dataset: Dataset) -> None:
    """AdamW on cross-entropy with one cosine decay, on random batches of the training split from a fixed seed."""
    num_steps = max(200, min(NUM_IMAGES, 20 * len(dataset.train)) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=num_steps, pct_start=0.1)
    labels = torch.as_tensor(dataset.train.labels)  # known here even where networks may not see them
    random = generator(_SEED, "features", "batches")
    net.train()
    for _ in range(num_steps):
        chosen = torch.randint(len(labels), (BATCH_SIZE,), generator=random)
        loss = F.cross_entropy(net(dataset.train.batch(chosen)[0]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _principal_components(dataset: Dataset) -> Features:
    pixels = dataset.train.all(NUM_FOR_PCA)[0].flatten(1).double()
    mean = pixels.mean(0)
    axes = torch.linalg.svd(pixels - mean, full_matrices=False).Vh[:NUM_PCA].T
    return Features("pca", lambda x: ((x.flatten(1).double() - mean) @ axes).float())
