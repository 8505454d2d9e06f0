"""Learning rate over steps."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, num_steps: int, schedule: str, warmup_steps: int) -> float:
    """Linear warm-up, then constant or a cosine to zero."""
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule == "constant":
        return warm
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, num_steps))))
