"""Log-likelihoods of text under a causal language model: perplexity and bits per byte, without any extra.

Windows and conditioning are those of lm-evaluation-harness, so that its numbers and these are the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.errors import UserError

MAX_CONTEXT = 2048  # tokens scored at once unless told otherwise: the paper's context
MAX_LOGITS = 2**28  # in one batch, of all its tokens: 1 GiB in float32


@dataclass(frozen=True)
class Pair:
    """Token ids: ``continuation`` is scored, ``context`` (at least one id) comes before it."""

    context: Sequence[int]
    continuation: Sequence[int]


@dataclass(frozen=True)
class TextLoss:
    """How well a text is predicted. Words are what whitespace separates, bytes those of UTF-8.

    loss: nats per token; perplexity, word_perplexity, byte_perplexity: its exponential per token, word and byte.
    """

    loss: float
    perplexity: float
    word_perplexity: float
    byte_perplexity: float
    bits_per_byte: float
    num_tokens: int
    num_words: int
    num_bytes: int


class Scorer:
    """A transformers ``...ForCausalLM`` (in eval mode, on its device) and its tokenizer.

    context: tokens seen at once, at most the model's maximum. on_batch(done, total) is called after every batch.

    Raises UserError for a tokenizer without a BOS and an EOS token: the first token would be predicted from nothing;
    and for a token that the model does not know, before anything is computed.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        context: int | None = None,
        batch_size: int = 8,
        on_batch: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.name = getattr(model, "name_or_path", "") or "the model"
        self.model, self.tokenizer, self.batch_size, self.on_batch = model, tokenizer, batch_size, on_batch
        longest = getattr(model.config, "max_position_embeddings", MAX_CONTEXT)  # some networks have no such limit
        self.context = min(context or MAX_CONTEXT, longest)
        prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if prefix is None:
            raise UserError(f"{self.name}: the tokenizer has neither a BOS nor an EOS token to begin a text with")
        self.prefix: int = self._known([prefix])[0]

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        """Token ids; a text that begins with the prefix token's own text gets no second one."""
        begins = text.startswith(self.tokenizer.decode(self.prefix))
        return self._known(self.tokenizer.encode(text, add_special_tokens=special_tokens and not begins))

    def _known(self, ids: list[int]) -> list[int]:
        known = self.model.config.vocab_size
        if ids and max(ids) >= known:
            raise UserError(
                f"{self.name}: the tokenizer gives the id {max(ids)}, and the network knows {known}, from 0 on; put "
                "the tokenizer there that the network was trained with"
            )
        return ids

    def pair(self, context: str, continuation: str) -> Pair:
        """Encoded together, so that the border is tokenised as in running text; spaces there belong to what is scored.

        A context of nothing, or of nothing but spaces, becomes the prefix token.
        """
        if not context:
            ids = self.encode(continuation, special_tokens=False)
            return Pair([self.prefix], ids) if ids[:1] != [self.prefix] else Pair(ids[:1], ids[1:])
        stripped = context.rstrip()
        whole, before = self.encode(context + continuation), self.encode(stripped)
        return Pair(before or [self.prefix], whole[len(before) :])

    def windows(self, text: str) -> list[Pair]:
        """The whole text in pieces of at most ``context``: each token is scored once.

        The first piece follows the prefix token, the others one token of what came before; the last one as much of it
        as fits.
        """
        ids, size = self.encode(text), self.context
        if not ids:
            return []
        pairs = [Pair([self.prefix], ids[:size])]
        for start in range(size, len(ids), size):
            end = min(start + size, len(ids))
            pairs.append(Pair(ids[max(0, end - size - 1) : start], ids[start:end]))
        return pairs

    @torch.no_grad()
    def loglikelihoods(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """For each pair the log-likelihood of its continuation, in nats, and whether greedy decoding would give it.

        Long contexts lose their beginning. Raises UserError for a continuation longer than ``context``.
        """
        order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i].context) - len(pairs[i].continuation))
        scores: dict[int, tuple[float, bool]] = {}
        while len(scores) < len(order):
            done = len(scores)
            batch = order[done : done + self._batch_size(pairs[order[done]])]
            scores |= zip(batch, self._batch([pairs[i] for i in batch]), strict=True)
            self.on_batch(len(scores), len(pairs))
        return [scores[i] for i in range(len(pairs))]

    def _batch_size(self, longest: Pair) -> int:
        """Sequences that fit beside the longest one."""
        logits = len(self._input(longest)) * self.model.config.vocab_size
        return max(1, min(self.batch_size, MAX_LOGITS // max(1, logits)))

    def _batch(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        inputs = [self._input(pair) for pair in pairs]
        ids = torch.zeros(
            len(pairs), max(map(len, inputs)), dtype=torch.long
        )  # padding on the right is never looked at
        for row, tokens in enumerate(inputs):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        logits: Tensor = self.model(ids.to(self.model.device), use_cache=False).logits
        return [
            self._score(logits[row, len(tokens) - len(pair.continuation) : len(tokens)], pair)
            for row, (tokens, pair) in enumerate(zip(inputs, pairs, strict=True))
        ]

    def _input(self, pair: Pair) -> list[int]:
        if len(pair.continuation) > self.context:
            raise UserError(f"a continuation of {len(pair.continuation)} tokens exceeds the context of {self.context}")
        return [*pair.context, *pair.continuation][-(self.context + 1) :][:-1]

    def _score(self, logits: Tensor, pair: Pair) -> tuple[float, bool]:
        if not pair.continuation:
            return 0.0, True
        target = torch.tensor(pair.continuation, device=logits.device)
        log_probabilities = F.log_softmax(logits.float(), dim=-1)
        picked = log_probabilities.gather(-1, target[:, None])
        return picked.sum().item(), bool((log_probabilities.argmax(-1) == target).all())

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """Log-likelihood of each whole text, in nats."""
        pieces = [self.windows(text) for text in texts]
        scores = iter(self.loglikelihoods([pair for windows in pieces for pair in windows]))
        return [sum(next(scores)[0] for _ in windows) for windows in pieces]

    def text_loss(self, texts: Iterable[str]) -> TextLoss:
        """Loss over all texts together, each scored from its own beginning. Raises UserError where they are empty."""
        texts = [text for text in texts if text.strip()]
        pairs = [pair for text in texts for pair in self.windows(text)]
        if not pairs:
            raise UserError("there is no text to measure the perplexity on")
        nats = -math.fsum(score for score, _ in self.loglikelihoods(pairs))
        num_tokens = sum(len(pair.continuation) for pair in pairs)
        num_words = sum(len(re.split(r"\s+", text)) for text in texts)
        num_bytes = sum(len(text.encode()) for text in texts)
        per = {name: _exp(nats / count) for name, count in (("t", num_tokens), ("w", num_words), ("b", num_bytes))}
        bits = nats / num_bytes / math.log(2)
        return TextLoss(nats / num_tokens, per["t"], per["w"], per["b"], bits, num_tokens, num_words, num_bytes)


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
