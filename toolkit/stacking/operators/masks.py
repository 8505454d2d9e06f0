"""G_random's run-time masks (appendix A.5): new parts start silent and are let in during training.

Hooks on an ordinary transformers model: with the masks at 0 it computes exactly what its source did; at 1 the hooks
change nothing, so ``remove()`` leaves the plain model that is saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.stacking.operators.architecture import Spaces
from toolkit.stacking.operators.patterns import Layer

WIDTH_PHASES = ("mlp", "residual", "heads")  # the order in which the released code opens them, one after the other


class GrowthMasks:
    """Masks on the new layers or the new features of a grown ``...ForCausalLM``.

    Depth: each fresh layer gives c layer(x) + (1 - c) x with one c for all (eq. 34-36). Width: new MLP features,
    residual features and heads are multiplied by a c of their own; norms multiply by sqrt(sum of mask / features), and
    their epsilon is scaled alike, which makes c = 0 exact. ``set_step`` raises c linearly from 0 to 1 over
    ``grow_steps`` optimiser steps, in width over three such phases.
    """

    def __init__(self, network: Any, plan: Sequence[Layer], old: Spaces, new: Spaces, grow_steps: int = 5000) -> None:
        self.grow_steps = grow_steps
        self.old, self.new = old, new
        self.open = {"depth": 0.0, **dict.fromkeys(WIDTH_PHASES, 0.0)}
        self._hooks: list[Any] = []
        self._norms: list[tuple[Any, float]] = []
        for block, layer in zip(network.model.layers, plan, strict=True):
            if layer.fresh:
                self._hooks.append(block.register_forward_hook(self._mix))
            if old != new:
                self._mask_block(block)
        if old != new:
            self._hooks.append(network.model.embed_tokens.register_forward_hook(self._mask_output))
            self._mask_norm(network.model.norm)
        self.set_step(0)

    def set_step(self, step: int) -> None:
        """Open the masks as far as they are after ``step`` optimiser steps."""
        self.open["depth"] = self._share(step)
        for phase, name in enumerate(WIDTH_PHASES):
            self.open[name] = self._share(step - phase * self.grow_steps)
        for norm, epsilon in self._norms:
            norm.variance_epsilon = epsilon * self._filled()

    def remove(self) -> None:
        """Take the hooks away: the masks at 1."""
        for hook in self._hooks:
            hook.remove()
        for norm, epsilon in self._norms:
            norm.variance_epsilon = epsilon
        self._hooks, self._norms = [], []

    def _share(self, step: int) -> float:
        return min(1.0, max(0.0, step / self.grow_steps))

    def _filled(self) -> float:
        """Sum of the residual mask / number of features."""
        return (self.old.residual + self.open["residual"] * (self.new.residual - self.old.residual)) / self.new.residual

    def _mask_block(self, block: Any) -> None:
        for linear, space, phase in ((block.self_attn.o_proj, "query", "heads"), (block.mlp.down_proj, "mlp", "mlp")):
            self._hooks.append(linear.register_forward_pre_hook(self._input_mask(space, phase)))
            self._hooks.append(linear.register_forward_hook(self._mask_output))
        self._mask_norm(block.input_layernorm)
        self._mask_norm(block.post_attention_layernorm)

    def _mask_norm(self, norm: Any) -> None:
        self._norms.append((norm, norm.variance_epsilon))
        self._hooks.append(norm.register_forward_hook(lambda _, __, output: output * self._filled() ** 0.5))

    def _input_mask(self, space: str, phase: str) -> Any:
        def mask(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            return (self._masked(inputs[0], self.old.size(space), self.open[phase]),)

        return mask

    def _mask_output(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return self._masked(output, self.old.residual, self.open["residual"])

    def _mix(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        share = self.open["depth"]
        return share * output + (1 - share) * inputs[0]

    @staticmethod
    def _masked(x: Tensor, old_size: int, share: float) -> Tensor:
        mask = torch.full((x.shape[-1],), share, dtype=x.dtype, device=x.device)
        mask[:old_size] = 1
        return x * mask
