"""CADS: the condition is noisy early in sampling and clean later (Sadat et al. 2023, "CADS", algorithm 1).

    gamma(t) = 1 for t <= tau1, 0 for t >= tau2, linear between
    y' = sqrt(gamma) y + s sqrt(1 - gamma) n,  then mixed with y' rescaled to the mean and deviation of y

Combined with ICG in Sadat et al. 2025, table 7 (tau1 0.5, tau2 0.9, s 0.15).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.icg.guiders.hooks import OutputChange
from toolkit.icg.guiders.streams import Draws

CLASS_NAMES = {"class_embedder", "class_embedding"}


@dataclass(frozen=True)
class Annealing:
    """Schedule and strength; ``scale`` 0 is off. ``mix`` 1 restores the mean and deviation of y entirely."""

    scale: float = 0.0
    tau1: float = 0.5
    tau2: float = 0.9
    mix: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.tau1 < self.tau2 <= 1:
            raise UserError(f"cads_tau1={self.tau1}, cads_tau2={self.tau2}: must be 0 <= tau1 < tau2 <= 1")
        if not 0 <= self.mix <= 1 or self.scale < 0:
            raise UserError(f"cads_mix={self.mix}, cads_scale={self.scale}: mix in [0, 1], scale at least 0")

    def gamma(self, t: float) -> float:
        """Share of the signal at t in [0, 1]."""
        return min(1.0, max(0.0, (self.tau2 - t) / (self.tau2 - self.tau1)))

    def anneal(self, condition: Tensor, noise: Tensor, t: float) -> Tensor:
        """Noisy condition like ``condition`` (B, ...), a float tensor; ``noise`` standard normal float32 like it."""
        gamma, clean = self.gamma(t), condition.float()
        noisy = gamma**0.5 * clean + self.scale * (1 - gamma) ** 0.5 * noise
        axes = tuple(range(1, clean.dim()))
        unit = (noisy - noisy.mean(axes, keepdim=True)) / noisy.std(axes, keepdim=True).clamp_min(1e-12)
        restored = unit * clean.std(axes, keepdim=True) + clean.mean(axes, keepdim=True)
        return (self.mix * restored + (1 - self.mix) * noisy).to(condition.dtype)

    def on_class_embedding(self, draws: Draws, t: float) -> OutputChange:
        """For integer labels: anneal what the network embeds them as, one noise per sample in every layer."""
        noise: Tensor | None = None

        def change(embedding_BE: Tensor, num_samples: int) -> Tensor:
            nonlocal noise
            if noise is None:
                noise = draws.normal(embedding_BE.shape, embedding_BE.device)
            return self.anneal(embedding_BE, noise, t)

        return OutputChange(find=find_class_embeddings, change=change)


def find_class_embeddings(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that embed class labels. Raises UserError when there is none."""
    found = [(name, one) for name, one in network.named_modules() if name.rpartition(".")[2] in CLASS_NAMES]
    if not found:
        raise UserError(f"cads_scale: no class embedding found in {type(network).__name__}")
    return found
