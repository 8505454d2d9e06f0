"""The tokens of the next frame: iVideoGPT's transformer with a cache that lasts (section 3.2).

The release passes context and all earlier frames again for every new one. Here a frame costs n single-token passes: the
slot of a frame goes through together with the token left over from the frame before. Shapes: B rows, n tokens a frame,
W width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolkit.zoo.linear import linear
from toolkit.zoo.llama_pass import KeyValueCache, llama_pass
from toolkit.zoo.video_tokens import TokenLayout
from toolkit.zoo.video_transformer import VideoTransformer, symexp
from toolkit.zoo.world_sampling import Draw, Sampling, draw


class Past(NamedTuple):
    """cache: of all tokens so far but ``pending`` int64 (B,), the last one, which has yet to go through (or None)."""

    cache: KeyValueCache
    pending: Tensor | None

    def select(self, rows: Tensor) -> Past:
        """The rows, in memory of their own."""
        return Past(self.cache.select(rows), None if self.pending is None else self.pending[rows])


class Dynamics:
    """Frame by frame over tokens. ``transformer`` and the ``layout`` of the tokenizer it was trained with."""

    def __init__(self, transformer: VideoTransformer, layout: TokenLayout):
        self.transformer, self.layout = transformer, layout

    @property
    def max_future(self) -> int:
        """Future frames that the positions hold."""
        return self.layout.max_future(self.transformer.config.max_position_embeddings)

    def look(self, context_codes: Tensor, frames: int = 8) -> Past:
        """Pass the context's codes (B,T0,N), with room for ``frames`` future frames at first."""
        tokens = self.layout.prompt(context_codes)[:, :-1]
        capacity = self.layout.length(max(1, min(frames, self.max_future)))
        cache = KeyValueCache.empty(self.transformer.llm, len(tokens), capacity).extended(tokens.shape[1])
        llama_pass(self.transformer.llm, self._embed(tokens), cache, first=tokens.shape[1] - 1)
        return Past(cache, None)

    def frame(
        self, past: Past, action: Tensor | None, sampling: Sampling, seeds: Tensor, number: int
    ) -> tuple[Past, Draw, Tensor | None]:
        """Draw future frame ``number`` under ``action`` (B,A); its draw (B,n), and the reward (B,) of the move into it.

        A reward is read where the frame's last token goes through, so that token is then not left over.
        """
        draws: list[Draw] = []
        embeds = self._opening(past.pending, action, len(seeds))
        cache = past.cache
        for place in range(self.layout.tokens_per_frame):
            cache, hidden = self._advance(cache, embeds)
            draws.append(draw(self.logits(hidden, sampling), self._first_id(sampling), sampling, seeds, number, place))
            embeds = self._embed(draws[-1].tokens)
        drawn = Draw(*(torch.cat(parts, dim=1) for parts in zip(*draws, strict=True)))
        if not self.transformer.has_reward:
            return Past(cache, drawn.tokens[:, -1]), drawn, None
        cache, hidden = self._advance(cache, embeds)
        return Past(cache, None), drawn, self.rewards(hidden[:, 0])

    def score(self, tokens: Tensor, actions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Teacher forcing of tokens (B,L): log-probabilities (B,F,n) of the frames' tokens among what a frame can hold,
        and the rewards (B,F). actions (B,T,A) as in training."""
        embeds = self.transformer.embed(tokens, self.layout, actions)
        num_future = self.layout.num_future(tokens.shape[1])
        hidden = llama_pass(self.transformer.llm, embeds, first=self.layout.prompt_length - 1)
        hidden = hidden.unflatten(1, (num_future, -1))
        log_probs = self.logits(hidden[:, :, :-1], Sampling()).float().log_softmax(dim=-1)
        codes = self.layout.split(tokens)[1]
        rewards = self.rewards(hidden[:, :, -1]) if self.transformer.has_reward else None
        return log_probs.gather(-1, codes[..., None]).squeeze(-1), rewards

    def logits(self, hidden: Tensor, sampling: Sampling) -> Tensor:
        """Of all ids, or of the dynamics codes alone: what a frame can hold."""
        weight = self.transformer.llm.lm_head.weight
        if not sampling.whole_vocabulary:
            weight = weight[self.layout.num_context_codes : self.layout.context_slot]
        return linear(hidden, weight)

    def rewards(self, hidden: Tensor) -> Tensor:
        """States (..., W) at frame ends -> rewards (...) in their own units."""
        return symexp(self.transformer.reward_linear(hidden).squeeze(-1).float())

    def _first_id(self, sampling: Sampling) -> int:
        return 0 if sampling.whole_vocabulary else self.layout.num_context_codes

    def _opening(self, pending: Tensor | None, action: Tensor | None, num_rows: int) -> Tensor:
        """Embeddings of the token left over, if any, and of the slot with its action."""
        weight = self.transformer.llm.lm_head.weight
        slot = self._embed(torch.full((num_rows, 1), self.layout.frame_slot, device=weight.device))
        if action is not None:
            slot = slot + self.transformer.action_linear(action)[:, None]
        return slot if pending is None else torch.cat([self._embed(pending[:, None]), slot], dim=1)

    def _advance(self, cache: KeyValueCache, embeds: Tensor) -> tuple[KeyValueCache, Tensor]:
        """Pass embeddings (B,L,W); the state (B,1,W) at the last."""
        num = embeds.shape[1]
        cache = cache.extended(num, spare=8 * (self.layout.tokens_per_frame + 1))
        return cache, llama_pass(self.transformer.llm, embeds, cache, first=num - 1)

    def _embed(self, tokens: Tensor) -> Tensor:
        table: Any = self.transformer.llm.model.embed_tokens
        return table(tokens)
