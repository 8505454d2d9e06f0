"""Imagined frames that show the true context where nothing has changed (ours; neither paper nor release has it).

A tokenizer of few codes loses pale hues and small still things. What it loses of the context frame is known, so it can
be given back: as in video prediction that composes frames with the first one (Ebert et al. 2017, skip connections).
"""

from __future__ import annotations

from torch import Tensor

NEAR = 0.1  # difference of two colours in [0, 1] from which on they count as different


def composite(frames: Tensor, decoded: Tensor, true: Tensor) -> Tensor:
    """Frames (B, F, 3, H, W) as they are decoded -> with what the context frame lost, ``true`` less ``decoded``.

    A pixel that looks as the decoded context does at its place gets all that was lost there; one that does not, but has
    the colour of the context's background (its median), as where a thing stood before, what the background lost. Both
    fade with the difference, to nothing at ``NEAR`` and at twice ``NEAR``. ``decoded``, ``true``: (B, 3, H, W).
    """
    decoded, lost = decoded[:, None], (true - decoded)[:, None]
    same = _likeness(frames, decoded, NEAR)
    plain = (1 - same) * _likeness(frames, _median(decoded), 2 * NEAR)
    return frames + same * lost + plain * _median(lost)


def _likeness(frames: Tensor, others: Tensor, most: float) -> Tensor:
    """1 for equal colours, 0 from a difference of ``most`` on, (B, F, 1, H, W)."""
    return (1 - (frames - others).abs().amax(2, keepdim=True) / most).clamp(min=0)


def _median(frames: Tensor) -> Tensor:
    """(B, F, 3, H, W) -> (B, F, 3, 1, 1)."""
    return frames.flatten(-2).contiguous().median(-1).values[..., None, None]
