"""G_learn (eq. 41-42, appendix A.6): every target weight is a learned linear map of the source's.

In depth each type of tensor has one matrix D (target layers x source layers) that mixes layers; it starts as the
stacked identity, so that the untrained map is G_stack bit for bit. In width matrices B, shared by all layers, act on
both sides of each weight; they start as the identity on top of N(0, 1/D) rows. The source stays frozen and only the
maps are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from toolkit.errors import JobError
from toolkit.runs.schedule import learning_rate_factor
from toolkit.runs.seeds import generator
from toolkit.stacking.operators.architecture import Architecture, Spaces
from toolkit.stacking.operators.patterns import Layer
from toolkit.stacking.operators.tensors import Info, Tensors, precise

MAPPED_SPACES = ("residual", "query", "key", "value", "mlp")


class GrowthMap(nn.Module):
    """The matrices D and B of one growth. ``names``: the source's tensors."""

    def __init__(
        self,
        architecture: Architecture,
        plan: Sequence[Layer],
        old: Spaces,
        new: Spaces,
        names: Sequence[str],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.architecture, self.old, self.new = architecture, old, new
        self.losses: list[float] = []  # of its training, nats per token; empty before it is trained
        located = [architecture.locate(name) for name in names]
        source_layers = len({layer for layer, _ in located if layer is not None})
        self.depth = nn.ParameterDict()
        if len(plan) != source_layers:
            identity = torch.eye(source_layers)[[layer.source for layer in plan]]
            for rest in dict.fromkeys(rest for layer, rest in located if layer is not None):
                self.depth[rest.replace(".", "/")] = nn.Parameter(identity.clone())
        self.width = nn.ParameterDict()
        if old != new:
            for space in MAPPED_SPACES:
                self.width[space] = nn.Parameter(_identity_on_noise(old.size(space), new.size(space), space, seed))

    def weight(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """A target tensor from the source's (``read`` gets them by name); differentiable where ``read``'s are real."""
        tensor, spec = self._mixed(name, read), self.architecture.spec(name)
        assert spec is not None
        for axis, space in enumerate(spec.axes):
            if space and self.width:
                matrix = self.matrix(space).to(tensor.dtype)
                tensor = torch.tensordot(tensor, matrix, dims=([axis], [1])).movedim(-1, axis)
        return tensor

    def _mixed(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """sum_j D[l, j] W_j (eq. 41). While D trains every j counts, afterwards those that are not zero."""
        layer, rest = self.architecture.locate(name)
        if layer is None or not self.depth:
            return precise(read(name))
        row = self.depth[rest.replace(".", "/")][layer]
        used = range(len(row)) if row.requires_grad and torch.is_grad_enabled() else row.nonzero().flatten().tolist()
        parts = (row[j] * precise(read(self.architecture.rename(name, j))) for j in used)
        return sum(parts, start=torch.zeros(()))

    def matrix(self, space: str) -> Tensor:
        """B of a space. The attention output's input is made of values, one copy for each query head of a group."""
        if space == "qkv":
            return torch.block_diag(*(self.matrix(part) for part in ("query", "key", "value")))
        if space != "attended":
            return self.width[space]
        group, size = self.old.heads // self.old.kv_heads, self.old.head_size
        values = self.width["value"].unflatten(0, (-1, size)).unflatten(2, (-1, size))
        heads = torch.einsum("kalb,rs->kralsb", values, torch.eye(group, device=values.device))
        return heads.reshape(self.new.size(space), self.old.size(space))


class Mapped(Tensors):
    """The target's tensors under a GrowthMap, plain weights without a trace of it."""

    def __init__(self, source: Tensors, growth_map: GrowthMap, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.source, self.map = source, growth_map
        locate, rename = growth_map.architecture.locate, growth_map.architecture.rename
        origin = {name: name if locate(name)[0] is None else rename(name, 0) for name in shapes}
        self.infos = {name: Info(shape, source.infos[origin[name]].dtype) for name, shape in shapes.items()}

    @torch.no_grad()
    def read(self, name: str) -> Tensor:
        device = next(self.map.parameters()).device
        tensor = self.map.weight(name, lambda origin: self.source.read(origin).to(device))
        return tensor.to("cpu", self.infos[name].dtype)


def train_map(
    growth_map: GrowthMap,
    config: Any,
    source: Tensors,
    batches: Iterator[Tensor],
    *,
    num_steps: int = 100,
    warmup_steps: int = 50,
    max_learning_rate: float = 7e-5,
    min_learning_rate: float = 7e-6,
    weight_decay: float = 0.1,
    clip_norm: float = 1.0,
) -> None:
    """Train the map on the language-model loss of the target it makes; ``growth_map.losses`` are those of its steps.

    config: the target's. batches: token ids int64 (B, T) on the device of the map. Steps and rates are the authors'
    (issue 2 of their repository: 100 steps, linear warm-up over 50, then cosine to a tenth).

    Raises JobError on a loss that is not finite.
    """
    device = next(growth_map.parameters()).device
    network: Any = growth_map.architecture.skeleton(config)
    network.model.rotary_emb = type(network.model.rotary_emb)(config).to(device)  # stored in no checkpoint
    frozen = {name: source.read(name).to(device) for name in source.infos}
    names = list(growth_map.architecture.shapes(config))
    optimizer = torch.optim.AdamW(growth_map.parameters(), betas=(0.9, 0.95), weight_decay=weight_decay)
    losses, lowest = [], min_learning_rate / max_learning_rate
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = max_learning_rate * learning_rate_factor(
                step, num_steps, "cosine", warmup_steps, lowest=lowest, after_warmup=True
            )
        weights = {name: growth_map.weight(name, frozen.__getitem__) for name in names}
        ids = next(batches)
        loss = functional_call(network, weights, (), {"input_ids": ids, "labels": ids, "use_cache": False}).loss
        if not loss.isfinite():
            raise JobError(f"training the growth map: loss {loss.item()} at step {step}")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(growth_map.parameters(), clip_norm)
        optimizer.step()
        losses.append(loss.item())
    growth_map.losses = losses


def _identity_on_noise(old: int, new: int, space: str, seed: int) -> Tensor:
    noise = torch.randn(new - old, old, generator=generator(seed, "growth map", space)) * new**-0.5
    return torch.cat([torch.eye(old), noise])
