"""Official networks' answers on weights that anyone can regenerate: read by the parity and import tests."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "files" / "golden"
IVIDEOGPT_WEIGHTS = {"tokenizer": "diffusion_pytorch_model.safetensors", "transformer": "model.safetensors"}


def golden_weights(folder: Path) -> dict[str, Tensor]:
    """The official state dict, each tensor drawn from its own name; buffers that the config determines are left out."""
    shapes = json.loads((folder / "state_dict_shapes.json").read_text())
    return {name: golden_tensor(name, shape) for name, shape in shapes.items() if not name.endswith("resample_filter")}


def golden_tensor(name: str, shape: list[int]) -> Tensor:
    """Normal numbers seeded by the name: unit gain for matrices, 0.1 around 0 (norm weights: 1) for vectors."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        return torch.from_numpy(values / np.float32(np.sqrt(np.prod(shape[1:]))))
    return torch.from_numpy(values * np.float32(0.1) + np.float32(name.endswith("weight")))


def write_source(case: str, folder: Path, **changes: Tensor | None) -> Path:
    """A folder as ``toolkit zoo import edm`` reads it; ``changes`` replace tensors (None removes one)."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text((GOLDEN / case / "config.json").read_text())
    weights: dict[str, Tensor | None] = {**golden_weights(GOLDEN / case), **changes}
    save_file({name: one for name, one in weights.items() if one is not None}, folder / "model.safetensors")
    return folder


def golden_expected(case: str) -> dict[str, Tensor]:
    """Inputs and outputs of the official network."""
    return load_file(GOLDEN / case / "expected.safetensors")


def write_ivideogpt(folder: Path, case: str = "ivideogpt", **changes: dict[str, Tensor | None]) -> Path:
    """A folder in the release's layout with golden weights; ``changes``: part -> tensors to replace (None removes)."""
    for part, name in IVIDEOGPT_WEIGHTS.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text((GOLDEN / case / part / "config.json").read_text())
        weights: dict[str, Tensor | None] = {**golden_weights(GOLDEN / case / part), **changes.get(part, {})}
        kept = {name: one for name, one in weights.items() if one is not None}
        save_file(kept, folder / part / name)
    return folder
