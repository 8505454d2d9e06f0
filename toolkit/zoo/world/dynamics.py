"""The tokens of the next frame: iVideoGPT's transformer with a cache that lasts (section 3.2).

The release passes context and all earlier frames again for every new one. Here a frame costs n single-token passes: the
slot of a frame goes through together with the token left over from the frame before. Shapes: B rows, n tokens a frame,
W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolkit.zoo.world.draft import Draft, draft_pays
from toolkit.zoo.world.linear import linear
from toolkit.zoo.world.llama import KeyValueCache, llama_pass
from toolkit.zoo.world.sampling import Draw, Sampling, draw
from toolkit.zoo.world.tokens import TokenLayout
from toolkit.zoo.world.transformer import VideoTransformer, symexp


class Past(NamedTuple):
    """cache: of all tokens so far but ``pending`` int64 (B,), the last one, which has yet to go through (or None)."""

    cache: KeyValueCache
    pending: Tensor | None

    def select(self, rows: Tensor) -> Past:
        """The rows, in memory of their own."""
        return Past(self.cache.select(rows), None if self.pending is None else self.pending[rows])


class _How(NamedTuple):
    """How a frame's tokens are drawn: ``number`` of the frame, ``start``: positions up to its opening."""

    sampling: Sampling
    seeds: Tensor
    number: int | Tensor
    start: int


class Dynamics:
    """Frame by frame over tokens.

    Args:
        transformer, layout: with the layout of the tokenizer it was trained with.
        drafts: whether a float16 copy of the layers may guess ahead where that pays, see ``world_draft``.
    """

    def __init__(self, transformer: VideoTransformer, layout: TokenLayout, drafts: bool = True):
        self.transformer, self.layout, self.drafts = transformer, layout, drafts
        self._draft: tuple[Any, Draft] | None = None

    @property
    def max_future(self) -> int:
        """Future frames that the positions hold."""
        return self.layout.max_future(self.transformer.config.max_position_embeddings)

    def look(self, context_codes: Tensor, frames: int = 8) -> Past:
        """Pass the context's codes (B, T0, N), with room for ``frames`` future frames at first."""
        tokens = self.layout.prompt(context_codes)[:, :-1]
        capacity = self.layout.length(max(1, min(frames, self.max_future)))
        cache = KeyValueCache.empty(self.transformer.llm, len(tokens), capacity).extended(tokens.shape[1])
        embeds = self._embed(tokens)
        if self.transformer.spatial is not None:
            embeds = embeds + self.transformer.spatial(self.layout.context_length, 0)
        llama_pass(self.transformer.llm, embeds, cache, first=tokens.shape[1] - 1)
        return Past(cache, None)

    def join(self, pasts: Sequence[Past], rows: Sequence[Tensor]) -> Past:
        """Rows of several pasts, of any ages, as one; those of past i become its ``rows[i]``."""
        if len({one.pending is None for one in pasts}) > 1:
            pasts = [self._settled(one) for one in pasts]
        cache = KeyValueCache.joined([one.cache for one in pasts], rows, self._spare)
        if pasts[0].pending is None:
            return Past(cache, None)
        return Past(cache, torch.cat([one.pending for one in pasts])[torch.cat(list(rows)).argsort()])  # type: ignore[misc]

    def _settled(self, past: Past) -> Past:
        """The same with no token left over."""
        if past.pending is None:
            return past
        cache = past.cache.extended(1, spare=self._spare)
        llama_pass(
            self.transformer.llm, self._embed_inner(past.pending[:, None], self.layout.tokens_per_frame - 1), cache
        )
        return Past(cache, None)

    @property
    def _spare(self) -> int:
        """Positions of eight frames."""
        return 8 * (self.layout.tokens_per_frame + 1)

    def frame(
        self, past: Past, action: Tensor | None, sampling: Sampling, seeds: Tensor, number: int | Tensor
    ) -> tuple[Past, Draw, Tensor | None]:
        """Draw future frame ``number`` (one, or (B,)) under ``action`` (B, A).

        Returns the past after it, its draw (B, n), the reward (B,) of the move into it or None.
        A reward is read where the frame's last token goes through, so that token is then not left over.
        """
        opening = self._opening(past.pending, action, len(seeds))
        num = opening.shape[1] + self.layout.tokens_per_frame - (not self.transformer.has_reward)
        cache = past.cache.extended(num, spare=self._spare)
        how = _How(sampling, seeds, number, past.cache.length + opening.shape[1])
        alone = self.drafts and cache.starts is None and draft_pays(self.transformer.llm, len(seeds))
        decode = self._guess_and_check if alone else self._in_turn
        drawn, last = decode(opening, cache, how)
        if not self.transformer.has_reward:
            return Past(cache, drawn.tokens[:, -1]), drawn, None
        return Past(cache, None), drawn, self.rewards(last)

    def _in_turn(self, opening: Tensor, cache: KeyValueCache, how: _How) -> tuple[Draw, Tensor]:
        """Token by token; the draw, and the state (B, W) at the end of the cache."""
        draws: list[Draw] = []
        embeds = opening
        for place in range(self.layout.tokens_per_frame):
            hidden = llama_pass(self.transformer.llm, embeds, cache.until(how.start + place), first=embeds.shape[1] - 1)
            draws.append(self._draw(hidden, how, place))
            embeds = self._embed_inner(draws[-1].tokens, place)
        if self.transformer.has_reward:
            hidden = llama_pass(self.transformer.llm, embeds, cache)
        return Draw(*(torch.cat(parts, dim=1) for parts in zip(*draws, strict=True))), hidden[:, -1]

    def _guess_and_check(self, opening: Tensor, cache: KeyValueCache, how: _How) -> tuple[Draw, Tensor]:
        """The same by passes over all tokens of a guess, until the draws are the tokens they were drawn after.

        Every pass settles at least one more token: the first never depends on the guess, the second is right once the
        first is, and so on.
        """
        layout, llm, first = self.layout, self.transformer.llm, opening.shape[1] - 1
        num_inner = cache.length - how.start  # tokens that are passed in this frame
        guess = self._current_draft(how.sampling).guess(
            opening,
            cache.until(how.start),
            layout.tokens_per_frame,
            self._embed_inner,
            lambda *one: self._pick(how, *one).tokens,
        )
        while True:
            embeds = torch.cat([opening, self._embed_inner(guess[:, :num_inner])], dim=1)
            hidden = llama_pass(llm, embeds, cache, first=first)
            drawn = self._draw(hidden[:, : layout.tokens_per_frame], how, 0)
            if torch.equal(drawn.tokens[:, :num_inner], guess[:, :num_inner]):
                return drawn, hidden[:, -1]
            guess = drawn.tokens

    def _current_draft(self, sampling: Sampling) -> Draft:
        """Made from the weights as they are now; kept while they stay so."""
        llm = self.transformer.llm
        stamp = (sampling.whole_vocabulary, *((one.data_ptr(), one._version) for one in llm.parameters()))
        if self._draft is None or self._draft[0] != stamp:
            self._draft = (stamp, Draft(llm, self._head(sampling)))
        return self._draft[1]

    def _draw(self, hidden: Tensor, how: _How, place: int) -> Draw:
        return self._pick(how, self.logits(hidden, how.sampling), place)

    def _pick(self, how: _How, logits: Tensor, place: int) -> Draw:
        first_id = 0 if how.sampling.whole_vocabulary else self.layout.num_context_codes
        return draw(logits, first_id, how.sampling, how.seeds, how.number, place)

    def score(self, tokens: Tensor, actions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Teacher forcing of tokens (B, L), with actions (B, T, A) as in training.

        Returns log-probabilities (B, F, n) of the frames' tokens among what a frame can hold, and rewards (B, F).
        """
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
        return linear(hidden, self._head(sampling))

    def rewards(self, hidden: Tensor) -> Tensor:
        """States (..., W) at frame ends -> rewards (...) in their own units."""
        return symexp(self.transformer.reward_linear(hidden).squeeze(-1).float())

    def _head(self, sampling: Sampling) -> Tensor:
        weight = self.transformer.llm.lm_head.weight
        layout = self.layout
        return weight if sampling.whole_vocabulary else weight[layout.num_context_codes : layout.context_slot]

    def _opening(self, pending: Tensor | None, action: Tensor | None, num_rows: int) -> Tensor:
        """Embeddings of the token left over, if any, and of the slot with its action."""
        weight = self.transformer.llm.lm_head.weight
        slot = self._embed(torch.full((num_rows, 1), self.layout.frame_slot, device=weight.device))
        if self.transformer.spatial is not None:
            slot = slot + self.transformer.spatial.frame_rows()[0]
        if action is not None:
            slot = slot + self.transformer.action_linear(action)[:, None]
        if pending is None:
            return slot
        return torch.cat([self._embed_inner(pending[:, None], self.layout.tokens_per_frame - 1), slot], dim=1)

    def _embed_inner(self, tokens: Tensor, place: int = 0) -> Tensor:
        """Embeddings of J successive tokens (B, J) of a frame, from ``place`` on."""
        embeds = self._embed(tokens)
        if self.transformer.spatial is None:
            return embeds
        return embeds + self.transformer.spatial.frame_rows()[1 + place : 1 + place + tokens.shape[1]]

    def _embed(self, tokens: Tensor) -> Tensor:
        table: Any = self.transformer.llm.model.embed_tokens
        return table(tokens)
