"""Matrix products of linear layers by whichever library is faster here.

PyTorch sends float32 products on a CPU to MKL, which runs at less than half speed on AMD processors; oneDNN, which
PyTorch carries for its convolutions, does not. Small products stay with MKL: a call to oneDNN costs some 10 us more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST_PRODUCTS = 500_000  # multiply-adds from which oneDNN is worth its call (measured)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` with gradients: x (..., in), weight (out, in), bias (out,) -> (..., out)."""
    if not _better(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


class HalfLinear:
    """A matrix (out, in) in float16, packed, for float32 rows (..., in); products and sums are float32. On x86 only."""

    def __init__(self, weight: Tensor):
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.detach(), None)

    def __call__(self, rows: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(rows, self.packed)


def _better(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # first: Dynamo breaks its graph at what it would have to call below
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() * weight.shape[0] >= _LEAST_PRODUCTS
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            _product(grad, weight.t()) if for_x else None,
            _product(rows.t(), x.flatten(0, -2).t()) if for_weight else None,
            rows.sum(dim=0) if for_bias else None,
        )
