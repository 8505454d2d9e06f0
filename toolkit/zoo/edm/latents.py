"""How latents enter a network: one table per slot, a learned null per slot, and an optional Transformer over the slots.

Shapes: B batch, m slots (latents per sample), k codebook size, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.zoo.edm.transformer import Transformer


class SlotLinear(nn.Module):
    """One linear map per slot: (B, m, inputs) -> (B, m, outputs); weight (m, inputs, outputs), bias (m, outputs)."""

    def __init__(self, num_slots: int, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_slots, inputs, outputs) * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(num_slots, outputs)) if bias else None

    def forward(self, x_BmI: Tensor) -> Tensor:
        y_BmO = torch.bmm(x_BmI.transpose(0, 1), self.weight).transpose(0, 1)
        return y_BmO if self.bias is None else y_BmO + self.bias

    def one_slot(self, slot: int, x_BI: Tensor) -> Tensor:
        """The map of one slot: (B, inputs) -> (B, outputs)."""
        y_BO = x_BI @ self.weight[slot]
        return y_BO if self.bias is None else y_BO + self.bias[slot]


class LatentEmbedding(nn.Module):
    """Latents of m slots -> tokens (B, m, W) (DisCo-Diff, Xu et al. 2024, section 3.2 and appendix D.1).

    ``kind="discrete"``: each slot has its own k x W table, so that the order of the slots can be told apart by
    attention. ``kind="continuous"``: each slot has a linear map from ``codebook_size`` numbers. Each slot also has a
    learned null token. ``num_layers`` > 0 sends the tokens through a pre-norm Transformer encoder (the paper: 6 layers,
    width 192); 0 returns them as they are.
    """

    def __init__(
        self,
        num_latents: int,
        codebook_size: int,
        width: int,
        num_layers: int = 0,
        num_heads: int = 4,
        kind: str = "discrete",
    ) -> None:
        super().__init__()
        if kind not in ("discrete", "continuous"):
            raise ValueError(f"latent_kind={kind}: choose one of discrete, continuous")
        if num_latents < 1 or codebook_size < 1:
            raise ValueError(f"num_latents={num_latents}, codebook_size={codebook_size}: both must be at least 1")
        self.num_latents, self.codebook_size, self.kind = num_latents, codebook_size, kind
        self.maps = SlotLinear(num_latents, codebook_size, width, bias=kind == "continuous")
        if kind == "discrete":
            nn.init.normal_(self.maps.weight)  # a one-hot picks one row, so rows of unit variance keep tokens at it
        self.null = nn.Parameter(torch.randn(num_latents, width))
        self.mixer = Transformer(width, num_layers, num_heads) if num_layers else None

    def forward(self, latents: Tensor | None, batch_size: int, drop: Tensor | None = None) -> Tensor:
        """Tokens (B, m, W).

        latents: None (every slot null); int64 (B, m), codes in [0,k) or -1 for the null of that slot; float (B, m, k),
        one-hot or relaxed, differentiable; or, for continuous latents, float (B, m, codebook_size).
        drop: bool (B,); the samples where it is True get the null of every slot, and no gradient reaches their latents.
        Raises ValueError on any other shape or type.
        """
        if latents is None:
            tokens_BmW = self.null.expand(batch_size, -1, -1)
        else:
            self._check(latents, batch_size)
            tokens_BmW = self.maps(latents) if latents.is_floating_point() else self._look_up(latents)
            if drop is not None:
                tokens_BmW = torch.where(drop[:, None, None], self.null, tokens_BmW)
        return tokens_BmW if self.mixer is None else self.mixer(tokens_BmW)

    def _look_up(self, codes_Bm: Tensor) -> Tensor:
        # indexing slot by slot (not in one flattened table) keeps the bounds check: a code >= k is an IndexError
        slots = torch.arange(self.num_latents, device=codes_Bm.device)
        tokens_BmW = self.maps.weight[slots, codes_Bm]
        return torch.where(codes_Bm[..., None] < 0, self.null, tokens_BmW)

    def _check(self, latents: Tensor, batch_size: int) -> None:
        codes, vectors = (batch_size, self.num_latents), (batch_size, self.num_latents, self.codebook_size)
        if latents.is_floating_point():
            if latents.shape != vectors:
                raise ValueError(f"latents: shape {tuple(latents.shape)}, expected {vectors}")
        elif self.kind == "continuous" or latents.dtype != torch.int64:
            raise ValueError(f"latents: dtype {latents.dtype} does not fit {self.kind} latents")
        elif latents.shape != codes:
            raise ValueError(f"latents: shape {tuple(latents.shape)}, expected {codes}")
