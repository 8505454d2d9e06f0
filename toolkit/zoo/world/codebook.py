"""Vector quantisation (van den Oord et al. 2017) as iVideoGPT's tokenizer uses it, and what keeps a codebook alive.

The release trains its codebooks by gradient alone. On small data that collapses, so a codebook can also start from
data, follow the latents by exponential moving averages, and restart its dead codes. None of it changes what is stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Quantized(NamedTuple):
    """vectors: as the input, straight-through. loss: scalar. codes: int64, the input's leading dimensions."""

    vectors: Tensor
    loss: Tensor
    codes: Tensor


class VectorQuantizer(nn.Module):
    """The nearest of ``num_codes`` vectors of ``dim`` numbers, by Euclidean distance."""

    def __init__(self, num_codes: int, dim: int, commitment: float = 1.0):
        super().__init__()
        self.commitment = commitment
        self.embedding = nn.Embedding(num_codes, dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / num_codes, 1.0 / num_codes)

    def nearest(self, latents: Tensor) -> Tensor:
        """Latents (..., D) -> codes int64 (...)."""
        flat = latents.reshape(-1, latents.shape[-1])
        with torch.no_grad():  # distances as the release takes them: rounding decides between codes as near
            return torch.cdist(flat, self.embedding.weight).argmin(dim=1).view(latents.shape[:-1])

    def forward(self, latents: Tensor) -> Quantized:
        """Latents (..., D). The loss is commitment |sg(e) - z|^2 + |e - sg(z)|^2, averaged over all numbers."""
        codes = self.nearest(latents)
        vectors = self.embedding(codes)
        commitment = (vectors.detach() - latents).square().mean()
        loss = self.commitment * commitment + (vectors - latents.detach()).square().mean()
        return Quantized(latents + (vectors - latents).detach(), loss, codes)

    @torch.no_grad()
    def initialise(
        self, latents: Tensor, generator: torch.Generator | None = None, spread: float = 0.01, apart: bool = False
    ) -> None:
        """Start every code at a latent (M, D) drawn at random, moved by ``spread`` deviations where M is small.

        apart: draw as k-means++ does (Arthur and Vassilvitskii 2007), each in proportion to its squared distance from
        those already drawn: what is frequent, such as an empty background, then takes few codes.
        """
        num = len(self.embedding.weight)
        drawn = draw_apart(latents, num, generator) if apart else _draw(latents, num, generator, spread)
        self.embedding.weight.copy_(drawn)


class CodebookEMA:
    """Codes as moving averages of the latents they quantise (van den Oord et al., appendix A.1), dead ones restarted.

    The codebook then takes no gradient. Keep this beside the optimiser: it has a ``state_dict``.

    Args:
        quantizer: its table is changed in place.
        decay: of the averages.
        restart_below: a code whose average use per update falls below this is moved to a latent of the batch.
        apart: to one that is badly coded (in proportion to its squared error), not to any.
    """

    def __init__(
        self, quantizer: VectorQuantizer, decay: float = 0.99, restart_below: float = 0.0, apart: bool = False
    ):
        self.quantizer, self.decay, self.restart_below, self.apart = quantizer, decay, restart_below, apart
        table = quantizer.embedding.weight.requires_grad_(False)
        self.counts = torch.ones(len(table), device=table.device)
        self.sums = table.detach().clone()
        self.num_restarted = 0

    @torch.no_grad()
    def update(self, latents: Tensor, codes: Tensor, generator: torch.Generator | None = None) -> None:
        """One step with the latents (M, D) of a batch and their codes (M,)."""
        table = self.quantizer.embedding.weight
        counts = torch.bincount(codes.flatten(), minlength=len(table)).to(self.counts)
        sums = torch.zeros_like(self.sums).index_add_(0, codes.flatten(), latents.detach().to(self.sums))
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        dead = self.counts < self.restart_below
        num_dead = int(dead.sum())
        if num_dead:
            found = latents.detach().to(self.sums)
            if self.apart:
                fresh = draw_apart(found, num_dead, generator, table.detach()[~dead])
            else:
                fresh = _draw(found, num_dead, generator, 0.01)
            self.counts[dead], self.sums[dead] = 1.0, fresh
            self.num_restarted += num_dead
        table.copy_(self.sums / self.counts.clamp(min=1e-5)[:, None])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs besides the quantizer's own weights."""
        return {"counts": self.counts, "sums": self.sums, "num_restarted": self.num_restarted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.counts.copy_(state["counts"])
        self.sums.copy_(state["sums"])
        self.num_restarted = int(state["num_restarted"])


def usage(codes: Tensor, num_codes: int) -> float:
    """Share of the codebook that occurs in ``codes``: take it over a whole evaluation set, not a running counter."""
    return codes.unique().numel() / num_codes


def perplexity(codes: Tensor, num_codes: int) -> float:
    """exp of the entropy of the codes' frequencies: 1 (one code) to num_codes (all alike)."""
    shares = torch.bincount(codes.flatten(), minlength=num_codes).double() / max(1, codes.numel())
    return float(torch.special.entr(shares).sum().exp())


def _draw(latents: Tensor, num: int, generator: torch.Generator | None, spread: float) -> Tensor:
    """``num`` rows of latents (M, D): without repetition as long as M lasts, then again, jittered to be distinct."""
    order = torch.randperm(len(latents), generator=generator).to(latents.device)
    rows = latents[order.repeat(-(-num // len(latents)))[:num]]
    if num > len(latents):
        noise = torch.randn(rows.shape, generator=generator).to(rows)
        rows = rows + spread * latents.std(dim=0) * noise
    return rows


def draw_apart(latents: Tensor, num: int, generator: torch.Generator | None, start: Tensor | None = None) -> Tensor:
    """``num`` rows of latents (M, D), each drawn in proportion to its squared distance from the rows drawn before it
    and from ``start`` (K, D)."""
    if start is not None and len(start):
        nearest = torch.cdist(latents, start).min(dim=1).values.square()
    else:
        nearest = torch.ones(len(latents), dtype=latents.dtype, device=latents.device)
    rows = []
    for _ in range(num):
        weights = nearest.double().cpu() + 1e-12  # every latent may be drawn, also where all are coded already
        chosen = latents[int(torch.multinomial(weights, 1, generator=generator))]
        rows.append(chosen)
        distance = (latents - chosen).square().sum(dim=1)
        nearest = distance if len(rows) == 1 and (start is None or not len(start)) else torch.minimum(nearest, distance)
    return torch.stack(rows)
