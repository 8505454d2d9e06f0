"""Statistics of a set in Inception's features: summed in float64 as images pass, or read from a published reference."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toolkit.errors import UserError, brief
from toolkit.measure.arrays import DAMAGES
from toolkit.measure.images import ImageSet
from toolkit.metrics.frechet import GaussianStats
from toolkit.runs.files import write_atomic
from toolkit.zoo.inception import NUM_FEATURES, Inception

_MAX_BYTES = 1 << 30  # of one array in a file of statistics


class Moments:
    """Running mean and covariance of features, in float64 on the CPU: the order of batches changes rounding only."""

    def __init__(self, num_features: int):
        self.num = 0
        self._sum = torch.zeros(num_features, dtype=torch.float64)
        self._outer = torch.zeros(num_features, num_features, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """``features``: (n, d)."""
        x = features.detach().cpu().double()
        self.num += len(x)
        self._sum += x.sum(0)
        self._outer += x.T @ x

    def stats(self) -> GaussianStats:
        """Mean and unbiased covariance (divided by n - 1, as EDM's fid.py and ADM's evaluator do)."""
        mean = self._sum / self.num
        return GaussianStats(mean, (self._outer - self.num * torch.outer(mean, mean)) / (self.num - 1), self.num)


@dataclass
class Activations:
    """What is known of a set: statistics, and where the images were seen, each one's ``pool`` (n, 2048) in float32 and
    class ``probabilities`` (n, 1008) for precision, recall and the Inception score."""

    fid: GaussianStats
    sfid: GaussianStats | None = None
    pool: Tensor | None = None
    probabilities: Tensor | None = None

    @property
    def num(self) -> int:
        """How many images; 0 where the file of statistics does not say."""
        return self.fid.num


def activations(
    images: ImageSet,
    network: Inception,
    device: str,
    batch_size: int,
    most: int | None = None,
    spatial: bool = False,
    advance: Callable[[int], None] = lambda done: None,
) -> Activations:
    """All of ``images``, or the first ``most``, through ``network``. ``advance`` is told how many are done.

    ``spatial``: sFID's statistics, too.
    """
    num = min(len(images), most or len(images))
    network = network.to(device)
    fid: Moments | None = None
    sfid: Moments | None = None
    pool, probabilities, done = [], [], 0
    for batch in images.batches(batch_size):
        batch = batch[: num - done]
        found = network(batch.to(device))
        fid = fid or Moments(found.pool.shape[1])
        fid.add(found.pool)
        if spatial:
            sfid = sfid or Moments(found.spatial.shape[1])
            sfid.add(found.spatial)
        pool.append(found.pool.float().cpu())
        probabilities.append(found.logits.float().softmax(1).cpu())
        done += len(batch)
        advance(done)
        if done == num:
            break
    assert fid is not None
    return Activations(fid.stats(), sfid.stats() if sfid else None, torch.cat(pool), torch.cat(probabilities))


def read_statistics(path: Path) -> Activations | None:
    """Statistics published as ``.npz`` with ``mu`` and ``sigma`` (EDM), and ``mu_s``, ``sigma_s`` (ADM's reference
    batches); None where the file holds images only. Nothing is unpickled.

    Raises UserError: not such a file, wrong shapes, values that are not finite.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if "mu.npy" not in names or "sigma.npy" not in names:
                return None
            fid = _gaussian(archive, path, "mu", "sigma")
            if len(fid.mean) != NUM_FEATURES:
                raise UserError(f"{path}: mu has {len(fid.mean)} values; expected {NUM_FEATURES} Inception features")
            sfid = _gaussian(archive, path, "mu_s", "sigma_s") if {"mu_s.npy", "sigma_s.npy"} <= names else None
            return Activations(fid, sfid)
    except DAMAGES as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not an .npz of statistics ({brief(error)})") from None


def _gaussian(archive: zipfile.ZipFile, path: Path, mean_name: str, covariance_name: str) -> GaussianStats:
    arrays = []
    for name in (mean_name, covariance_name):
        if archive.getinfo(f"{name}.npy").file_size > _MAX_BYTES:
            raise UserError(f"{path}: {name} takes more than {_MAX_BYTES >> 20} MiB; expected statistics of features")
        array = np.lib.format.read_array(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise UserError(f"{path}: {name} must hold finite floating-point numbers")
        arrays.append(torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64)))
    mean, covariance = arrays
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(
            f"{path}: {mean_name} {tuple(mean.shape)} and {covariance_name} {tuple(covariance.shape)} do not fit"
        )
    return GaussianStats(mean, covariance, 0)


def write_statistics(path: Path, found: Activations) -> Path:
    """``mu`` and ``sigma`` (and ``mu_s``, ``sigma_s``) in float64, the layout that EDM's fid.py reads."""
    arrays = {"mu": found.fid.mean.numpy(), "sigma": found.fid.covariance.numpy()}
    if found.sfid:
        arrays |= {"mu_s": found.sfid.mean.numpy(), "sigma_s": found.sfid.covariance.numpy()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy types its options, not the arrays
    return write_atomic(path, buffer.getvalue())
