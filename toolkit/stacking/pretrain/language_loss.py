"""The training objective: mean cross-entropy of next tokens, in nats, without keeping many logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.stacking.pretrain import cpu_blocks

MOST_LOGITS = 2**22  # held at a time, 16 MiB in float32


class LanguageModelLoss(nn.Module):
    """A transformers ``...ForCausalLM`` as one forward call that ends in a number, which is what DDP and FSDP wrap."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean loss, a float32 scalar, of predicting ``targets`` (B, T) from ``ids`` (B, T), both int64."""
        if cpu_blocks.usable(self.network, ids):
            hidden = cpu_blocks.hidden_states(self.network, ids)
        else:
            hidden = self.network.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        return head_loss(hidden, self.network.lm_head.weight, targets.flatten())


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of ``hidden`` (N, C) under the output head ``weight`` (V, C); targets int64 (N,).

    Softmax in float32, matrix products in autocast's type. Where there are many logits the gradients are made in the
    forward pass, piece by piece, and no (N, V) array is ever held.
    """
    if len(targets) * len(weight) <= MOST_LOGITS:
        return F.cross_entropy((hidden @ weight.t()).float(), targets)
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden, weight = (x.to(torch.get_autocast_dtype(kind)) for x in (hidden, weight))
    return _HeadLoss.apply(hidden, weight, targets, torch.is_grad_enabled())  # type: ignore[no-any-return]


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, with_grad: bool) -> Tensor:
        count, total = len(targets), hidden.new_zeros((), dtype=torch.float32)
        backward = with_grad and any(ctx.needs_input_grad[:2])  # which says yes under no_grad, too
        grad_hidden = torch.empty_like(hidden) if backward else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if backward else None
        size = max(1, MOST_LOGITS // len(weight))
        for start in range(0, count, size):
            h, t = hidden[start : start + size], targets[start : start + size, None]
            log_softmax = torch.log_softmax((h @ weight.t()).float(), -1)
            total = total - log_softmax.gather(1, t).sum()
            if grad_hidden is not None and grad_weight is not None:
                errors = log_softmax.exp_().scatter_add_(1, t, log_softmax.new_full(t.shape, -1.0)).to(hidden.dtype)
                torch.mm(errors, weight, out=grad_hidden[start : start + size])
                grad_weight += errors.t() @ h
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.count = count
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0] / ctx.count
        return grad_hidden * scale, (grad_weight * scale).to(grad_hidden.dtype), None, None
