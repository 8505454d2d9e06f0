"""How a clip becomes one sequence of tokens (iVideoGPT, Wu et al. 2024, section 3.1): all index arithmetic is here.

T0 context frames of N tokens each, then F future frames of n tokens each; a slot token stands before every frame except
the very first (T0 = 2 shown):

    z_1 (N) S1 z_2 (N) S2 d_1 (n) S2 d_2 (n) ...

Ids: context codes 0 .. A-1, dynamics codes A .. A+D-1, S1 = A+D ("start of context frame"), S2 = A+D+1 ("start of
dynamics frame"). A *code* is a row of its codebook, a *token* an id of this vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100  # label of a position that carries no loss


@dataclass(frozen=True)
class TokenLayout:
    """The token arithmetic of one tokenizer.

    context_length: T0 frames. tokens_per_context: N of a context frame. tokens_per_frame: n of a future frame.
    num_context_codes, num_dynamics_codes: sizes A and D of the two codebooks.
    """

    context_length: int
    tokens_per_context: int
    tokens_per_frame: int
    num_context_codes: int
    num_dynamics_codes: int

    @property
    def vocab_size(self) -> int:
        """A + D + 2."""
        return self.num_context_codes + self.num_dynamics_codes + 2

    @property
    def context_slot(self) -> int:
        """The id of S1."""
        return self.num_context_codes + self.num_dynamics_codes

    @property
    def frame_slot(self) -> int:
        """The id of S2, the last of the vocabulary."""
        return self.context_slot + 1

    @property
    def prompt_length(self) -> int:
        """(N+1) T0: everything up to and including the first S2."""
        return (self.tokens_per_context + 1) * self.context_length

    def length(self, num_future: int) -> int:
        """L = (N+1) T0 + (n+1) F - 1."""
        return self.prompt_length + (self.tokens_per_frame + 1) * num_future - 1

    def num_future(self, length: int) -> int:
        """F of a sequence. Raises ValueError where no whole number of frames has this length."""
        num_future, rest = divmod(length + 1 - self.prompt_length, self.tokens_per_frame + 1)
        if rest or num_future < 0:
            raise ValueError(
                f"{length} tokens: not {self.context_length} context frames of {self.tokens_per_context} tokens "
                f"and whole future frames of {self.tokens_per_frame} (with their slots)"
            )
        return num_future

    def max_future(self, num_positions: int) -> int:
        """The most future frames that fit ``num_positions``."""
        return max(0, (num_positions + 1 - self.prompt_length) // (self.tokens_per_frame + 1))

    def num_targets(self, num_future: int) -> int:
        """(n+1) F - 1 supervised positions: all tokens after the first S2."""
        return (self.tokens_per_frame + 1) * num_future - 1

    def slot_index(self, frame: int) -> int:
        """Index of the S2 that opens future frame ``frame`` (from 0); its tokens are the n after it."""
        return self.prompt_length - 1 + (self.tokens_per_frame + 1) * frame

    def slot_indices(self, num_future: int) -> list[int]:
        """``slot_index`` of all future frames."""
        return [self.slot_index(frame) for frame in range(num_future)]

    def prompt(self, context_codes: Tensor) -> Tensor:
        """Codes (B, T0, N) -> tokens (B, (N+1) T0) that end with the first S2."""
        slots = torch.full_like(context_codes[..., :1], self.context_slot)
        tokens = torch.cat([slots, context_codes], dim=2).flatten(1)[:, 1:]
        return torch.cat([tokens, torch.full_like(tokens[:, :1], self.frame_slot)], dim=1)

    def join(self, context_codes: Tensor, dynamics_codes: Tensor) -> Tensor:
        """Codes (B, T0, N) and (B, F, n) -> tokens (B, L)."""
        slots = torch.full_like(dynamics_codes[..., :1], self.frame_slot)
        frames = torch.cat([slots, dynamics_codes + self.num_context_codes], dim=2).flatten(1)
        return torch.cat([self.prompt(context_codes)[:, :-1], frames], dim=1)

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) -> context codes (B, T0, N) and dynamics codes (B, F, n); slot positions are skipped unread.

        A token that is no dynamics code gives a code outside 0 .. D-1. Raises ValueError on a length that fits no clip
        or a context token that is no context code.
        """
        num_future = self.num_future(tokens.shape[1])
        padded = torch.cat([tokens[:, :1], tokens], dim=1)  # a stand-in for the slot that the first frame lacks
        context, future = padded[:, : self.prompt_length], padded[:, self.prompt_length :]
        context_codes = context.unflatten(1, (self.context_length, -1))[..., 1:]
        if ((context_codes < 0) | (context_codes >= self.num_context_codes)).any():
            raise ValueError(f"tokens: a context frame holds ids outside 0 .. {self.num_context_codes - 1}")
        dynamics = future.reshape(len(tokens), num_future, self.tokens_per_frame + 1)[..., 1:]
        return context_codes, dynamics - self.num_context_codes

    def labels(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) -> labels (B, L): IGNORED up to and including the first S2, then the tokens themselves."""
        labels = tokens.clone()
        labels[:, : self.prompt_length] = IGNORED
        return labels
