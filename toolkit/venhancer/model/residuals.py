"""``diffuses="residuals"``: what the filled-in input lacks, in units of how much its surroundings let one expect.

The detail that a resize loses grows with the contrast around it and with the scale; the error of a blend grows with
the difference of the two frames that it blends. Divided by both, x_0 varies about as much in a wall as in a tree, at
twice as at eight times the size. A small network needs that: group normalisation hides from it how strong its input
is, and without units it adds the same noise to everything. Key frames are given to it in the same way.

Tensors are latents [N, C, h + 2, w + 2]: one more on each side than what comes back, for the neighbourhoods of 3x3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

MARGIN = 1
FLOOR = 0.01  # of contrasts: about one grey level, where latents are pixels in [-1, 1]
DETAIL = 0.16  # what is lost at scale s, over s times the contrast; measured on film and on real cameras: 0.12 to 0.2


def expected(parts: Sequence[tuple[Tensor, float]], scale: Tensor | float) -> Tensor:
    """The unit (N, 1, h, w) of a frame that is blended of key frames.

    Args:
        parts: latents of key frames, and their weights in the blend. scale: s, a number or [N].
    """
    lost = DETAIL * torch.as_tensor(scale, device=parts[0][0].device).reshape(-1, 1, 1, 1)
    weights = torch.tensor([weight for _, weight in parts]).to(parts[0][0]).view(-1, 1, 1, 1, 1)
    keys = torch.stack([one for one, _ in parts])
    contrast = sum(weight * _statistics(one)[1] for one, weight in parts)
    # of a blend: the variance of "this key frame's value, or that one's"
    doubt = (weights * keys.square()).sum(dim=0) - (weights * keys).sum(dim=0).square()
    between = _mean(doubt.mean(dim=1, keepdim=True)).clamp(min=0)
    return (lost.square() * contrast + between).sqrt() + lost * FLOOR


def standardised(keys: Tensor) -> Tensor:
    """Key frames (N, C, h, w): their difference to the local mean over the local contrast."""
    mean, variance = _statistics(keys)
    inner = keys[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
    return (inner - mean) / (variance.sqrt() + FLOOR)


def with_margin(latents: Tensor) -> Tensor:
    """A whole frame's latents (N, C, h, w), its border repeated around it."""
    return F.pad(latents, (MARGIN,) * 4, mode="replicate")


def _statistics(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Means (N, C, h, w) over 3x3 latents, and the variance (N, 1, h, w) around them, the same for all channels."""
    mean = _mean(keys)
    return mean, (_mean(keys.square()) - mean.square()).mean(dim=1, keepdim=True).clamp(min=0)


def _mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2 * MARGIN + 1, stride=1)
