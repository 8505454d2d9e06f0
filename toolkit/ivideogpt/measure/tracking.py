"""Where a coloured thing is in frames: the ground truth of action response, for truth and imagination alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import rankdata
from torch import Tensor

LEAST_MASS = 0.25  # of a tracked thing's usual mass; below it a frame shows none


@dataclass(frozen=True)
class Color:
    """A colour in [0, 1]^3, and how far a pixel may be from it."""

    rgb: tuple[float, float, float]
    radius: float = 0.4


TRACKED: dict[str, dict[str, Color]] = {  # by environment: what moves at once, and what it pushes
    "push_sprite": {"agent": Color((0.95, 0.15, 0.15)), "block": Color((0.15, 0.35, 1.0))},
    "pusht": {"agent": Color((0.25, 0.41, 0.88), 0.3)},
    "kuka": {"agent": Color((0.86, 0.34, 0.03), 0.35)},
}


def locate(frames: Tensor, color: Color) -> tuple[Tensor, Tensor]:
    """Centroid (x, y) in 0..1, (..., 2), and mass in pixels, (...), of a colour in frames (..., 3, H, W) in [0, 1]."""
    target = torch.tensor(color.rgb, device=frames.device).view(3, 1, 1)
    weight = (1 - (frames - target).norm(dim=-3) / color.radius).clamp_min(0)
    mass = weight.sum((-1, -2))
    height, width = frames.shape[-2:]
    xs = (torch.arange(width, device=frames.device) + 0.5) / width
    ys = (torch.arange(height, device=frames.device) + 0.5) / height
    x = (weight * xs).sum((-1, -2)) / mass.clamp_min(1e-6)
    y = (weight * ys[:, None]).sum((-1, -2)) / mass.clamp_min(1e-6)
    return torch.stack([x, y], -1), mass


def displacement(frames: Tensor, start: Tensor, color: Color) -> Tensor:
    """How far the thing has moved from where it is in ``start`` (..., 3, H, W), (..., K, 2); frames (..., K, 3, H, W).

    Where a frame shows none of it, it counts as not moved.
    """
    places, mass = locate(frames, color)
    before, usual = locate(start, color)
    seen = (mass > LEAST_MASS * usual[..., None]).unsqueeze(-1)
    return torch.where(seen, places - before.unsqueeze(-2), torch.zeros_like(places))


def pearson(x: Tensor, y: Tensor) -> float:
    """Correlation of two sequences; 0 where one is constant."""
    x, y = x.flatten().double() - x.double().mean(), y.flatten().double() - y.double().mean()
    scale = float(x.norm() * y.norm())
    return float((x * y).sum()) / scale if scale > 1e-12 else 0.0


def spearman(x: Tensor, y: Tensor) -> float:
    """Correlation of ranks; equal values share theirs."""
    return pearson(*(torch.from_numpy(rankdata(one.flatten().cpu().numpy())) for one in (x, y)))
