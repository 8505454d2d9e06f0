"""``toolkit measure images``: FID, sFID, Inception score, precision and recall of samples on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import UserError
from toolkit.measure.arrays import has_samples
from toolkit.measure.images import ImageSet
from toolkit.measure.statistics import Activations, activations, read_statistics, write_statistics
from toolkit.metrics.frechet import frechet_distance
from toolkit.metrics.inception_score import inception_score
from toolkit.metrics.neighbours import precision_recall
from toolkit.plain_files import check_writable
from toolkit.runs.device import check_device
from toolkit.runs.files import write_json
from toolkit.runs.progress import bar
from toolkit.show.table import Table
from toolkit.zoo.inception import PUBLISHED, Inception, load_inception

_NEIGHBOURS = 3  # ADM's evaluator, and Kynkäänniemi et al. 2019
# what the numbers are called in features that are not the published network's
_OTHER = {"fid": "frechet_distance", "sfid": "spatial_frechet_distance", "inception_score": "class_score"}
_LABELS = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "Inception score",
    "precision": "precision",
    "recall": "recall",
    "frechet_distance": "Fréchet distance (not FID: other weights)",
    "spatial_frechet_distance": "spatial Fréchet distance (not sFID: other weights)",
    "class_score": "class score (not the Inception score: other weights)",
}


@dataclass(frozen=True)
class Plan:
    """What to measure, and how. ``num``: only the first so many samples."""

    samples: Path
    reference: Path
    inception: Path
    num: int | None = None
    batch_size: int = 64
    device: str = "cpu"

    def check(self) -> None:
        """Raise UserError for what can be known to fail before any image is read."""
        check_device(self.device, f"--device {self.device}")
        if self.num is not None and self.num < 2:
            raise UserError(f"--num {self.num}: expected two or more")
        for path in (self.samples, self.reference):
            if not path.exists():
                raise UserError(f"{path}: no such file or folder")


def measure_images(plan: Plan) -> dict[str, Any]:
    """Numbers of ``plan.samples`` beside ``plan.reference``, with what they were taken in.

    The reference: images, ADM's reference batch, or statistics as EDM publishes them (then no precision and recall).

    Raises UserError: a file that is missing, damaged or of another kind.
    """
    plan.check()
    samples = ImageSet(plan.samples, plan.num)
    published = read_statistics(plan.reference) if plan.reference.suffix == ".npz" else None
    images = _reference_images(plan.reference, published)
    network, digest = load_inception(plan.inception)
    spatial = published is None or published.sfid is not None
    with bar("samples", 0, min(len(samples), plan.num or len(samples)), "image") as shown:
        ours = activations(samples, network, plan.device, plan.batch_size, plan.num, spatial, shown.advance)
    reference = _activations_of(images, published, network, plan)
    numbers = compare(ours, reference)
    official = digest.startswith(PUBLISHED)
    if not official:
        numbers = {_OTHER.get(name, name): value for name, value in numbers.items()}
    return {
        "samples": str(plan.samples),
        "reference": str(plan.reference),
        "num_samples": ours.num,
        "num_reference": reference.num or None,
        "inception_sha256": digest,
        "published_weights": official,
        "metrics": numbers,
    }


def _reference_images(path: Path, published: Activations | None) -> ImageSet | None:
    """The reference's images, unless its file holds statistics alone."""
    return ImageSet(path) if published is None or has_samples(path) else None


def _activations_of(
    images: ImageSet | None, published: Activations | None, network: Inception, plan: Plan
) -> Activations:
    """Published statistics go first: a number that compares uses the very ones that others used."""
    if images is None:
        assert published is not None
        return published
    with bar("reference", 0, len(images), "image") as shown:
        found = activations(images, network, plan.device, plan.batch_size, None, published is None, shown.advance)
    if published is not None:
        found.fid, found.sfid = published.fid, published.sfid
    return found


def compare(samples: Activations, reference: Activations) -> dict[str, float]:
    """Every number that the two allow, called by its published name."""
    numbers = {"fid": frechet_distance(samples.fid, reference.fid)}
    if samples.sfid and reference.sfid:
        numbers["sfid"] = frechet_distance(samples.sfid, reference.sfid)
    if samples.probabilities is not None:
        numbers["inception_score"] = inception_score(samples.probabilities)
    ours, theirs = samples.pool, reference.pool
    if ours is not None and theirs is not None and min(len(ours), len(theirs)) > _NEIGHBOURS:
        found = precision_recall(theirs, ours, _NEIGHBOURS)
        numbers |= {"precision": found.precision, "recall": found.recall}
    return numbers


def table(found: dict[str, Any]) -> Table:
    """The numbers, and a note of what they are of."""
    rows = [[_LABELS[name], value] for name, value in found["metrics"].items()]
    counts = f"{found['num_samples']} samples" + (
        f", {found['num_reference']} of the reference" if found["num_reference"] else ", statistics of the reference"
    )
    note = f"{counts}; Inception {found['inception_sha256'][:8]}"
    return Table(str(found["samples"]), ["metric", "value"], rows, note)


def measure_and_write(plan: Plan, out: Path | None) -> Table:
    """``measure_images``; its record as JSON where ``out`` is given."""
    check_writable(out, "--out")
    found = measure_images(plan)
    if out is not None:
        write_json(out, found)
    return table(found)


def make_statistics(images: Path, inception: Path, out: Path, device: str, batch_size: int) -> Path:
    """Statistics of a set of images, to be given as a reference later; ``.npz`` that EDM's fid.py reads as well."""
    check_device(device, f"--device {device}")
    if out.suffix != ".npz":
        raise UserError(f"{out}: expected a name that ends in .npz")
    check_writable(out, "OUT")
    source = ImageSet(images)
    network, _ = load_inception(inception)
    with bar("images", 0, len(source), "image") as shown:
        return write_statistics(out, activations(source, network, device, batch_size, None, True, shown.advance))
