"""Encoder, averaged denoiser, prior and baseline as one artefact that refuses parts of different trainings.

``model/<part>/`` are ordinary ``save_pretrained`` folders; ``model/parts.json`` holds the checksum of each part's
weights, so that a part copied in from another run, or left from an earlier state of this one, is noticed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from toolkit import zoo
from toolkit.errors import UserError
from toolkit.plain_files import read_object
from toolkit.runs.files import write_json
from toolkit.zoo.catalogue import CLASSES
from toolkit.zoo.disco.encoders import LatentEncoder
from toolkit.zoo.edm.denoiser import Denoiser
from toolkit.zoo.sizes import sizes_in

CLASSES.update(KMeansEncoder="toolkit.disco.baselines", LabelEncoder="toolkit.disco.baselines")
PARTS = ("denoiser", "encoder", "prior", "baseline")


@dataclass
class Parts:
    """A trained DisCo-Diff: D averaged over training, E as it was at the last step, A, and the no-latent baseline.

    null: a network without latents, of this or another training, that takes the place of D's null branch.
    """

    denoiser: Denoiser
    encoder: LatentEncoder | None = None
    prior: Any = None
    baseline: Denoiser | None = None
    null: Denoiser | None = None

    def spread_labels(self, samples: int | range) -> torch.Tensor | None:
        """Every class in turn, int64 (n,), for so many ``samples`` or for their numbers; None without classes."""
        num_classes = self.denoiser.num_classes
        if not num_classes:
            return None
        numbers = range(samples) if isinstance(samples, int) else samples
        return torch.as_tensor(numbers, device=self.denoiser.device) % num_classes

    def to(self, device: object) -> Parts:
        """Move every part."""
        for name in (*PARTS, "null"):
            part = getattr(self, name)
            if part is not None:
                part.to(device)
        return self


def save_part(folder: Path, name: str, part: Any) -> None:
    """Write one part beside the others (whole or not at all) and note its checksum."""
    assert name in PARTS
    temporary = folder / f".{name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    part.save_pretrained(temporary)
    shutil.rmtree(folder / name, ignore_errors=True)
    os.replace(temporary, folder / name)
    write_json(folder / "parts.json", _noted(folder) | {name: _checksum(folder / name)})


def load_parts(run_folder: str | Path, names: tuple[str, ...] = PARTS) -> Parts:
    """The artefact of a run folder, or of a shipped model by its name.

    Raises UserError when there is none, a part is damaged or parts do not belong together.
    """
    folder = zoo.local(run_folder) / "model"
    noted = _noted(folder)
    if "denoiser" not in noted:
        raise UserError(f"{run_folder}: no trained DisCo-Diff model there (model/parts.json names no denoiser)")
    for name in noted:
        if not (folder / name).is_dir():
            raise UserError(f"{folder / name}: missing, but model/parts.json names it")
        if _checksum(folder / name) != noted[name]:
            raise _refusal(folder / name)
    parts = Parts(**{name: zoo.load(folder / name) for name in names if name in noted})
    _check_sizes(folder, parts)
    return parts


def null_network(source: str, baseline: Denoiser | None, shape: tuple[int, ...], num_classes: int) -> Denoiser:
    """The network of ``sampling.null_model``: the ``baseline``, or what ``zoo.load`` takes.

    Raises UserError where it is not there, has latents, or is not for samples of ``shape`` and ``num_classes``.
    """
    if source == "baseline" and baseline is None:
        raise UserError("sampling.null_model=baseline: this model has no baseline; give another network's folder")
    null: Any = baseline if source == "baseline" else zoo.load(source)
    is_one = isinstance(null, Denoiser) and not null.num_latents
    if not is_one or (tuple(null.shape), null.num_classes) != (tuple(shape), num_classes):
        raise UserError(
            f"sampling.null_model={source}: must be a denoiser without latents for samples {tuple(shape)} and "
            f"{num_classes} classes, as the baseline of a run is (RUN/model/baseline)"
        )
    return null


def _check_sizes(folder: Path, parts: Parts) -> None:
    expected = parts.denoiser.num_latents, parts.denoiser.codebook_size
    if parts.prior is not None:
        config = parts.prior.config
        if (config["num_latents"], config["codebook_size"]) != expected:
            raise UserError(f"{folder}/prior: models other latents than the denoiser's {expected}")


def _noted(folder: Path) -> dict[str, str]:
    path = folder / "parts.json"
    try:
        return read_object(path) if path.exists() else {}
    except ValueError:
        raise UserError(f"{path}: damaged; the run must be repeated in another folder") from None


def _refusal(folder: Path) -> UserError:
    """Why the part in ``folder`` is not what was stored. Raises UserError where its files are not whole."""
    weights = sorted(folder.glob("*.safetensors"))
    sizes_in(weights)
    if not weights:
        return UserError(f"{folder}: no *.safetensors file in it")
    return UserError(
        f"{folder}: not the weights this model was stored with: damaged, or of another training, and "
        "encoder, denoiser and prior of different trainings do not fit together"
    )


def _checksum(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
