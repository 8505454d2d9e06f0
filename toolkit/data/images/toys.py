"""Point sets in the plane with known densities, for claims that have a closed form."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from toolkit.data.config import Data
from toolkit.data.sets import Dataset, GaussianMixture, MemorySplit
from toolkit.errors import UserError
from toolkit.runs.machine import check_fits
from toolkit.runs.seeds import generator

NUM_PER_COMPONENT = 1000


def ring() -> GaussianMixture:
    """Eight Gaussians on a ring of radius 3, standard deviation 0.2 (DisCo-Diff, section 3.2)."""
    angles = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    return GaussianMixture(3 * torch.stack([angles.cos(), angles.sin()], dim=1), 0.2)


def grid25() -> GaussianMixture:
    """Twenty-five Gaussians on {-4, -2, 0, 2, 4}^2, standard deviation 0.05 (the usual grid of the GAN literature)."""
    ticks = torch.arange(-4, 5, 2, dtype=torch.float64)
    return GaussianMixture(torch.cartesian_prod(ticks, ticks), 0.05)


def checkerboard(num_per_square: int, random: torch.Generator) -> tuple[Tensor, np.ndarray]:
    """Uniform points on the 8 dark squares (side 2) of a 4 x 4 board over [-4, 4]^2, and the square of each."""
    corners = torch.tensor([(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0], dtype=torch.float64)
    squares = torch.arange(len(corners)).repeat_interleave(num_per_square)
    inside = torch.rand(len(squares), 2, generator=random, dtype=torch.float64)
    return 2 * (corners[squares] + inside) - 4, squares.numpy()


def load_ring(config: Data, seed: int) -> Dataset:
    """1000 training points per component, exactly balanced, as in the paper."""
    return _mixture_set(config, seed, ring())


def load_grid25(config: Data, seed: int) -> Dataset:
    """1000 training points per component, exactly balanced."""
    return _mixture_set(config, seed, grid25())


def load_checkerboard(config: Data, seed: int) -> Dataset:
    """1000 training points per square, exactly balanced."""
    return _point_set(config, seed, 8, checkerboard, None)


def _mixture_set(config: Data, seed: int, mixture: GaussianMixture) -> Dataset:
    return _point_set(config, seed, len(mixture.centres), mixture.sample, mixture)


def _point_set(config: Data, seed: int, num_components: int, draw, mixture: GaussianMixture | None) -> Dataset:
    """Training, validation and test points are separate draws, so no fraction is taken from the training set."""
    for key in ("size_px", "channels"):
        if getattr(config, key) is not None:
            raise UserError(f"data.{key}: data.name={config.name} is a set of points, not images")
    num_each = NUM_PER_COMPONENT
    if config.num_train is not None:
        num_each, rest = divmod(config.num_train, num_components)
        if rest or not num_each:
            raise UserError(f"data.num_train={config.num_train}: must be a multiple of {num_components} components")
        check_fits("data.num_train", config.num_train, 2 * 8)  # drawn in float64
    sizes = {"train": num_each, "valid": max(1, round(config.valid_fraction * num_each)), "test": NUM_PER_COMPONENT}
    splits = {}
    for name, size in sizes.items():
        points, components = draw(size, generator(seed, "data", config.name, name))
        splits[name] = MemorySplit(points.float(), components, config.class_labels)
    return Dataset(
        name=config.name,
        **splits,
        num_classes=num_components if config.class_labels else 0,
        class_names=tuple(map(str, range(num_components))),
        licence="generated",
        source="drawn from its density",
        mixture=mixture,
    )
