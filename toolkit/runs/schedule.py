"""What the training loops of all rooms share: the learning rate over steps, and each process's share of a batch."""

from __future__ import annotations

import math

from toolkit.errors import UserError
from toolkit.runs.distributed import world_size
from toolkit.runs.machine import check_fits


def learning_rate_factor(
    step: int,
    num_steps: float,
    schedule: str = "constant",
    warmup_steps: float = 0,
    *,
    lowest: float = 0.0,
    after_warmup: bool = False,
) -> float:
    """What the learning rate is multiplied by at ``step``, counted from 0.

    It rises in equal steps to 1 at the end of ``warmup_steps`` and then stays, or follows a cosine down to ``lowest``
    at ``num_steps`` where ``schedule`` is "cosine". The cosine spans the whole training and the warm-up multiplies it;
    with ``after_warmup`` it begins where the warm-up ends, and stays at ``lowest`` beyond ``num_steps``.
    """
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule != "cosine":
        return warm
    if after_warmup:
        turn = math.pi * min(1.0, max(0, step - warmup_steps) / max(1.0, num_steps - warmup_steps))
    else:
        turn = math.pi * step / num_steps
    return warm * (lowest + (1 - lowest) * (1 + math.cos(turn)) / 2)


def share_of_batch(batch_size: int, key: str = "optim.batch_size", item_bytes: int = 0) -> int:
    """The items of a batch that this process works on. Raises UserError naming ``key`` where they are no whole number,
    or more than memory holds.

    ``batch_size`` counts the items of all processes together. item_bytes: of the numbers of one.
    """
    if batch_size % world_size():
        raise UserError(f"{key}={batch_size}: must be divisible by {world_size()} processes")
    if item_bytes:
        check_fits(key, batch_size, math.ceil(item_bytes / world_size()))
    return batch_size // world_size()
