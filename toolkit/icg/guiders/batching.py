"""Several network calls as one: arguments stacked along the batch, predictions split again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import UserError

# Positions, not samples, along the first axis: every call shares them.
SHARED = {"txt_ids", "img_ids", "image_rotary_emb", "rope_interpolation_scale"}


def stack_arguments(calls: Sequence[Mapping[str, Any]], batch_size: int) -> dict[str, Any]:
    """One call's keyword arguments that do the work of all ``calls`` (equal keys), each of ``batch_size`` samples.

    Raises UserError for a tensor of another batch size than 1 or ``batch_size``.
    """
    return {name: _stack(name, [call[name] for call in calls], batch_size) for name in calls[0]}


def _stack(name: str, values: list[Any], batch_size: int) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _stack(key, [one[key] for one in values], batch_size) for key in first}
    if isinstance(first, (tuple, list)):
        return type(first)(_stack(name, list(ones), batch_size) for ones in zip(*values, strict=True))
    if not isinstance(first, Tensor) or first.dim() == 0 or name in SHARED:
        return first
    num_rows = first.shape[0]
    if num_rows == 1 and batch_size > 1:
        return torch.cat([one.expand(batch_size, *one.shape[1:]) for one in values])
    if num_rows != batch_size:
        raise UserError(f"batched: {name} has {num_rows} rows for {batch_size} samples; take batched=False")
    return torch.cat(values)


def can_batch(guider: Any) -> bool:
    """Whether all calls of a guider may be one: ours, and those of diffusers that leave the network alone."""
    from diffusers.guiders.guider_utils import BaseGuidance

    return hasattr(guider, "prepare_models_batched") or type(guider).prepare_models is BaseGuidance.prepare_models
