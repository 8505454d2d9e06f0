"""Muon (Jordan et al. 2024): momentum whose matrix is made orthogonal before it is taken as a step.

For kernels of hidden layers; what is no matrix, and first and last layers, are AdamW's. PyTorch's own (from 2.9 on)
takes no convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a quintic that brings singular values of 0 to 1 near 1, of Jordan et al.
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, for parameters of two or more dimensions (the first counts rows).

    Args:
        lr: size of a step; a square matrix changes by an orthogonal one times it. momentum: of the gradients' mean.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Change every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._change(parameter, group["lr"], group["momentum"])

    def _change(self, parameter: Tensor, lr: float, momentum: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        mean = state["momentum"].lerp_(parameter.grad, 1 - momentum)
        ahead = parameter.grad.lerp(mean, momentum).flatten(1)  # type: ignore[union-attr]
        longer = max(1.0, ahead.shape[0] / ahead.shape[1]) ** 0.5
        parameter.add_(orthogonal(ahead).view_as(parameter), alpha=-lr * longer)


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T of ``matrix`` = U S V^T, by Newton and Schulz: singular values near 1 (0.7 to 1.2), unless tiny."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def split(network: nn.Module, kernels: Iterable[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """(parameters of two or more dimensions inside ``kernels``, all others of ``network``)."""
    inside = {id(one) for module in kernels for one in module.parameters() if one.ndim > 1}
    parameters = list(network.parameters())
    return [one for one in parameters if id(one) in inside], [one for one in parameters if id(one) not in inside]
