"""Post-hoc EMA (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3).

Training keeps averages with two power-function profiles and stores snapshots of them. Afterwards the average of any
length is a weighted sum of the snapshots: the weights are those whose profiles add up to its own, in least squares.

Time t counts training images. The profile of an average at time t gives the weights of time tau <= t (eq. 1)

    p(tau; t, gamma) = (gamma + 1) / t * (tau / t)^gamma

and its length is told by the profile's relative standard deviation sigma_rel (eq. 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import nn

from toolkit.zoo.edm.ema import Average

LONGEST_SIGMA_REL = 0.28  # gamma is near 0 there: the plain mean of all weights


class Profile(NamedTuple):
    """Of an average: the time at which it was taken, in training images, and its exponent."""

    images: float
    gamma: float


def gamma_of(sigma_rel: float) -> float:
    """The exponent of a profile of relative standard deviation 0 < sigma_rel <= 0.28.

    Eq. 3, sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^(-1/2), squared is a cubic equation, of which this
    is the largest root. Raises ValueError.
    """
    if not 0 < sigma_rel <= LONGEST_SIGMA_REL:
        raise ValueError(f"sigma_rel={sigma_rel}: must be greater than 0 and at most {LONGEST_SIGMA_REL}")
    s = sigma_rel**-2
    return float(np.roots([1.0, 7.0, 16.0 - s, 12.0 - s]).real.max())


class PowerEMA(Average):
    """The average with a power-function profile of relative width ``sigma_rel`` (eq. 2)."""

    def __init__(self, model: nn.Module, sigma_rel: float) -> None:
        super().__init__(model)
        self.sigma_rel, self.gamma = sigma_rel, gamma_of(sigma_rel)

    def decay(self, num_images_per_step: int) -> float:
        """beta(t) = (1 - n / t)^(gamma + 1), t after the step on n images."""
        return (self.num_images / (self.num_images + num_images_per_step)) ** (self.gamma + 1)


def inner_product(one: Profile, other: Profile) -> float:
    """The integral of the product of two profiles over all times at which both have weight."""
    (t_a, gamma_a), (t_b, gamma_b) = sorted((one, other))  # t_a <= t_b
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (t_a / t_b) ** gamma_b / t_b


def post_hoc_weights(snapshots: Sequence[Profile], target: Profile) -> np.ndarray:
    """How much of each snapshot adds up to the average ``target``, float64 (n,): A x = b of all inner products.

    Raises ValueError where two snapshots are the same, or ``target`` is later than all of them.
    """
    if len(set(snapshots)) < len(snapshots):
        raise ValueError("two snapshots of the same time and profile")
    if target.images > max(one.images for one in snapshots):
        raise ValueError(f"{target.images:.0f} images: later than every snapshot")
    a = np.array([[inner_product(one, other) for other in snapshots] for one in snapshots])
    b = np.array([inner_product(one, target) for one in snapshots])
    scale = np.sqrt(np.diag(a))  # early profiles are tall; of unit norm they are told apart more exactly
    return np.linalg.lstsq(a / np.outer(scale, scale), b / scale, rcond=1e-15)[0] / scale
