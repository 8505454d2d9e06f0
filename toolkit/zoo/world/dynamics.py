"""The tokens of the next frame: iVideoGPT's transformer with a cache that lasts (section 3.2).

The release passes context and all earlier frames again for every new one, and then token after token. Here the slot of
a frame goes through together with the token left over from the frame before and with tokens that were guessed, which
look like those of the last frame. Shapes: B rows, n tokens a frame, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolkit.zoo.world.draft import Draft, can_draft, is_large
from toolkit.zoo.world.linear import linear
from toolkit.zoo.world.llama import KeyValueCache, llama_pass
from toolkit.zoo.world.sampling import Draw, Sampling, draw
from toolkit.zoo.world.tokens import TokenLayout
from toolkit.zoo.world.transformer import VideoTransformer, symexp

FEW_PLACES = 4  # at a time, of all rows, where weights are large (measured)
MOST_PLACES = 256  # where they are not, and of a check: from there on a place more costs as much as the first


class Past(NamedTuple):
    """cache: of all tokens so far but ``pending`` int64 (B,), the last one, which has yet to go through (or None).

    guess int64 (B, n): what the next frame may look like, the last one's tokens.
    """

    cache: KeyValueCache
    pending: Tensor | None
    guess: Tensor

    def select(self, rows: Tensor) -> Past:
        """The rows, in memory of their own."""
        pending = None if self.pending is None else self.pending[rows]
        return Past(self.cache.select(rows), pending, self.guess[rows])


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
        guesses: whether several tokens of a frame may be guessed, and then passed together, where that pays. They are
            those of token-by-token decoding, but for rounding: on a CPU, in float32 and float64.
    """

    def __init__(self, transformer: VideoTransformer, layout: TokenLayout, guesses: bool = True):
        self.transformer, self.layout, self.guesses = transformer, layout, guesses
        self._draft: tuple[Any, Draft] | None = None

    @property
    def max_future(self) -> int:
        """Future frames that the positions hold."""
        return self.layout.max_future(self.transformer.config.max_position_embeddings)

    def look(
        self, context_codes: Tensor, frames: int = 8, tokens: Tensor | None = None, actions: Tensor | None = None
    ) -> Past:
        """Pass the context's codes (B, T0, N), with room for ``frames`` future frames at first.

        ``tokens`` (B, k, n): of frames that are known already, and the ``actions`` (B, k, A) that led to them.
        """
        known = context_codes[:, :0, : self.layout.tokens_per_frame] if tokens is None else tokens
        capacity = self.layout.length(max(1, min(frames, self.max_future)))
        tokens = self.layout.join(context_codes, known - self.layout.num_context_codes)
        cache = KeyValueCache.empty(self.transformer.llm, len(tokens), capacity).extended(tokens.shape[1])
        embeds = self._embed(tokens)
        if self.transformer.spatial is not None:
            embeds = embeds + self.transformer.spatial(self.layout.context_length, known.shape[1])
        if actions is not None:
            slots = torch.tensor(self.layout.slot_indices(actions.shape[1]), device=tokens.device)
            embeds = embeds.index_add(1, slots, self.transformer.action_linear(actions).to(embeds.dtype))
        llama_pass(self.transformer.llm, embeds, cache, first=tokens.shape[1] - 1)
        guess = tokens.new_full((len(tokens), self.layout.tokens_per_frame), self.layout.num_context_codes)
        return Past(cache, None, guess)

    def join(self, pasts: Sequence[Past], rows: Sequence[Tensor]) -> Past:
        """Rows of several pasts, of any ages, as one; those of past i become its ``rows[i]``."""
        if len({one.pending is None for one in pasts}) > 1:
            pasts = [self._settled(one) for one in pasts]
        cache = KeyValueCache.joined([one.cache for one in pasts], rows, self._spare)
        order = torch.cat(list(rows)).argsort()
        guess = torch.cat([one.guess for one in pasts])[order]
        if pasts[0].pending is None:
            return Past(cache, None, guess)
        return Past(cache, torch.cat([one.pending for one in pasts])[order], guess)  # type: ignore[misc]

    def _settled(self, past: Past) -> Past:
        """The same with no token left over."""
        if past.pending is None:
            return past
        cache = past.cache.extended(1, spare=self._spare)
        llama_pass(
            self.transformer.llm, self._embed_inner(past.pending[:, None], self.layout.tokens_per_frame - 1), cache
        )
        return Past(cache, None, past.guess)

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
        drawn, last = self._decode(opening, cache, how, past.guess)
        if not self.transformer.has_reward:
            return Past(cache, drawn.tokens[:, -1], drawn.tokens), drawn, None
        return Past(cache, None, drawn.tokens), drawn, self.rewards(last)

    def _decode(self, opening: Tensor, cache: KeyValueCache, how: _How, guess: Tensor) -> tuple[Draw, Tensor]:
        """The draw of a frame that may look like ``guess`` (B, n), and the state (B, W) at the end of the cache.

        Each pass is over several tokens that were guessed (fixed-point iteration, Song et al. 2021). What is drawn
        after right tokens is right, so every pass settles one place more than it finds guessed rightly.
        """
        llm, tokens, parts = self.transformer.llm, guess.clone(), []
        num, done = cache.length - how.start + 1, 0  # places; with rewards one that is not drawn
        window, draft = self._window(len(guess)), self._drafting(how.sampling, len(guess))
        while done < num:
            if draft is not None:
                self._guess(draft, tokens, opening, cache, how, done)
            hidden, drawn, settled = self._pass(
                llm, tokens, opening, cache, how, done, window if draft is None else num
            )
            parts.append(Draw(*(part[:, :settled] for part in drawn)))
            done += settled
        return Draw(*(torch.cat(part, dim=1) for part in zip(*parts, strict=True))), hidden[:, -1]

    def _guess(self, draft: Draft, tokens: Tensor, opening: Tensor, cache: KeyValueCache, how: _How, done: int) -> None:
        """Put the draft's draws into ``tokens`` from place ``done`` on; the cache's rows there are then approximate."""
        num = tokens.shape[1]
        while done < num:
            window = min(self._window(len(tokens)), num - done)
            done += self._pass(draft, tokens, opening, cache, how, done, window)[2]

    def _pass(
        self, llm: Any, tokens: Tensor, opening: Tensor, cache: KeyValueCache, how: _How, done: int, window: int
    ) -> tuple[Tensor, Draw, int]:
        """Draw up to ``window`` places from ``done`` on, each after the ``tokens`` before it, which are then replaced.

        Returns the states and draws there, and how many of them follow tokens that were right.
        """
        num = tokens.shape[1]
        end = min(done + window, cache.length - how.start + 1)
        before = max(0, done - 1)  # the token before the first place has yet to go through
        embeds, first = self._embed_inner(tokens[:, before : end - 1], before), 0
        if not done:
            embeds, first = torch.cat([opening, embeds], dim=1), opening.shape[1] - 1
        hidden = llama_pass(llm, embeds, cache.until(how.start + end - 1), first=first)
        drawn = self._draw(llm, hidden[:, : num - done], how, done)
        places = slice(done, done + drawn.tokens.shape[1])
        guessed = (drawn.tokens == tokens[:, places]).all(dim=0).long().cumprod(dim=0).sum()
        tokens[:, places] = drawn.tokens
        return hidden, drawn, min(int(guessed) + 1, end - done)

    def _window(self, num_rows: int) -> int:
        """Places at a time: few where weights are large, for one more then costs more; one where it wasn't measured."""
        llm, weight = self.transformer.llm, self.transformer.llm.lm_head.weight
        if not self.guesses or weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.float64):
            return 1
        return max(1, (FEW_PLACES if is_large(llm) else MOST_PLACES) // num_rows)

    def _drafting(self, sampling: Sampling, num_rows: int) -> Draft | None:
        llm, num_places = self.transformer.llm, num_rows * self.layout.tokens_per_frame
        pays = self.guesses and is_large(llm) and can_draft(llm) and num_places <= MOST_PLACES
        return self._current_draft(sampling) if pays else None

    def _current_draft(self, sampling: Sampling) -> Draft:
        """Made from the weights as they are now; kept while they stay so."""
        llm = self.transformer.llm
        stamp = (sampling.whole_vocabulary, *((one.data_ptr(), one._version) for one in llm.parameters()))
        if self._draft is None or self._draft[0] != stamp:
            self._draft = (stamp, Draft(llm, self._head(sampling)))
        return self._draft[1]

    def _draw(self, llm: Any, hidden: Tensor, how: _How, place: int) -> Draw:
        logits = llm.lm_head(hidden) if isinstance(llm, Draft) else self.logits(hidden, how.sampling)
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
