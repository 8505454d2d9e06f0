"""Drawing tokens with keyed noise: what a row draws depends on its seed, the frame and the token's place, nothing else.

So a row's future is the same alone or in any batch, step by step or at once, on any device, and two rows with one seed
get the same noise. The noise of a vocabulary entry is a hash of (seed, frame, place, entry); the entry with the largest
logit + Gumbel noise is drawn (the Gumbel-max trick), which a rounding error in the logits hardly ever changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """temperature divides the logits (0: the most likely token); top_k keeps the most likely ones (None: all).

    whole_vocabulary: also ids that are no dynamics codes may be drawn inside a frame, as the release lets them; they
    are moved to the nearest dynamics code when the frame is decoded.
    """

    temperature: float = 1.0
    top_k: int | None = 100
    whole_vocabulary: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"sampling.temperature={self.temperature}: must be at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"sampling.top_k={self.top_k}: must be at least 1")


SAMPLED = Sampling()  # as the paper samples, restricted to what a frame can hold
GREEDY = Sampling(temperature=0.0, top_k=None, whole_vocabulary=True)  # exactly the release's greedy decoding


def as_sampling(choice: Sampling | str | None) -> Sampling:
    """None: SAMPLED; "greedy": GREEDY. Raises UserError on any other word."""
    if isinstance(choice, Sampling):
        return choice
    if choice not in (None, "greedy"):
        raise UserError(f"sampling={choice}: choose None, 'greedy' or a Sampling")
    return GREEDY if choice == "greedy" else SAMPLED


class Draw(NamedTuple):
    """tokens int64, logprobs and entropies float32 in nats (of the untempered distribution), all (B, J)."""

    tokens: Tensor
    logprobs: Tensor
    entropies: Tensor


def draw(logits: Tensor, first_id: int, sampling: Sampling, seeds: Tensor, frame: int | Tensor, place: int) -> Draw:
    """One token for each of J successive places.

    Args:
        logits: (B, J, V) of the ids ``first_id`` .. ``first_id`` + V - 1.
        first_id: see ``logits``.
        sampling: how.
        seeds: int64 (B,).
        frame: number of the future frame, from 0; one, or int64 (B,).
        place: of the first token within its frame, from 0.
    """
    log_probs = F.log_softmax(logits.float() if logits.dtype != torch.float64 else logits, dim=-1)
    if sampling.temperature == 0:
        entries = log_probs.argmax(dim=-1)
    else:
        entries = _gumbel_max(log_probs / sampling.temperature, first_id, sampling.top_k, seeds, frame, place)
    chosen = log_probs.gather(-1, entries[..., None]).squeeze(-1)
    entropies = torch.special.entr(log_probs.exp()).sum(dim=-1)
    return Draw(entries + first_id, chosen.float(), entropies.float())


def _gumbel_max(
    logits: Tensor, first_id: int, top_k: int | None, seeds: Tensor, frame: int | Tensor, place: int
) -> Tensor:
    size = logits.shape[-1]
    best = logits.topk(min(top_k or size, size), dim=-1)
    places = torch.arange(place, place + logits.shape[1], device=logits.device)
    keys = hash64(hash64(hash64(seeds) + frame)[:, None] + places)  # (B, J)
    noise = gumbel(hash64(keys[..., None] + best.indices + first_id))
    return best.indices.gather(-1, (best.values + noise.to(logits.dtype)).argmax(dim=-1, keepdim=True)).squeeze(-1)


def gumbel(bits: Tensor) -> Tensor:
    """Hashed int64 -> standard Gumbel noise, float64."""
    uniform = ((bits >> 11) & ((1 << 53) - 1)).double().add(0.5) * 2.0**-53
    return -(-uniform.log()).log()


def hash64(x: Tensor) -> Tensor:
    """int64 -> well mixed int64 (the finaliser of splitmix64, Steele et al. 2014), elementwise, wrapping."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift (int64's own is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word
