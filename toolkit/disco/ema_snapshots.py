"""Snapshots of the power-function averages of a training, and networks put together from them (post-hoc EMA).

``RUN/ema/denoiser/000001000-0.05.safetensors``: the parameters after 1,000 steps, averaged with sigma_rel 0.05; the
number of images seen until then is in the file's metadata.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from toolkit.errors import UserError
from toolkit.runs.distributed import rank
from toolkit.runs.files import write_atomic
from toolkit.runs.states.sharding import whole
from toolkit.zoo.edm.post_hoc_ema import PowerEMA, Profile, gamma_of, post_hoc_weights

_NAME = re.compile(r"(\d{9})-(0\.\d+)\.safetensors")


class EMASnapshots:
    """The averages that a training tracks, with ``folder`` for their snapshots; a part of its checkpoint."""

    def __init__(self, folder: Path, model: Any, sigma_rels: list[float]) -> None:
        self.folder = folder
        self.averages = {str(sigma_rel): PowerEMA(model, sigma_rel) for sigma_rel in sigma_rels}

    def update(self, num_images_per_step: int) -> None:
        """Update every average after a step on so many images (over all processes)."""
        for average in self.averages.values():
            average.update(num_images_per_step)

    def store(self, step: int) -> None:
        """Write one file per average, on rank 0. Files of later steps, left by an abandoned training, are removed."""
        if not self.averages:
            return
        if rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in _files(self.folder):
                if int(path.name[:9]) > step:
                    path.unlink()
        for name, average in self.averages.items():
            tensors = whole(dict(average.model.named_parameters()))
            if rank() == 0:
                metadata = {
                    "num_images": str(average.num_images)
                }  # one key: safetensors stores several in random order
                kept = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
                write_atomic(self.folder / f"{step:09d}-{name}.safetensors", save(kept, metadata))

    def state_dict(self) -> dict[str, Any]:
        return {name: average.state_dict() for name, average in self.averages.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, average in self.averages.items():
            average.load_state_dict(state[name])


@torch.no_grad()
def load_post_hoc(network: Any, folder: Path, sigma_rel: float, key: str = "sampling.ema_sigma_rel") -> None:
    """Give ``network`` the average of length ``sigma_rel`` at the end of training, from the snapshots in ``folder``.

    Summed in float64, one file at a time. Raises UserError where there are none, or they are of another network.
    """
    profiles = {path: _profile(path) for path in _files(folder)}
    if not profiles:
        raise UserError(f"{key}={sigma_rel}: no snapshots in {folder}; train with optim.ema_sigma_rels=[0.05,0.1]")
    last = max(profile.images for profile in profiles.values())
    weights = post_hoc_weights(list(profiles.values()), Profile(last, gamma_of(sigma_rel)))
    sums = {name: torch.zeros(one.shape, dtype=torch.float64) for name, one in network.named_parameters()}
    for path, weight in zip(profiles, weights, strict=True):
        with safe_open(path, "pt") as file:
            if set(file.keys()) != set(sums):
                raise UserError(f"{path}: of another network than the run's model")
            for name, total in sums.items():
                total += weight * file.get_tensor(name)
    for name, parameter in network.named_parameters():
        parameter.copy_(sums[name])


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if _NAME.fullmatch(path.name))


def _profile(path: Path) -> Profile:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        return Profile(float(metadata["num_images"]), gamma_of(float(path.stem.partition("-")[2])))
    except (SafetensorError, OSError, KeyError, ValueError):
        raise UserError(f"{path}: not a whole snapshot; remove it to go without") from None
