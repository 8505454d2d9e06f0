"""The training objective: mean cross-entropy of next tokens in nats, with the output head's gradient made at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_LOGITS = 2**24  # held at a time


class LanguageModelLoss(nn.Module):
    """Wraps a transformers ``...ForCausalLM`` so that DDP and FSDP see one forward call that ends in a number.

    Logits are never kept: head and cross-entropy are computed in pieces, in float32.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean loss, a float32 scalar, of predicting ``targets`` (B,T) from ``ids`` (B,T), both int64."""
        hidden = self.network.model(input_ids=ids, use_cache=False).last_hidden_state
        return head_loss(hidden.flatten(0, 1), self.network.lm_head.weight, targets.flatten())


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of ``hidden`` (N,C) under the head ``weight`` (V,C); N targets, int64."""
    if not torch.is_grad_enabled():
        pieces = max(1, hidden.shape[0] * weight.shape[0] // MOST_LOGITS)
        parts = zip(hidden.chunk(pieces), targets.chunk(pieces), strict=True)
        losses = [F.cross_entropy((h @ weight.t()).float(), t, reduction="sum") for h, t in parts]
        return torch.stack(losses).sum() / len(targets)
    return F.cross_entropy((hidden @ weight.t()).float(), targets)
